"""Prepares training sets (sub-images in LMDBs) and benchmarks from folders of HR images, for the paths in options/.

Each set appears under its final name when it is complete and verified, or not at all.
"""
from __future__ import annotations

import contextlib
import fnmatch
import functools
import glob
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np

from udl_plugin.data.image_io import list_images, pair_names, read_image
from udl_plugin.data.lmdb_io import encode, open_writer, shape_of
from udl_plugin.errors import UserError
from udl_plugin.prepare.verify import Progress, check_images, check_pair, no_progress
from udl_plugin.utils.atomic_io import atomic_folders
from udl_plugin.utils.imresize import BORDERS, imresize
from udl_plugin.utils.parallel import parallel_map

Folders = Union[str, Path, Iterable[Union[str, Path]]]


class Source(NamedTuple):
    """An image to prepare.

    Attributes:
        name: Its name.
        hr: HR file.
        lr: LR file for each scale, if LR is given.
    """
    name: str
    hr: Path
    lr: tuple[Path, ...] = ()


class SourceResult(NamedTuple):
    """What was made of a Source.

    Attributes:
        records: `(folder, name, file content, shape)` of each image to write.
        alpha: Files whose alpha channel was dropped.
        small: Whether the image is smaller than a crop.
        problem: Why the image cannot be used; empty if it can.
    """
    records: list[tuple[str, str, bytes, tuple[int, int, int]]]
    alpha: list[Path]
    small: bool = False
    problem: str = ''


class PrepareResult(NamedTuple):
    """What was prepared.

    Attributes:
        folders: Each LMDB or folder that was written, to its number of images.
        images: Number of HR images they were made from.
        alpha: Files that had an alpha channel, which was dropped.
        small: HR files smaller than the crop in at least one direction, in which they were not cropped.
        skipped: Why each skipped image could not be used.
        left_out: Images in the HR folders that are not ground truth, by `hr_pattern` or by their names.
    """
    folders: dict[Path, int]
    images: int
    alpha: list[Path]
    small: list[Path]
    skipped: list[str]
    left_out: Sequence[Path] = ()


def prepare_train(hr: Folders, scales: Iterable[int], out: str | Path, lr: Folders | None = None,
                  name: str | None = None, crop: int = 480, step: int = 240, compress: bool = True,
                  hr_pattern: str | None = None, **options: Any) -> PrepareResult:
    """Crops HR and LR images to sub-images and writes them as LMDBs for BasicSR's PairedImageDataset.

    Writes `NAME_train_HR_sub.lmdb`, and for scale 4 `NAME_train_LR_bicubic_X4_sub.lmdb`, into `out`. HR is cropped to a
    multiple of all scales; LR is made from all of it, then cropped at the same positions.

    Args:
        hr: One or several folders of HR images.
        scales: Such as `[2, 3, 4]`.
        out: Folder; made if missing.
        lr: Folders of LR images: for each HR folder one per scale, in the order of `scales`. Names are as in HR, or
            with a suffix such as `x4`. None makes LR like MATLAB's imresize.
        name: NAME; None takes the name of `out`.
        crop: Side of the sub-images in HR pixels. Smaller images are not cropped.
        step: Distance of the sub-images in HR pixels. The last one of a row or column ends at the border and may be
            nearer, so that all pixels are used.
        compress: Whether the records are PNG files. Otherwise they are BMP: larger, and faster to read in training.
        hr_pattern, options: As for `prepare_benchmark`.

    Raises:
        UserError: as in `prepare_benchmark`; or images do not pair up, crop or step is not a multiple of the scales,
            or there are LR LMDBs of other scales, which would not fit the new HR images.
    """
    hr, scales, out = _as_list(hr), _check_scales(scales), Path(out)
    for what, length in (('crop', crop), ('step', step)):
        if length < 1 or length % math.lcm(*scales):
            raise UserError(f'{what} {length} must be a multiple of all scales, so of {math.lcm(*scales)}.')
    name = _check_name(out.resolve().name if name is None else name)
    targets = [f'{name}_train_HR_sub.lmdb', *(f'{name}_train_LR_bicubic_X{scale}_sub.lmdb' for scale in scales)]
    existing = out.glob(f'{glob.escape(name)}_train_LR_bicubic_X*_sub.lmdb')
    others = sorted(path for path in existing if path.name not in targets)
    if others:
        raise UserError(f'{_list_some(others)}: would not match the new HR images. Name all scales and pass --force '
                        '(in Python: force=True), or remove the LMDBs that you do not need.')
    make = functools.partial(_make_sub_images, targets, scales, crop, step)
    pairs = [(targets[0], target, scale) for target, scale in zip(targets[1:], scales)]
    sources, left_out = _find_sources(hr, scales, hr_pattern, _as_list(lr))
    return _prepare(make, sources, out, pairs, compress=compress, **options)._replace(left_out=left_out)


