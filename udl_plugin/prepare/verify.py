"""Checks what lies in an LMDB or a folder of images, record by record, and whether two of them pair up."""
import collections
import contextlib
import functools
import itertools
from pathlib import Path
from typing import NamedTuple

import lmdb
import numpy as np

from udl_plugin.data.image_io import decode, list_images, pair_names, read_image
from udl_plugin.data.lmdb_io import is_lmdb, open_lmdb, read_meta_info, shape_of
from udl_plugin.errors import UserError
from udl_plugin.utils.parallel import parallel_map

CHUNK = 16  # records for a worker at a time


class CheckResult(NamedTuple):
    """What `check_images` found: `shapes`, name to `(H, W, C)` of what can be decoded; `problems`, a line each."""
    shapes: dict
    problems: list


def no_progress(iterable, total, what):
    """Stands where a progress bar may: gives the `total` items of `iterable` and shows nothing."""
    return iterable


def check_images(path, workers=0, progress=no_progress):
    """Decodes every image of an LMDB of BasicSR's kind, or of a folder.

    Args:
        path (str | Path): LMDB (ends in `.lmdb`) or folder.
        workers (int): Processes; with 0, this one does the work, and a damaged LMDB may crash it.
        progress (Callable): `progress(iterable, total, what)` gives the items of `iterable`, and may show how many went by.

    Returns:
        Checked: Problems are records that are missing, unlisted, cannot be decoded, are not 8-bit, or differ from the
            shape that meta_info.txt lists. Where an LMDB cannot be read to its end, that is the only one, and there
            are no shapes.

    Raises:
        UserError: `path` is missing, empty, truncated, or its meta_info.txt is missing or not BasicSR's.
    """
    found = CheckResult({}, [])
    entries = read_meta_info(path) if is_lmdb(path) else list_images(path)
    items = list(entries.items())
    tasks = [functools.partial(_check_records, path, items[start:start + CHUNK])
             for start in range(0, len(items), CHUNK)]
    if is_lmdb(path):
        tasks.append(functools.partial(_check_keys, path, set(entries)))
    try:
        with parallel_map(_call, tasks, workers) as results:
            records = itertools.chain.from_iterable(results)
            for name, shape, problem in progress(records, len(items), f'checking {Path(path).name}'):
                if problem:
                    found.problems.append(f'{name}: {problem}')
                else:
                    found.shapes[name] = shape
    except UserError as err:  # a worker died, or data.mdb is none
        return CheckResult({}, [f'cannot be read to the end: {err}'])
    return found


def _call(task):
    return task()


def _check_keys(path, listed):
    with open_lmdb(path) as env, env.begin() as txn:
        keys = {key.decode(errors='replace') for key in txn.cursor().iternext(values=False)}
    return [(key, None, 'in data.mdb, but not listed in meta_info.txt') for key in sorted(keys - listed)]


def _check_records(path, records):
    with open_lmdb(path) if is_lmdb(path) else contextlib.nullcontext() as env:
        return [(name, *_check_record(env, name, entry)) for name, entry in records]


def _check_record(env, name, entry):
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
        return None, f'has {8 * img.itemsize} bits a channel, not 8'
    if shape_of(img) != entry:
        return None, f'is {shape_of(img)}, but {entry} in meta_info.txt'
    return shape_of(img), ''


def check_pair(hr, lr, scale=None, same_names=False):
    """Whether each HR image has its LR image, `scale` times smaller.

    Args:
        hr (dict[str, tuple]): Name to `(H, W, C)`, as `check_images` gives it.
        lr (dict[str, tuple]): As well; DIV2K's names, `0001x4`, are understood.
        scale (int | None): None takes the scale that most pairs have.
        same_names (bool): Whether names must be the same, as upstream wants the keys of two LMDBs.

    Returns:
        tuple[int, list[str]]: The scale, 0 where there is none, and the problems, a line each.
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
                            + '; HR is not cut to a multiple of it' * uncut)
    return scale, problems
