"""BasicSR's pairs of LR and GT, with the uncertainty map of the GT's size that `udl-prepare uncertainty` wrote."""
import random

import cv2
import numpy as np
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils import get_root_logger

from udl_plugin.data.map_format import dequantize, read_metadata
from udl_plugin.plugin import register


class PairedImageUncertaintyDataset(PairedImageDataset):
    """Upstream's `PairedImageDataset` for training from LMDBs; its batches also have `log_var`.

    Args:
        opt (dict): Options of a PairedImageDataset with `phase: train` and `io_backend: {type: lmdb}`, and

            dataroot_uncertainty (str): LMDB with the maps of all images of `dataroot_lq`.

    Raises:
        UserError: there are no maps.
    """

    def __init__(self, opt):
        super().__init__(opt)
        about = read_metadata(opt['dataroot_uncertainty'])
        self.limits = about['limits']
        get_root_logger().info(f"Maps: {opt['dataroot_uncertainty']}, of {about['model']}.")
        self.io_backend_opt['db_paths'].append(opt['dataroot_uncertainty'])
        self.io_backend_opt['client_keys'].append('uncertainty')

    def __getitem__(self, index):
        """
        Returns:
            dict: `lq`, `gt`, `lq_path`, `gt_path` as upstream has them, and `log_var`, float32 `(C, gt_size, gt_size)`,
            with the same crop, flip and rotation as `gt`.
        """
        before = random.getstate()
        item = super().__getitem__(index)
        after = random.getstate()
        random.setstate(before)  # upstream's own functions, with the numbers that they drew for `lq` and `gt`
        item['log_var'] = torch.from_numpy(self._read(item['lq_path']))
        random.setstate(after)
        return item

    def _read(self, key):
        data = np.frombuffer(self.file_client.get(key, 'uncertainty'), np.uint8)
        img = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        img = img.reshape(*img.shape[:2], -1)
        scale = self.opt['scale']
        lq = np.empty((img.shape[0] // scale, img.shape[1] // scale))  # of it, cropping needs the size
        img, _ = paired_random_crop(img, lq, self.opt['gt_size'], scale, key)
        img = augment(img.copy(), self.opt['use_hflip'], self.opt['use_rot'])
        return dequantize(img, self.limits[key])


register()  # if importing this module was what imported basicsr, the hook had to skip the class above
