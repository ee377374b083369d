"""BasicSR's LR/GT pairs with cached uncertainty maps."""
from __future__ import annotations

import random
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils import get_root_logger

from udl_plugin.data.image_io import decode
from udl_plugin.data.map_format import dequantize, read_metadata
from udl_plugin.plugin import register


class PairedImageUncertaintyDataset(PairedImageDataset):
    """BasicSR's `PairedImageDataset` for training from LMDBs, with `log_var` in its items.

    Args:
        opt: Options of a PairedImageDataset with `phase: train` and `io_backend: {type: lmdb}`, and

            dataroot_uncertainty (str): LMDB from `udl-prepare uncertainty`, with the maps of all images of
                `dataroot_lq`, in the size of the GT images.

    Raises:
        UserError: `dataroot_uncertainty` is not such an LMDB.
    """

    def __init__(self, opt: dict[str, Any]):
        super().__init__(opt)
        metadata = read_metadata(opt['dataroot_uncertainty'])
        self.limits = metadata['limits']
        get_root_logger().info(f"Uncertainty maps: {opt['dataroot_uncertainty']}, made by {metadata['model']}.")
        self.io_backend_opt['db_paths'].append(opt['dataroot_uncertainty'])
        self.io_backend_opt['client_keys'].append('uncertainty')

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        Returns:
            `lq`, `gt`, `lq_path` and `gt_path` of BasicSR, and `log_var`, float32 `(C, gt_size, gt_size)`, with the
            same crop, flip and rotation as `gt`.
        """
        before = random.getstate()
        item = super().__getitem__(index)
        after = random.getstate()
        random.setstate(before)  # BasicSR's transforms draw the same numbers as for `lq` and `gt`
        item['log_var'] = torch.from_numpy(self._read_map(item['lq_path']))
        random.setstate(after)
        return item

    def _read_map(self, key: str) -> np.ndarray:
        img = decode(self.file_client.get(key, 'uncertainty'), cv2.IMREAD_UNCHANGED)
        img = img.reshape(*img.shape[:2], -1)
        scale = self.opt['scale']
        lq = np.empty((img.shape[0] // scale, img.shape[1] // scale))  # paired_random_crop uses only its size
        img, _ = paired_random_crop(img, lq, self.opt['gt_size'], scale, key)
        img = augment(img.copy(), self.opt['use_hflip'], self.opt['use_rot'])
        return dequantize(img, self.limits[key])


register()  # if importing this module was what imported basicsr, the hook had to skip the class above
