"""Runs a network of step 1 once over a training set and keeps its maps, for a step 2 that runs it no more."""
import collections
import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from udl_plugin.archs.padding import pad_to_multiple, required_multiple
from udl_plugin.archs.wrapping import base_config
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.checkpoints.state_dict import fingerprint
from udl_plugin.data.image_io import decode
from udl_plugin.data.lmdb_io import LmdbWriter, encode, is_lmdb, open_lmdb, read_meta_info, shape_of
from udl_plugin.data.map_format import METADATA, make_metadata, quantize
from udl_plugin.errors import UserError
from udl_plugin.prepare.verify import check_images, check_pair, no_progress
from udl_plugin.utils.atomic_io import atomic_folders, atomic_write
from udl_plugin.utils.parallel import available_cores
from udl_plugin.utils.plain import to_builtins

AHEAD = 2  # batches that wait to be packed and written, while the network runs


class MapStats(NamedTuple):
    """What was written: how many maps, their size in pixels and in bytes."""

    images: int
    pixels: int
    size: int


def prepare_uncertainty(model, hr, lr, out, param_key='params', network_g=None, batch=None, compress=True, force=False,
                        workers=0, progress=no_progress):
    """Writes the log-variance of all LR images of a training set as an LMDB, for `dataroot_uncertainty`.

    Args:
        model (str | Path): Checkpoint of step 1, or of step 2, whose frozen network it then is.
        hr, lr (str | Path): The LMDBs that `dataroot_gt` and `dataroot_lq` name.
        out (str | Path): The LMDB to write; ends in `.lmdb`.
        param_key, network_g: As in `load_network_file`.
        batch (int): Images at once, where they have one size; None: 16 on a GPU, 1 without.
        compress (bool): As PNG files; otherwise BMP, which takes more room and less time in training.
        force (bool): Whether what exists is replaced.
        workers (int): Processes that read back what was written.
        progress (Callable): `progress(iterable, total, what)` gives the items of `iterable`, and may show how many went by.

    Returns:
        Mapped

    Raises:
        UserError: there is no variance head in the checkpoint; HR and LR are no pairs of its scale; `out` exists; a
            map is not finite; a full disk.
    """
    out = Path(out)
    for path in (hr, lr, out):
        if not is_lmdb(path):
            raise UserError(f"'{path}' does not end in .lmdb; maps are kept beside training sets in LMDBs.")
    if out.resolve() in (Path(hr).resolve(), Path(lr).resolve()):
        raise UserError(f"'{out}' is to be written and to be read; choose another place.")
    read = load_network_file(model, param_key, network_g)
    if read.stage == 'plain':
        raise UserError(f"'{model}' holds a plain network, without a variance head; name a checkpoint of step 1.")
    (channels, scale), net = read.channels_and_scale, read.build()
    shapes = read_meta_info(lr)
    _, problems = check_pair(read_meta_info(hr), shapes, scale, same_names=True)
    if problems:
        raise UserError(f"'{hr}' and '{lr}' are no training set for it: {problems[0]}.")
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    run = _Run(getattr(net, 'var_net', net).to(device), device, channels, scale,
               required_multiple(base_config(read.network_g)))
    batch = batch or (16 if device.type == 'cuda' else 1)
    with atomic_folders(out.parent, [out.name], force) as unfinished:
        limits, pixels = {}, 0
        with LmdbWriter(unfinished / out.name) as maps, open_lmdb(lr) as env, ThreadPoolExecutor(available_cores()) as pool:
            for key, png, shape, limit in progress(_packed(env, shapes, batch, run, pool, compress), len(shapes), 'maps'):
                maps.put(key, png, shape, key=key)
                limits[key] = limit
                pixels += shape[0] * shape[1]
        atomic_write(unfinished / out.name / METADATA, make_metadata(
            model, param_key, fingerprint(run.net.state_dict()), to_builtins(read.network_g), scale, limits))
        problems = check_images(unfinished / out.name, workers, progress).problems
        if problems:
            raise UserError(f'what was written does not read back: {problems[0]}. Disk or memory may be damaged; '
                             'nothing was kept.')
    return MapStats(len(limits), pixels, sum(path.stat().st_size for path in out.iterdir()))


class _Run:
    """The network, on bytes of LR images of one size."""

    def __init__(self, net, device, channels, scale, multiple):
        self.net, self.device, self.channels, self.scale, self.multiple = net, device, channels, scale, multiple

    @torch.no_grad()
    def __call__(self, keys, pngs):
        from basicsr.utils import bgr2ycbcr, img2tensor  # here: ours must be first
        images = []
        for key, png in zip(keys, pngs):
            try:
                images.append(decode(png, cv2.IMREAD_COLOR).astype(np.float32) / 255)
            except ValueError as err:
                raise UserError(f"'{key}' of the LR images cannot be decoded: {err}") from err
        if self.channels == 1:
            images = [bgr2ycbcr(img, y_only=True)[..., None] for img in images]
        lq = torch.stack(img2tensor(images)).to(self.device)
        height, width = lq.shape[2:]
        try:
            log_var = self.net.log_var(pad_to_multiple(lq, self.multiple))
            log_var = log_var[:, :, :self.scale * height, :self.scale * width].float().cpu().numpy()
        except RuntimeError as err:
            raise UserError(f'the network cannot run on {len(images)} images of {width} x {height} at once '
                             f'({" ".join(str(err).split())}); smaller sub-images or a smaller --batch take less '
                             'memory.') from err
        if not np.isfinite(log_var).all():
            raise UserError('the network gives maps with values that are no finite numbers.')
        return log_var


def _packed(env, shapes, batch, run, pool, compress):
    """Key, image file, shape and limits of each map; packed in the threads of `pool` while the network runs."""
    waiting = collections.deque()
    for keys in _batches(shapes, batch):
        with env.begin() as txn:
            pngs = [txn.get(key.encode()) for key in keys]
        missing = [key for key, png in zip(keys, pngs) if png is None]
        if missing:
            raise UserError(f"'{missing[0]}' is listed in meta_info.txt of the LR images, but not in data.mdb.")
        waiting.append(zip(keys, pool.map(functools.partial(_pack, compress), run(keys, pngs))))
        if len(waiting) > AHEAD:
            yield from ((key, *packed) for key, packed in waiting.popleft())
    for results in waiting:
        yield from ((key, *packed) for key, packed in results)


def _pack(compress, log_var):
    img, limits = quantize(log_var)
    return encode(img, compress), shape_of(img), limits


def _batches(shapes, most):
    """Keys of images of one size that stand beside each other, `most` at a time."""
    keys = []
    for key, shape in shapes.items():
        if keys and (len(keys) == most or shapes[keys[0]] != shape):
            yield keys
            keys = []
        keys.append(key)
    if keys:
        yield keys
