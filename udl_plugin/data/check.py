"""Checks what lies in an LMDB or a folder of images, record by record, and whether two of them pair up."""
import collections
import contextlib
import functools
from typing import NamedTuple

import lmdb
import numpy as np

from udl_plugin.data.image_files import decode, list_images, pair_names, read_image
from udl_plugin.data.parallel import in_order
from udl_plugin.data.records import is_lmdb, open_lmdb, read_meta_info, shape_of
from udl_plugin.errors import InputError

CHUNK = 16  # records for a worker at a time


class Checked(NamedTuple):
    """What `check_images` found: `shapes`, name to `(H, W, C)` of what can be decoded; `problems`, a line each."""
    shapes: dict
    problems: list


def untracked(iterable, total, what):
    """Stands where a progress bar may: gives the `total` items of `iterable` and shows nothing."""
    return iterable


def check_images(paths, workers=0, track=untracked):
    """Decodes every image of LMDBs of BasicSR's kind, or of folders.

    Args:
        paths (Iterable[str | Path]): LMDBs (end in `.lmdb`) or folders.
        workers (int): Processes; 0 only for what was written just now: a truncated LMDB crashes who reads it.
        track (Callable): `track(iterable, total, what)` gives the items of `iterable`, and may show how many went by.

    Returns:
        list[Checked]: One for each path. Problems are records that are missing, unlisted, cannot be decoded, are not
            8-bit, or differ from the shape that meta_info.txt lists; and a data.mdb that is none, or crashed a worker.

    Raises:
        InputError: a path is missing or empty, or its meta_info.txt is missing or not BasicSR's.
    """
    listed = [read_meta_info(path) if is_lmdb(path) else list_images(path) for path in paths]
    tasks = []  # in a worker process, too: keys lie beyond the end of a truncated file as well
    for number, (path, entries) in enumerate(zip(paths, listed)):
        if is_lmdb(path):
            tasks.append((number, functools.partial(_check_keys, path, set(entries))))
        items = list(entries.items())
        tasks += [(number, functools.partial(_check_records, path, items[start:start + CHUNK]))
                  for start in range(0, len(items), CHUNK)]
    found = [Checked({}, []) for _ in paths]
    for number, name, shape, problem in track(_run(tasks, workers), sum(map(len, listed)), 'checking'):
        if problem:
            found[number].problems.append(f'{name}: {problem}' if name else problem)
        elif name:
            found[number].shapes[name] = shape
    return found


def _run(tasks, workers):
    """`(number, name, shape, problem)` of each record, in order."""
    with in_order(_call, [task for _, task in tasks], workers) as results:
        for number, _ in tasks:
            try:
                yield from ((number, *record) for record in next(results))
            except InputError as err:  # a worker died; there is no saying at which of the records that were under way
                yield number, '', None, f'truncated or damaged: {err}'
                return


def _call(task):
    return task()


def _check_keys(path, listed):
    try:
        with open_lmdb(path) as env, env.begin() as txn:
            keys = {key.decode(errors='replace') for key in txn.cursor().iternext(values=False)}
        return [(key, None, 'in data.mdb, but not listed in meta_info.txt') for key in sorted(keys - listed)]
    except lmdb.Error as err:
        return [('', None, f'data.mdb: {err}')]


def _check_records(path, records):
    try:
        with open_lmdb(path) if is_lmdb(path) else contextlib.nullcontext() as env:
            return [(name, *_check_record(env, name, entry)) for name, entry in records]
    except lmdb.Error:  # it cannot be opened: _check_keys has told so
        return []


def _check_record(env, name, entry):
    try:
        if env is None:
            return shape_of(read_image(entry, keep_grey=True)[0]), ''
        with env.begin() as txn:
            data = txn.get(name.encode())
        if data is None:
            return None, 'listed in meta_info.txt, but not in data.mdb'
        img = decode(data)
    except (ValueError, lmdb.Error) as err:  # InputError is a ValueError
        return None, str(err)
    if img.dtype != np.uint8:
        return None, f'has {8 * img.itemsize} bits a channel, not 8'
    if shape_of(img) != entry:
        return None, f'is {shape_of(img)}, but {entry} in meta_info.txt'
    return shape_of(img), ''


def check_pair(hr, lr, scale=None):
    """Whether each HR image has its LR image, `scale` times smaller.

    Args:
        hr (dict[str, tuple]): Name to `(H, W, C)`, as `check_images` gives it.
        lr (dict[str, tuple]): As well; DIV2K's names, `0001x4`, are understood.
        scale (int | None): None takes the scale that most pairs have.

    Returns:
        tuple[int, list[str]]: The scale, 0 where there is no pair, and the problems, a line each.
    """
    pairs, only_hr, only_lr = pair_names(hr, lr)
    problems = [f'{name}: only in HR' for name in only_hr] + [f'{name}: only in LR' for name in only_lr]
    if scale is None:
        ratios = collections.Counter(hr[name][0] // lr[pairs[name]][0] for name in pairs)
        scale = ratios.most_common(1)[0][0] if ratios else 0
    for name in pairs:
        (height, width, _), (lr_height, lr_width, _) = hr[name], lr[pairs[name]]
        if (height, width) != (scale * lr_height, scale * lr_width):
            problems.append(f'{name}: HR is {width} x {height} and LR {lr_width} x {lr_height}, not a scale of {scale}')
    return scale, problems
