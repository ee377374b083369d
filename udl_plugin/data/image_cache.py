"""The images of a training set in memory, decoded, and patches of them, cut on the device where they are."""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from udl_plugin.data.image_io import decode
from udl_plugin.data.lmdb_io import open_lmdb, read_meta_info
from udl_plugin.data.map_format import LEVELS, read_metadata
from udl_plugin.errors import UserError
from udl_plugin.utils.memory import available_memory
from udl_plugin.utils.parallel import available_cores

ROOTS = {'lq': 'dataroot_lq', 'gt': 'dataroot_gt', 'log_var': 'dataroot_uncertainty'}
CROP = 'crop'  # key in the items of a data set: what `ImageCache.cut` takes


class ImageCache:
    """The images of a `PairedImageCachedDataset` on a device, as uint8, and the patches that its items name.

    Args:
        opt: Options of the data set.
        device: Where to keep them.

    Raises:
        UserError: they do not fit into its memory.
    """

    def __init__(self, opt: Mapping[str, Any], device: torch.device):
        roots = get_roots(opt)
        shapes_of = {side: read_meta_info(root) for side, root in roots.items()}
        keys = sorted(shapes_of['lq'])  # the order of BasicSR
        free = torch.cuda.mem_get_info(device)[0] if device.type == 'cuda' else available_memory()
        check_memory(roots, shapes_of, free, f'the memory of {device}')
        self.device, self.scale, self.patch = device, opt['scale'], opt['gt_size'] // opt['scale']
        self.pixels: dict[str, Tensor] = {}  # (pixels of all images, channels), RGB
        self.places: dict[str, tuple[Tensor, Tensor]] = {}  # first pixel and width of each image
        for side, root in roots.items():
            shapes = shapes_of[side]
            sizes = [math.prod(shapes[key][:2]) for key in keys]
            first = np.cumsum([0, *sizes])
            self.pixels[side] = torch.empty((int(first[-1]), shapes[keys[0]][2]), dtype=torch.uint8, device=device)
            for begin, end, image in zip(first, first[1:], read_images(side, root, keys)):
                rgb = np.ascontiguousarray(image[..., ::-1]).reshape(end - begin, -1)
                self.pixels[side][begin:end] = torch.from_numpy(rgb).to(device)
            self.places[side] = (torch.tensor(first[:-1], device=device),
                                 torch.tensor([shapes[key][1] for key in keys], device=device))
        self.levels = torch.tensor(255., device=device)  # not a number, by whose reciprocal a GPU would multiply
        if 'log_var' in roots:
            limits = [read_metadata(roots['log_var'])['limits'][key] for key in keys]
            self.low = torch.tensor([low for low, _ in limits], dtype=torch.float32, device=device)
            steps = [(high - low) / LEVELS for low, high in limits]
            self.step = torch.tensor(steps, dtype=torch.float32, device=device)

    def cut(self, crops: Tensor) -> dict[str, Tensor]:
        """Cuts the patches of a batch.

        Args:
            crops: `(N, 6)`, `crop` of its items.

        Returns:
            `lq`, `gt` and, with maps, `log_var`, float32 `(N, C, H, W)` in channels_last, as from a PairedImageDataset
            and a PairedImageUncertaintyDataset.
        """
        crops = crops.to(self.device, non_blocking=True)
        batch = {side: self._cut(side, crops, 1 if side == 'lq' else self.scale) for side in self.pixels}
        images = {side: patches.float() / self.levels for side, patches in batch.items() if side != 'log_var'}
        if 'log_var' in batch:
            step, low = (values[crops[:, 0]].view(-1, 1, 1, 1) for values in (self.step, self.low))
            images['log_var'] = batch['log_var'].float() * step + low
        return images

    def _cut(self, side: str, crops: Tensor, scale: int) -> Tensor:
        size = scale * self.patch
        index, top, left, flip_x, flip_y, transpose = crops.view(-1, 6, 1, 1).unbind(1)
        i = torch.arange(size, device=self.device).view(1, -1, 1)
        j = i.view(1, 1, -1)
        row, column = torch.where(transpose > 0, j, i), torch.where(transpose > 0, i, j)
        y = scale * top + torch.where(flip_y > 0, size - 1 - row, row)
        x = scale * left + torch.where(flip_x > 0, size - 1 - column, column)
        first, width = (values[index] for values in self.places[side])
        return self.pixels[side][first + y * width + x].permute(0, 3, 1, 2)


def get_roots(opt: Mapping[str, Any]) -> dict[str, str]:
    """`lq`, `gt` and `log_var` to their LMDBs, as far as a data set has them."""
    return {side: opt[key] for side, key in ROOTS.items() if opt.get(key) is not None}


def check_memory(roots: Mapping[str, str], shapes: Mapping[str, Mapping[str, tuple[int, int, int]]], free: int | None,
                 where: str) -> None:
    """
    Args:
        roots: From `get_roots`.
        shapes: Of all images, from `read_meta_info`, for each root.
        free: Bytes; None: unknown.
        where: What has them, for the message.

    Raises:
        UserError: the decoded images have more bytes.
    """
    needed = sum(math.prod(shape) for images in shapes.values() for shape in images.values())
    if free is not None and needed > free:
        raise UserError(f'datasets.train.cache: {", ".join(roots.values())} have {needed / 2**20:,.0f} MiB decoded, '
                        f'and of {where} {free / 2**20:,.0f} MiB are free. Write type: PairedImageDataset without '
                        'cache, or prepare sub-images that overlap less (--step).')


def read_images(side: str, root: str, keys: Sequence[str]) -> Iterator[np.ndarray]:
    """Decodes images of an LMDB, in order: uint8 `(H, W, C)`, BGR. `side`: a key of `ROOTS`.

    Raises:
        UserError: names the one that cannot be decoded.
    """
    flags = cv2.IMREAD_UNCHANGED if side == 'log_var' else cv2.IMREAD_COLOR  # as BasicSR
    with open_lmdb(root) as env, env.begin() as txn, ThreadPoolExecutor(available_cores()) as pool:
        for begin in range(0, len(keys), 256):  # decoded ahead, but not all at once
            part = keys[begin:begin + 256]
            records = [txn.get(key.encode()) for key in part]
            for key, image in zip(part, pool.map(_decode, records, [flags] * len(part))):
                if isinstance(image, ValueError):
                    raise UserError(f"'{root}': '{key}' cannot be decoded: {image}")
                yield image.reshape(*image.shape[:2], -1)


def _decode(data: bytes | None, flags: int) -> np.ndarray | ValueError:
    try:
        return decode(data or b'', flags)
    except ValueError as err:
        return err
