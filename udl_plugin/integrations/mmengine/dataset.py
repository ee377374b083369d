"""Data sets of BasicSR, LMDBs and all, for mmengine's loaders."""
import logging

from basicsr.data import build_dataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from udl_plugin.config.cross_checks import check_data
from udl_plugin.data.checked_dataset import CheckedDataset
from udl_plugin.utils.plain import to_builtins


@DATASETS.register_module()
class BasicSRDataset(Dataset):
    """What a section `datasets: train:` or `val:` of a yml describes. Wants `collate_fn=dict(type='default_collate')`.

    Args:
        phase (str): `train` (crops, flips), or `val`.
        scale (int): Of the network.
        dataset (dict): The section: `dict(name='DIV2K', type='PairedImageDataset', dataroot_gt=..., dataroot_lq=...,
            io_backend=dict(type='lmdb'), gt_size=192, use_hflip=True, use_rot=True)`, or of another of BasicSR's and
            our data sets; workers and batches are the loader's. `on_bad_record='skip'` as there.

    Raises:
        UserError: an option that nothing reads, or is missing; no such data. While training: a record that is bad.
    """

    def __init__(self, phase, scale, dataset):
        opt = {'name': phase, **to_builtins(dataset)}
        check_data(phase, scale, opt)
        self.name = opt['name']
        self.dataset = CheckedDataset(build_dataset({**opt, 'phase': phase, 'scale': scale}), f'datasets: {phase}',
                                      opt.get('on_bad_record') or 'stop')

    metainfo = property(lambda self: {})  # mmengine's wrappers ask for it, and call `full_init`

    def full_init(self):
        """Nothing is left to do."""

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        """
        Returns:
            dict: `inputs`, the LR image, float32 `(C, h, w)`, RGB in [0, 1]; `data_samples`, a dict of the rest: `gt`
            `(C, H, W)`, `lq_path`, `gt_path`, `set` (the name of the data set), and with maps `log_var` `(C, H, W)`.
        """
        item, passed_over = self.dataset.load(index)
        for problem in passed_over:
            print_log(f'Passed over: {problem}', 'current', logging.WARNING)
        return {'inputs': item.pop('lq'), 'data_samples': {**item, 'set': self.name}}
