"""Verifies an LMDB or a folder of images record by record, and whether two of them pair up."""
from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import lmdb
import numpy as np
from PIL import Image

from udl_plugin.data.image_io import decode, list_images, pair_names, read_image
from udl_plugin.data.lmdb_io import is_lmdb, open_lmdb, read_meta_info, shape_of
from udl_plugin.errors import UserError
from udl_plugin.utils.imresize import imresize
from udl_plugin.utils.parallel import parallel_map

Shape = tuple[int, ...]  # (H, W, C)
Progress = Callable[[Iterable, int, str], Iterable]  # progress(items, total, description) -> items, shown as a bar

CHUNK = 16  # records per task of a worker
MAX_COMPARED = 100  # pairs whose content is compared, evenly spaced
MAX_SIDE = 512  # of the part in the middle of HR that is compared, in HR pixels
BORDER = 4  # LR pixels that are not compared, where resizers differ in how they continue the image
ALIKE = 0.7  # correlation of images that show the same; of two photos it is near 0
MATLAB = "MATLAB's bicubic"


def _resize_with_opencv(interpolation: int) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda img, scale: cv2.resize(img, (img.shape[1] // scale, img.shape[0] // scale),
                                         interpolation=interpolation)


def _resize_with_pillow(resampling: Image.Resampling) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda img, scale: np.asarray(Image.fromarray(img).resize((img.shape[1] // scale, img.shape[0] // scale),
                                                                     resampling))


RESIZERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    MATLAB: lambda img, scale: imresize(img, 1 / scale),
    "Pillow's bicubic": _resize_with_pillow(Image.Resampling.BICUBIC),
    "Pillow's Lanczos": _resize_with_pillow(Image.Resampling.LANCZOS),
    "Pillow's bilinear": _resize_with_pillow(Image.Resampling.BILINEAR),
    "OpenCV's cubic": _resize_with_opencv(cv2.INTER_CUBIC),
    "OpenCV's linear": _resize_with_opencv(cv2.INTER_LINEAR),
    "OpenCV's area": _resize_with_opencv(cv2.INTER_AREA),
    "OpenCV's Lanczos": _resize_with_opencv(cv2.INTER_LANCZOS4),
    'nearest neighbour': _resize_with_opencv(cv2.INTER_NEAREST),
}


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


class _Comparison(NamedTuple):
    """Of the middle of an LR image with what resizers make of HR.

    Attributes:
        errors: Resizer to mean squared error.
        shift: Right and down, in LR pixels, from HR to LR; None if there is none.
        lr, expected: Grey LR image, and MATLAB's of HR, float32 `(h, w)`.
    """
    errors: dict[str, float]
    shift: tuple[float, float] | None
    lr: np.ndarray
    expected: np.ndarray


def compare_content(hr: str | Path, lr: str | Path, pairs: Mapping[str, str], scale: int, workers: int = 0,
                    progress: Progress = no_progress) -> tuple[list[str], list[str]]:
    """Compares LR images with what resizers make of HR, in the middle of up to `MAX_COMPARED` pairs.

    Args:
        hr, lr: LMDBs or folders, of images that can be decoded.
        pairs: HR name to LR name, of sizes that fit `scale` when HR is cropped to a multiple of it.
        scale: 2 or more.
        workers, progress: As in `check_images`.

    Returns:
        Lines about the resizer; and the problems, one line each: pairs that are shifted, or show different images.
    """
    names = list(pairs)[::-(-len(pairs) // MAX_COMPARED) or 1]
    entries = [{} if is_lmdb(path) else list_images(path) for path in (hr, lr)]
    items = [(entries[0].get(name, name), entries[1].get(pairs[name], pairs[name])) for name in names]
    tasks = [functools.partial(_compare_pairs, hr, lr, scale, items[start:start + CHUNK])
             for start in range(0, len(items), CHUNK)]
    with parallel_map(_call, tasks, workers) as results:
        found = dict(zip(names, progress(itertools.chain.from_iterable(results), len(items), 'comparing HR and LR')))
    problems, fitting = [], []
    for name, one in found.items():
        if one.shift:
            problems.append(f'{name}: LR is shifted against HR by about {one.shift[0]:+.2f} pixels to the right and '
                            f'{one.shift[1]:+.2f} down, in LR pixels')
        elif not _is_alike(one.lr, one.expected):
            others = [f"'{other}'" for other, two in found.items() if _is_alike(one.lr, two.expected)]
            shown = f', that of {", ".join(others[:3])}' if others else ''
            problems.append(f'{name}: LR shows another image than HR{shown}')
        else:
            fitting.append(one)
    return _describe_resizers(fitting), problems


def _describe_resizers(comparisons: list[_Comparison]) -> list[str]:
    if not comparisons:
        return []
    psnr = {}
    for name in RESIZERS:
        error = np.mean([one.errors[name] for one in comparisons])
        psnr[name] = 10 * math.log10(255 ** 2 / error) if error else math.inf
    best, number = max(psnr, key=psnr.__getitem__), len(comparisons)
    compared = f'in the middle of {number} pair{"s" * (number > 1)}'
    if psnr[best] == math.inf:
        lines = [f'LR equals {best} of HR, {compared}.']
    else:
        lines = [f'LR is nearest to {best} of HR: {psnr[best]:.1f} dB, {compared}.']
    if best != MATLAB:
        lines.append(f"{MATLAB}, which the usual benchmarks are made with, is {psnr[MATLAB]:.1f} dB from LR.")
    return lines


def _compare_pairs(hr: str | Path, lr: str | Path, scale: int, items: list[tuple[Any, Any]]) -> list[_Comparison]:
    """Runs in a worker process."""
    with contextlib.ExitStack() as stack:
        envs = [stack.enter_context(open_lmdb(path)) if is_lmdb(path) else None for path in (hr, lr)]
        return [_compare(_read_colour(envs[0], pair[0]), _read_colour(envs[1], pair[1]), scale) for pair in items]


def _read_colour(env: lmdb.Environment | None, entry: Any) -> np.ndarray:
    """uint8 `(H, W, 3)`, BGR. `entry` is a key, or the path of a file."""
    if env is None:
        return read_image(entry)[0]
    with env.begin() as txn:
        return decode(txn.get(entry.encode()) or b'', cv2.IMREAD_COLOR)


def _compare(hr: np.ndarray, lr: np.ndarray, scale: int) -> _Comparison:
    """Compares the middle of a pair, uint8 `(H, W, 3)`."""
    height, width = (min(length, MAX_SIDE // scale) for length in lr.shape[:2])
    top, left = (lr.shape[0] - height) // 2, (lr.shape[1] - width) // 2
    lr = lr[top:top + height, left:left + width]
    hr = np.ascontiguousarray(hr[scale * top:scale * (top + height), scale * left:scale * (left + width)])
    border = min(BORDER, (min(height, width) - 1) // 4)
    inner = slice(border, height - border), slice(border, width - border)
    resized = {name: resize(hr, scale)[inner] for name, resize in RESIZERS.items()}
    lr = lr[inner]
    errors = {name: _squared_error(img, lr) for name, img in resized.items()}
    grey, *made = (cv2.cvtColor(img, cv2.COLOR_BGR2GRAY).astype(np.float32) for img in (lr, *resized.values()))
    return _Comparison(errors, _find_shift(grey, made), grey, made[0])


def _find_shift(lr: np.ndarray, made: list[np.ndarray]) -> tuple[float, float] | None:
    """By how much LR is `made[0]`, moved to the right and down; None if it is not.

    It has to explain LR better than what another resizer made of HR, for some do move the image by a part of a pixel.
    """
    if min(lr.shape) < 2 * BORDER:
        return None
    window = cv2.createHanningWindow(lr.shape[::-1], cv2.CV_32F)
    (right, down), _ = cv2.phaseCorrelate(made[0].copy(), lr.copy(), window)  # it may write into both
    try:
        start = np.array([[1, 0, -right], [0, 1, -down]], np.float32)
        matrix = cv2.findTransformECC(lr, made[0], start, cv2.MOTION_TRANSLATION)[1]
    except cv2.error:  # does not converge
        return None
    moved, weights = (cv2.warpAffine(img, matrix, lr.shape[::-1], flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
                      for img in (made[0], np.ones_like(lr)))
    seen = weights > 0.99
    right, down = -float(matrix[0, 2]), -float(matrix[1, 2])
    if max(abs(right), abs(down)) < 0.2 or seen.sum() < seen.size / 4:
        return None
    least = min(_squared_error(img[seen], lr[seen]) for img in made)
    explains = _squared_error(moved[seen], lr[seen]) < least / 2 and _correlate(moved[seen], lr[seen]) > ALIKE
    return (right, down) if explains else None


def _squared_error(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean((one.astype(np.float32) - other) ** 2))


def _is_alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two grey images show the same, perhaps with blur or noise."""
    return one.shape == other.shape and any(
        _correlate(*(cv2.blur(img, (size, size)) for img in (one, other))) > ALIKE for size in (1, 5))


def _correlate(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation coefficient; 1 if one of them is nearly flat, which tells nothing."""
    one, other = (img - img.mean(dtype=np.float64) for img in (one, other))
    scale = math.sqrt(float((one ** 2).mean() * (other ** 2).mean()))
    return float((one * other).mean()) / scale if scale > 1 else 1.0
