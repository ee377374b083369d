"""BasicSR's datasets, from LMDBs or folders, for mmengine's data loaders."""
from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from basicsr.data import build_dataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from udl_plugin.config.cross_checks import check_data
from udl_plugin.data.checked_dataset import CheckedDataset
from udl_plugin.errors import UserError
from udl_plugin.utils.plain import to_builtins


@DATASETS.register_module()
class BasicSRDataset(Dataset):
    """The dataset that `datasets: train` or `val` of a BasicSR option file describes.

    Requires `collate_fn=dict(type='default_collate')` in the data loader.

    Args:
        phase: `train` (crops and flips) or `val`.
        scale: Upscaling factor of the network.
        dataset: `dict(name='DIV2K', type='PairedImageDataset', dataroot_gt=..., dataroot_lq=...,
            io_backend=dict(type='lmdb'), gt_size=192, use_hflip=True, use_rot=True)`, or the options of another dataset
            of ours or BasicSR; without those of its data loader. `on_bad_record='skip'` replaces corrupted samples.

    Raises:
        UserError: unknown, missing or wrong options; no such data. From `__getitem__`: a corrupted sample.
    """

    def __init__(self, phase: str, scale: int, dataset: Mapping[str, Any]):
        opt = {'name': phase, **to_builtins(dataset)}
        check_data(phase, scale, opt)
        self.phase, self.opt = phase, opt
        data = build_dataset({**opt, 'phase': phase, 'scale': scale})
        if getattr(data, 'on_device', False):
            raise UserError(f'datasets: {phase}: cache: device is for UDLModel, which cuts the patches; write host.')
        self.dataset = CheckedDataset(data, f'datasets: {phase}', opt.get('on_bad_record') or 'stop')

    metainfo: Mapping[str, Any] = {}  # mmengine's dataset wrappers read it, and call `full_init`

    def full_init(self) -> None:
        pass

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        Returns:
            `inputs`, the LR image, float32 `(C, h, w)`, RGB in [0, 1]; and `data_samples`: `gt` and with cached maps
            `log_var`, `(C, H, W)`; except in training also `lq_path`, `gt_path` and `set` (name of the dataset).
        """
        sample, skipped = self.dataset.load(index)
        for error in skipped:
            print_log(f'Skipped: {error}', 'current', logging.WARNING)
        if self.phase == 'train':  # torch.compile would recompile for every new path
            data_samples = {name: value for name, value in sample.items() if torch.is_tensor(value)}
        else:
            data_samples = {**sample, 'set': self.opt['name']}
        return {'inputs': data_samples.pop('lq'), 'data_samples': data_samples}
