"""Verifies an LMDB or a folder of images record by record, and whether two of them pair up."""
from __future__ import annotations

import collections
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np

from udl_plugin.data.image_io import decode, list_images, pair_names, read_image
from udl_plugin.data.lmdb_io import is_lmdb, open_lmdb, read_meta_info, shape_of
from udl_plugin.errors import UserError
from udl_plugin.utils.parallel import parallel_map

Shape = tuple[int, ...]  # (H, W, C)
Progress = Callable[[Iterable, int, str], Iterable]  # progress(items, total, description) -> items, shown as a bar

CHUNK = 16  # records per task of a worker


class CheckResult(NamedTuple):
    """Result of `check_images`.

    Attributes:
        shapes: Name to `(H, W, C)` of each image that can be decoded.
        problems: One line each.
    """
    shapes: dict[str, Shape]
    problems: list[str]


def no_progress(items: Iterable, total: int, description: str) -> Iterable:
    """A `progress` that shows nothing."""
    return items


def check_images(path: str | Path, workers: int = 0, progress: Progress = no_progress) -> CheckResult:
    """Decodes every image of an LMDB written for BasicSR, or of a folder.

    Args:
        path: LMDB (ends in `.lmdb`) or folder.
        workers: Number of processes; 0 uses this one, which a corrupted LMDB may crash.
        progress: `progress(items, total, description)` returns the items, and may show a bar.

    Returns:
        Its problems are records that are missing, not listed, cannot be decoded, are not 8-bit, or differ from the
        shape in meta_info.txt. If an LMDB cannot be read to its end, that is the only problem, and there are no shapes.

    Raises:
        UserError: `path` is missing, empty or truncated, or its meta_info.txt is missing or not BasicSR's.
    """
    result = CheckResult({}, [])
    entries: Mapping[str, Any] = read_meta_info(path) if is_lmdb(path) else list_images(path)
    items = list(entries.items())
    tasks = [functools.partial(_check_records, path, items[start:start + CHUNK])
             for start in range(0, len(items), CHUNK)]
    if is_lmdb(path):
        tasks.append(functools.partial(_find_unlisted, path, set(entries)))
    try:
        with parallel_map(_call, tasks, workers) as results:
            records = itertools.chain.from_iterable(results)
            for name, shape, problem in progress(records, len(items), f'checking {Path(path).name}'):
                if problem:
                    result.problems.append(f'{name}: {problem}')
                else:
                    result.shapes[name] = shape
    except UserError as err:  # a worker died, or data.mdb is not an LMDB's
        return CheckResult({}, [f'cannot be read to the end: {err}'])
    return result


def _call(task: Callable) -> Any:
    return task()


def _find_unlisted(path: str | Path, listed: set[str]) -> list:
    """As `_check_records`, for keys that meta_info.txt does not list."""
    with open_lmdb(path) as env, env.begin() as txn:
        keys = {key.decode(errors='replace') for key in txn.cursor().iternext(values=False)}
    return [(key, None, 'in data.mdb, but not listed in meta_info.txt') for key in sorted(keys - listed)]


def _check_records(path: str | Path, records: list[tuple[str, Any]]) -> list:
    """Name, shape and problem of each record."""
    with open_lmdb(path) if is_lmdb(path) else contextlib.nullcontext() as env:
        return [(name, *_check_record(env, name, entry)) for name, entry in records]


def _check_record(env: lmdb.Environment | None, name: str, entry: Any) -> tuple[Shape | None, str]:
    """The shape of an image and what is wrong with it. `entry` is its shape in meta_info.txt, or the path of a file."""
    try:
        if env is None:
            return shape_of(read_image(entry, keep_grey=True)[0]), ''
        with env.begin() as txn:
            data = txn.get(name.encode())
        if data is None:
            return None, 'listed in meta_info.txt, but not in data.mdb'
        img = decode(data)
    except (ValueError, lmdb.Error) as err:  # UserError is a ValueError
        return None, str(err)
    if img.dtype != np.uint8:
        return None, f'has {8 * img.itemsize} bits per channel, not 8'
    if shape_of(img) != entry:
        return None, f'is {shape_of(img)}, but {entry} in meta_info.txt'
    return shape_of(img), ''


def check_pair(hr: Mapping[str, Shape], lr: Mapping[str, Shape], scale: int | None = None,
               same_names: bool = False) -> tuple[int, list[str]]:
    """Checks that each HR image has an LR image that is `scale` times smaller.

    Args:
        hr: Name to `(H, W, C)`, as in `CheckResult.shapes`.
        lr: The same for LR; names as in HR or, as in DIV2K, with a suffix such as `x4`.
        scale: None finds the scale of most pairs.
        same_names: Whether names must be equal, as BasicSR requires of the keys of two LMDBs.

    Returns:
        The scale, or 0 if there is none; and the problems, one line each.
    """
    pairs, only_hr, only_lr = pair_names(hr, lr)
    if same_names:
        pairs = {name: name for name in hr if name in lr}
        only_hr, only_lr = sorted(hr.keys() - lr.keys()), sorted(lr.keys() - hr.keys())
    if not pairs:
        return 0, ['HR and LR have no image in common']
    if scale is None:
        ratios = collections.Counter(hr[name][0] // lr[pairs[name]][0] for name in pairs)
        scale = ratios.most_common(1)[0][0]
        if not scale:
            return 0, ['HR is smaller than LR; name HR first']
    problems = [f'{name}: only in HR' for name in only_hr] + [f'{name}: only in LR' for name in only_lr]
    for name in pairs:
        (height, width, _), (lr_height, lr_width, _) = hr[name], lr[pairs[name]]
        if (height, width) != (scale * lr_height, scale * lr_width):
            uncut = (height // scale, width // scale) == (lr_height, lr_width)
            problems.append(f'{name}: HR is {width} x {height} and LR {lr_width} x {lr_height}, not a scale of {scale}'
                            + '; HR is not cropped to a multiple of it' * uncut)
    return scale, problems
