"""BasicSR's LR/GT pairs: with cached uncertainty maps; and decoded once, to stay in memory."""
from __future__ import annotations

import random
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils import get_root_logger

from udl_plugin.data.image_cache import CROP, check_memory, get_roots, read_images
from udl_plugin.data.image_io import decode
from udl_plugin.data.lmdb_io import encode, read_meta_info
from udl_plugin.data.map_format import dequantize, read_metadata
from udl_plugin.errors import UserError
from udl_plugin.plugin import register
from udl_plugin.utils.memory import available_memory


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


class PairedImageCachedDataset(PairedImageUncertaintyDataset):
    """BasicSR's `PairedImageDataset` for training from LMDBs that fit into memory. Same crops, flips and rotations.

    Args:
        opt: Options of a PairedImageDataset with `phase: train` and `io_backend: {type: lmdb}`, without mean, std and
            color, and

            cache (str): `device` (default): items have no images, but `crop`, and UDLModel cuts the patches, with an
                `ImageCache`. `host`: items are those of a PairedImageDataset, of images in main memory, which worker
                processes share where they are forked.
            dataroot_uncertainty (str): Maps, as in `PairedImageUncertaintyDataset`. Default: none.

    Raises:
        UserError: the images do not fit into main memory, or options it does not support.
    """

    def __init__(self, opt: dict[str, Any]):
        self.has_maps = opt.get('dataroot_uncertainty') is not None
        if self.has_maps:
            super().__init__(opt)
        else:
            PairedImageDataset.__init__(self, opt)
        for key in ('mean', 'std', 'color'):
            if opt.get(key) is not None:
                raise UserError(f'type: {type(self).__name__}: {key} is not supported; write type: PairedImageDataset.')
        self.on_device = opt.get('cache') != 'host'
        if self.on_device:
            sizes = read_meta_info(opt['dataroot_lq'])
            self.lq_sizes = [sizes[path['lq_path']][:2] for path in self.paths]
            return
        roots = get_roots(opt)
        shapes = {side: read_meta_info(root) for side, root in roots.items()}
        check_memory(roots, shapes, available_memory(), 'main memory')
        keys = [path['lq_path'] for path in self.paths]
        self.file_client = _Records({(side, key): encode(image, compress=False) for side, root in roots.items()
                                     for key, image in zip(keys, read_images(side, root, keys))})

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        Returns:
            As from PairedImageUncertaintyDataset or PairedImageDataset. With `cache: device`, `lq_path`, `gt_path` and
            `crop`, int64 (6,): index, top and left of the LQ patch, flips along width and height, and transposition,
            in this order.
        """
        if not self.on_device:
            return super().__getitem__(index) if self.has_maps else PairedImageDataset.__getitem__(self, index)
        (height, width), path, scale = self.lq_sizes[index], self.paths[index], self.opt['scale']
        gt = np.broadcast_to(np.uint8(0), (scale * height, scale * width))  # only its size counts
        _, numbers = paired_random_crop(gt, np.arange(height * width).reshape(height, width), self.opt['gt_size'],
                                        scale, path['gt_path'])
        _, flips = augment(np.zeros((1, 1, 1), np.uint8), self.opt['use_hflip'], self.opt['use_rot'],
                           return_status=True)
        return {CROP: torch.tensor([index, *divmod(int(numbers[0, 0]), width), *map(int, flips)]), **path}


class _Records:
    """In place of BasicSR's `FileClient`: image files in memory."""

    def __init__(self, records: dict[tuple[str, str], bytes]):
        self.records = records

    def get(self, filepath: str, client_key: str = 'default') -> bytes:
        return self.records['log_var' if client_key == 'uncertainty' else client_key, filepath]


register()  # if importing this module was what imported basicsr, the hook had to skip the class above