def prepare_benchmark(hr: str | Path, scales: Iterable[int], out: str | Path, name: str, as_lmdb: bool = False,
                      hr_pattern: str | None = None, **options: Any) -> PrepareResult:
    """Writes a benchmark: for scale 4, `out`/NAME/GTmod4, HR cropped to a multiple of 4, and `out`/NAME/LRbicx4.

    Args:
        hr: Folder of HR images.
        scales: Such as `[2, 3, 4]`.
        out: Folder; made if missing.
        name: NAME, such as `Set5`.
        as_lmdb: Whether to write `GTmod4.lmdb` and `LRbicx4.lmdb` instead of folders of PNG files.
        hr_pattern: Takes only files whose name matches, such as `*_HR.png`. None takes all; or, in a folder such as
            those of SelfExSR, with `img_001_SRF_4_HR.png` beside `img_001_SRF_4_LR.png`, the first ones, as `img_001`.
        options:
            keep_grey (bool): Whether grey images keep their single channel. Otherwise they get three equal ones.
            border (str): As in `imresize`.
            skip_bad (bool): Whether to skip images that cannot be used, in HR and LR. Otherwise the first one raises.
            force (bool): Whether to replace what exists.
            workers (int): Number of processes; 0 uses this one.
            progress (Callable): `progress(items, total, description)` returns the items, and may show a bar.

    Raises:
        UserError: a folder is missing or empty, an image cannot be used, a target exists, or the disk is full.
        OSError: the disk is full, or write permission is missing.
    """
    scales, name = _check_scales(scales), _check_name(name)
    suffix = '.lmdb' if as_lmdb else ''
    pairs = [(f'GTmod{scale}{suffix}', f'LRbicx{scale}{suffix}', scale) for scale in scales]
    sources, left_out = _find_sources([hr], scales, hr_pattern)
    return _prepare(functools.partial(_make_pairs, pairs), sources, Path(out, name), pairs,
                    **options)._replace(left_out=left_out)


def _check_scales(scales: Iterable[int]) -> list[int]:
    scales = list(scales)
    if not scales or len(set(scales)) < len(scales) or any(scale < 2 for scale in scales):
        raise UserError(f'scales {" ".join(map(str, scales))}: must be different numbers of at least 2.')
    return scales


def _check_name(name: str) -> str:
    if name in ('', '.', '..') or name != Path(name).name:
        raise UserError(f"name '{name}' must be a name such as Set5, not a path.")
    return name


def _as_list(folders: Folders | None) -> list[str | Path]:
    return [folders] if isinstance(folders, (str, Path)) else list(folders or [])


def _find_sources(hr: list[str | Path], scales: list[int], hr_pattern: str | None,
                  lr: Sequence[str | Path] = ()) -> tuple[list[Source], list[Path]]:
    """The images of all HR folders with their LR files, in the order of the folders, then of the names.

    And the images in HR folders that are not among them.
    """
    if lr and len(lr) != len(hr) * len(scales):
        raise UserError(f'lr: {len(lr)} folders given, but {len(hr) * len(scales)} needed: for each HR folder one per '
                        'scale, in the order of the scales.')
    sources: dict[str, Source] = {}
    left_out: list[Path] = []
    for number, hr_folder in enumerate(hr):
        all_images = list_images(hr_folder)
        hr_images = _select_hr(all_images, hr_pattern, hr_folder)
        left_out += sorted(set(all_images.values()) - set(hr_images.values()))
        lr_files: dict[str, tuple[Path, ...]] = dict.fromkeys(hr_images, ())
        for lr_folder in lr[number * len(scales):(number + 1) * len(scales)]:
            lr_images = list_images(lr_folder)
            pairs, only_hr, only_lr = pair_names(hr_images, lr_images)
            if only_hr or only_lr:
                unpaired = [hr_images[name] for name in only_hr] + [lr_images[name] for name in only_lr]
                raise UserError(f"'{hr_folder}' and '{lr_folder}' do not pair up (0001.png pairs with 0001.png or "
                                f'0001x4.png). Without partner: {_list_some(unpaired)}')
            lr_files = {name: (*lr_files[name], lr_images[pairs[name]]) for name in hr_images}
        for name, path in hr_images.items():
            if name in sources:
                raise UserError(f"'{sources[name].hr}' and '{path}' have the same name; rename one of them and its LR "
                                'images.')
            sources[name] = Source(name, path, lr_files[name])
    return list(sources.values()), left_out


