"""Caches the uncertainty maps of a step-1 network for a training set, so that step 2 need not run the network."""
from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import lmdb
import numpy as np
import torch

from udl_plugin.archs.padding import get_required_multiple, pad_to_multiple
from udl_plugin.archs.wrapping import base_config
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.checkpoints.state_dict import fingerprint
from udl_plugin.data.image_io import decode
from udl_plugin.data.lmdb_io import LmdbWriter, encode, is_lmdb, open_lmdb, read_meta_info, shape_of
from udl_plugin.data.map_format import METADATA, make_metadata, quantize
from udl_plugin.errors import UserError
from udl_plugin.prepare.verify import Progress, Shape, check_images, check_pair, no_progress
from udl_plugin.utils.atomic_io import atomic_folders, atomic_write
from udl_plugin.utils.parallel import available_cores
from udl_plugin.utils.plain import to_builtins


class MapStats(NamedTuple):
    """What was written.

    Attributes:
        images: Number of maps.
        pixels: In all maps.
        size: Bytes on the disk.
        notes: What a user should know about the network file.
    """

    images: int
    pixels: int
    size: int
    notes: list[str]


def prepare_uncertainty(model: str | Path, hr: str | Path, lr: str | Path, out: str | Path,
                        param_key: str | None = None, network_g: dict[str, Any] | None = None,
                        batch: int | None = None, compress: bool = True, force: bool = False, workers: int = 0,
                        progress: Progress = no_progress) -> MapStats:
    """Writes the log-variance of all LR images of a training set as an LMDB, for `dataroot_uncertainty`.

    Args:
        model: Checkpoint of step 1; or of step 2, whose frozen step-1 network is then used.
        hr: LMDB that `dataroot_gt` names.
        lr: LMDB that `dataroot_lq` names.
        out: LMDB to write; ends in `.lmdb`.
        param_key: As in `load_network_file`.
        network_g: As in `load_network_file`.
        batch: Images of equal size per batch; None: 16 on a GPU, otherwise 1.
        compress: Whether the records are PNG files. Otherwise they are BMP: larger, and faster to read in training.
        force: Whether to replace an existing `out`.
        workers: Number of processes that read the maps back; 0 uses this one.
        progress: `progress(items, total, description)` returns the items, and may show a bar.

    Raises:
        UserError: the checkpoint has no variance head, HR and LR do not pair up at its scale, `out` exists, a map is
            not finite, or the disk is full.
    """
    out = Path(out)
    for path in (hr, lr, out):
        if not is_lmdb(path):
            raise UserError(f"'{path}' does not end in .lmdb; maps are cached for training sets in LMDBs.")
    if out.resolve() in (Path(hr).resolve(), Path(lr).resolve()):
        raise UserError(f"'{out}' would be written, but holds input images; choose another path.")
    network = load_network_file(model, param_key, network_g)
    if network.stage == 'plain':
        raise UserError(f"'{model}' holds a base network without a variance head; give a checkpoint of step 1.")
    (channels, scale), net = network.channels_and_scale, network.build()
    shapes = read_meta_info(lr)
    _, problems = check_pair(read_meta_info(hr), shapes, scale, same_names=True)
    if problems:
        raise UserError(f"'{hr}' and '{lr}' do not fit this network: {problems[0]}.")
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    net = getattr(net, 'var_net', net).to(device)
    predict = functools.partial(_predict_maps, net, device=device, channels=channels, scale=scale,
                                multiple=get_required_multiple(base_config(network.network_g)))
    batch = batch or (16 if device.type == 'cuda' else 1)
    with atomic_folders(out.parent, [out.name], force) as unfinished:
        limits, pixels = {}, 0
        with LmdbWriter(unfinished / out.name) as maps, open_lmdb(lr) as env:
            encoded = _encode_maps(env, shapes, batch, predict, compress)
            for key, data, shape, limits_of_map in progress(encoded, len(shapes), 'maps'):
                maps.put(key, data, shape, key=key)
                limits[key] = limits_of_map
                pixels += shape[0] * shape[1]
        atomic_write(unfinished / out.name / METADATA, make_metadata(
            model, network.param_key, fingerprint(net.state_dict()), to_builtins(network.network_g), scale, limits))
        problems = check_images(unfinished / out.name, workers, progress).problems
        if problems:
            raise UserError(f'the written data does not read back: {problems[0]}. Disk or memory may be faulty; '
                            'nothing was kept.')
    return MapStats(len(limits), pixels, sum(path.stat().st_size for path in out.iterdir()), network.notes)


def _encode_maps(env: lmdb.Environment, shapes: dict[str, tuple[int, int, int]], batch: int, predict: Callable,
                 compress: bool) -> Iterator[tuple[str, bytes, Shape, tuple[float, float]]]:
    """Yields key, image file, shape and limits of the map of each LR image."""

    def encode_map(log_var: np.ndarray) -> tuple[bytes, Shape, tuple[float, float]]:
        img, limits = quantize(log_var)
        return encode(img, compress), shape_of(img), limits

    with ThreadPoolExecutor(available_cores()) as pool:
        for keys in _batches(shapes, batch):
            with env.begin() as txn:
                files = [txn.get(key.encode()) or b'' for key in keys]
            for key, encoded in zip(keys, pool.map(encode_map, predict(keys, files))):
                yield key, *encoded


def _batches(shapes: dict[str, tuple[int, int, int]], size: int) -> Iterator[list[str]]:
    """Keys of consecutive images of equal shape, at most `size` at a time."""
    for _, group in itertools.groupby(shapes, shapes.get):
        keys = list(group)
        for start in range(0, len(keys), size):
            yield keys[start:start + size]


@torch.no_grad()
def _predict_maps(net: Any, keys: list[str], files: list[bytes], device: torch.device, channels: int, scale: int,
                  multiple: int) -> np.ndarray:
    """Runs the network on encoded LR images of equal size; returns their maps, float32 `(N, C, H, W)`."""
    from basicsr.utils import bgr2ycbcr, img2tensor  # here, because our import hook has to be installed before
    images = []
    for key, data in zip(keys, files):
        try:
            images.append(decode(data, cv2.IMREAD_COLOR).astype(np.float32) / 255)
        except ValueError as err:
            raise UserError(f"LR image '{key}' is missing or cannot be decoded: {err}") from err
    if channels == 1:
        images = [bgr2ycbcr(img, y_only=True)[..., None] for img in images]
    lq = torch.stack(img2tensor(images)).to(device)
    height, width = lq.shape[2:]
    try:
        log_var = net.log_var(pad_to_multiple(lq, multiple))
        log_var = log_var[:, :, :scale * height, :scale * width].float().cpu().numpy()
    except RuntimeError as err:
        raise UserError(f'the network cannot run on a batch of {len(images)} images of {width} x {height} pixels '
                        f'({" ".join(str(err).split())}). If memory is short, use a smaller --batch or smaller '
                        'sub-images.') from err
    if not np.isfinite(log_var).all():
        raise UserError('the network returns maps with NaN or infinite values.')
    return log_var