def _select_hr(images: dict[str, Path], pattern: str | None, folder: str | Path) -> dict[str, Path]:
    """The ground truth among the images of a folder; see `hr_pattern` of `prepare_benchmark`."""
    if pattern is None:
        if not any(name.endswith('_HR') and f'{name[:-3]}_LR' in images for name in images):
            return images
        pattern = '*_HR.*'
    selected: dict[str, Path] = {}
    for name, path in images.items():
        if fnmatch.fnmatch(path.name, pattern):
            name = re.sub(r'(_SRF_\d+)?_HR$', '', name)
            if name in selected:
                raise UserError(f"'{selected[name]}' and '{path}' would both be '{name}'; choose one with "
                                "--hr-pattern, such as '*_SRF_4_HR.png'.")
            selected[name] = path
    if not selected:
        raise UserError(f"'{folder}' has no image whose name matches --hr-pattern '{pattern}'.")
    return selected


def _list_some(items: list, limit: int = 10) -> str:
    more = f' and {len(items) - limit} more' if len(items) > limit else ''
    return ', '.join(map(str, items[:limit])) + more


def _prepare(make: Callable, sources: list[Source], parent: Path, pairs: list[tuple[str, str, int]], *,
             compress: bool = True, keep_grey: bool = False, border: str = 'clamp', skip_bad: bool = False,
             force: bool = False, workers: int = 0, progress: Progress = no_progress) -> PrepareResult:
    """Makes and writes the images of all sources, verifies the folders and moves them to their final names.

    Args:
        make: `make(source, read, downsample)` returns the images to write, `(folder, name, image)`, and whether the
            source is smaller than a crop.
        parent: Where the folders go.
        pairs: Name of the HR folder, name of the LR folder, and scale.
    """
    if border not in BORDERS:
        raise UserError(f'border {border} must be one of {", ".join(BORDERS)}.')
    targets = list(dict.fromkeys(name for pair in pairs for name in pair[:2]))
    inputs = {path.parent.resolve() for source in sources for path in (source.hr, *source.lr)}
    for target in targets:
        if any((parent / target).resolve() in (folder, *folder.parents) for folder in inputs):
            raise UserError(f"'{parent / target}' would be written, but holds input images; choose another folder.")
    alpha: list[Path] = []
    small: list[Path] = []
    skipped: list[str] = []
    with atomic_folders(parent, targets, force) as unfinished:
        with contextlib.ExitStack() as stack:
            writers: dict[str, Any] = {
                target: stack.enter_context(open_writer(unfinished / target)) for target in targets}
            results = stack.enter_context(parallel_map(
                functools.partial(_make_records, make, keep_grey, border, compress), sources, workers))
            for result, source in zip(progress(results, len(sources), 'preparing'), sources):
                if result.problem and not skip_bad:
                    raise UserError(f'{result.problem} (--skip-bad, in Python skip_bad=True, skips such images.)')
                for target, *record in result.records:
                    writers[target].put(*record)
                alpha += result.alpha
                small += [source.hr] * result.small
                skipped += [result.problem] * bool(result.problem)
        if len(skipped) == len(sources):
            raise UserError(f'no image is left: all {len(skipped)} cannot be used. The first: {skipped[0]}')
        counts = _verify(unfinished, targets, pairs, workers, progress)
    return PrepareResult({parent / target: count for target, count in counts.items()}, len(sources) - len(skipped),
                         alpha, small, skipped)


def _verify(unfinished: Path, targets: list[str], pairs: list[tuple[str, str, int]], workers: int,
            progress: Progress) -> dict[str, int]:
    """Checks the written folders like `udl-prepare check`. Returns the number of images in each."""
    checked = {target: check_images(unfinished / target, workers, progress) for target in targets}
    problems = [f'{target}: {problem}' for target in targets for problem in checked[target].problems]
    for hr, lr, scale in pairs:
        problems += check_pair(checked[hr].shapes, checked[lr].shapes, scale, same_names=True)[1]
    if problems:
        raise UserError(f'the written data does not read back: {_list_some(problems)}. Disk or memory may be faulty; '
                        'nothing was kept.')
    return {target: len(checked[target].shapes) for target in targets}


def _make_records(make: Callable, keep_grey: bool, border: str, compress: bool, source: Source) -> SourceResult:
    """Runs in a worker process."""
    alpha: list[Path] = []

    def read(path: Path) -> np.ndarray:
        img, has_alpha = read_image(path, keep_grey)
        alpha.extend([path] * has_alpha)
        return img

    def downsample(img: np.ndarray, scale: int) -> np.ndarray:
        return imresize(img, 1 / scale, border)

    try:
        images, small = make(source, read, downsample)
    except UserError as err:
        return SourceResult([], alpha, problem=str(err))
    return SourceResult([(target, name, encode(img, compress), shape_of(img)) for target, name, img in images], alpha,
                        small)


def _make_sub_images(targets: list[str], scales: list[int], crop: int, step: int, source: Source, read: Callable,
                     downsample: Callable) -> tuple[list, bool]:
    """Sub-images of a source for a training set: first HR, then LR of each scale. `make` of `_prepare`."""
    uncropped = read(source.hr)
    hr = _crop_to_multiple(uncropped, math.lcm(*scales), source.hr)
    height, width = hr.shape[:2]
    images = [(targets[0], 1, hr)]
    for number, (target, scale) in enumerate(zip(targets[1:], scales)):
        if source.lr:
            lr = read(source.lr[number])
            _check_lr_size(uncropped, lr, scale, source.hr, source.lr[number])
        else:
            lr = downsample(hr, scale)
        images.append((target, scale, lr))
    corners = [(top, left) for top in crop_positions(height, crop, step) for left in crop_positions(width, crop, step)]
    records = [(target, f'{source.name}_s{number:03d}',
                img[top // scale:min(top + crop, height) // scale, left // scale:min(left + crop, width) // scale])
               for target, scale, img in images for number, (top, left) in enumerate(corners, 1)]
    return records, min(height, width) < crop


def _make_pairs(pairs: list[tuple[str, str, int]], source: Source, read: Callable,
                downsample: Callable) -> tuple[list, bool]:
    """HR and LR images of a source for a benchmark. `make` of `_prepare`."""
    uncropped, records = read(source.hr), []
    for gt_target, lq_target, scale in pairs:
        gt = _crop_to_multiple(uncropped, scale, source.hr)
        records += [(gt_target, source.name, gt), (lq_target, source.name, downsample(gt, scale))]
    return records, False


def crop_positions(length: int, crop: int, step: int) -> list[int]:
    """Start of each crop along one direction: every `step` while crops fit, and one that ends at the border."""
    last = max(length - crop, 0)
    return [*range(0, last, step), last]


def _crop_to_multiple(img: np.ndarray, multiple: int, path: Path) -> np.ndarray:
    height, width = (length // multiple * multiple for length in img.shape[:2])
    if not height or not width:
        raise UserError(f"'{path}' is {img.shape[1]} x {img.shape[0]} pixels, less than the scale, {multiple}.")
    return img[:height, :width]


def _check_lr_size(hr: np.ndarray, lr: np.ndarray, scale: int, hr_path: Path, lr_path: Path) -> None:
    """Accepts the size of HR cropped to a multiple of the scale, and MATLAB's, rounded up: the pixels are aligned."""
    if any(length not in (hr_length // scale, -(-hr_length // scale))
           for hr_length, length in zip(hr.shape[:2], lr.shape[:2])):
        raise UserError(f"'{lr_path}' is {lr.shape[1]} x {lr.shape[0]} pixels, but '{hr_path}', "
                        f'{hr.shape[1]} x {hr.shape[0]}, requires {hr.shape[1] // scale} x {hr.shape[0] // scale} at a '
                        f'scale of {scale}. Give one LR folder per scale, in the order of the scales.')
