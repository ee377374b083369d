"""Prepares training sets (sub-images in LMDBs) and benchmarks from folders of HR images, in the layout that options/
name. Each set appears under its final name when it is complete and checked, or not at all."""
import contextlib
import functools
import glob
import math
from pathlib import Path
from typing import NamedTuple

from udl_plugin.data.image_io import list_images, pair_names, read_image
from udl_plugin.data.lmdb_io import LmdbVerifier, encode, is_lmdb, lmdb_key, open_writer, shape_of
from udl_plugin.errors import UserError
from udl_plugin.prepare.verify import check_images, check_pair, no_progress
from udl_plugin.utils.atomic_io import atomic_folders
from udl_plugin.utils.imresize import BORDERS, imresize
from udl_plugin.utils.parallel import parallel_map


class Source(NamedTuple):
    """An image to prepare: its name, its HR file, and its LR file for each scale where those are given."""
    name: str
    hr: Path
    lr: tuple = ()


class SourceResult(NamedTuple):
    """What became of a Source: records `(folder, name, png, shape)`, the files whose alpha was dropped, whether it was
    smaller than a crop, and, where it cannot be used, why."""
    records: list
    alpha: list
    small: bool = False
    problem: str = ''


class PrepareResult(NamedTuple):
    """What was prepared.

    Attributes:
        folders (dict[Path, int]): Each LMDB or folder that was written, and how many images it holds.
        images (int): How many HR images went into them.
        alpha (list[Path]): Files that had an alpha channel, which was dropped.
        small (list[Path]): HR files smaller than the crop in one direction at least, in which they stayed whole.
        skipped (list[str]): What was wrong with each image that was left out.
    """
    folders: dict
    images: int
    alpha: list
    small: list
    skipped: list


def prepare_train(hr, scales, out, lr=None, name=None, crop=480, step=240, compress=True, **options):
    """Cuts HR and LR images into sub-images and writes them as LMDBs that upstream's PairedImageDataset pairs up.

    Writes `NAME_train_HR_sub.lmdb`, and `NAME_train_LR_bicubic_X4_sub.lmdb` for scale 4, into `out`. HR is cut to a
    multiple of all scales; LR is made from the whole of it, then cut at the same places. For another scale later, HR
    that is there already is compared, and stays.

    Args:
        hr (str | Path | Iterable[str | Path]): Folders of HR images, or one.
        scales (Iterable[int]): Such as `[2, 3, 4]`.
        out (str | Path): Folder; made where needed.
        lr (str | Path | Iterable[str | Path] | None): Folders of LR images, for each HR folder one a scale, in the
            order of `scales`; names as in HR, or with `x4` behind them. None makes them as MATLAB's imresize does.
        name (str | None): NAME; None takes that of `out`.
        crop (int): Sides of the sub-images, in HR pixels. Smaller images stay whole.
        step (int): Their distance, in HR pixels. The last ones of a row or column end at the border, so that no pixel
            is left out, and may be nearer.
        compress (bool): As PNG files; otherwise BMP, which takes more room and less time in training.
        options: Those of `prepare_benchmark`: `keep_grey`, `border`, `skip_bad`, `force`, `workers`, `progress`.

    Returns:
        Prepared

    Raises:
        UserError: as `prepare_benchmark`; images without partner; a crop or step that is not a multiple of the scales;
            HR that is there and differs; LR of another scale that would no longer fit.
    """
    hr, scales, out = _as_list(hr), _check_scales(scales), Path(out)
    for what, length in (('crop', crop), ('step', step)):
        if length < 1 or length % math.lcm(*scales):
            raise UserError(f'{what} {length} must be a multiple of every scale, so of {math.lcm(*scales)}.')
    name = _check_name(out.resolve().name if name is None else name)
    targets = [f'{name}_train_HR_sub.lmdb', *(f'{name}_train_LR_bicubic_X{scale}_sub.lmdb' for scale in scales)]
    keeps_hr = (out / targets[0]).exists() and not options.get('force')
    there = out.glob(f'{glob.escape(name)}_train_LR_bicubic_X*_sub.lmdb')
    others = sorted(path for path in there if path.name not in targets)
    if others and not keeps_hr:
        raise UserError(f'{_named(others)}: would not belong to the new HR images. Name all of the scales, or remove '
                         'what you do not need.')
    make = functools.partial(_cut, targets, scales, crop, step)
    pairs = [(targets[0], target, scale) for target, scale in zip(targets[1:], scales)]
    return _prepare(make, _find_sources(hr, scales, _as_list(lr)), out, pairs, kept=targets[:keeps_hr],
                    compress=compress, **options)


def prepare_benchmark(hr, scales, out, name, as_lmdb=False, **options):
    """Writes a benchmark: for scale 4, `NAME/GTmod4`, HR cut to a multiple of 4, and `NAME/LRbicx4`, below `out`.

    Args:
        hr (str | Path): Folder of HR images.
        scales (Iterable[int]): Such as `[2, 3, 4]`.
        out (str | Path): Folder; made where needed.
        name (str): NAME, such as `Set5`.
        as_lmdb (bool): Writes `GTmod4.lmdb` and `LRbicx4.lmdb` instead of folders of PNG files.
        keep_grey (bool): Whether grey images stay one channel. Otherwise they become three equal ones.
        border (str): See `imresize`.
        skip_bad (bool): Whether an image that cannot be used is left out, in HR and LR, instead of ending it all.
        force (bool): Whether what exists is replaced.
        workers (int): Processes; with 0, this one does the work.
        progress (Callable): `progress(iterable, total, what)` gives the items of `iterable`, and may show how many went by.

    Returns:
        Prepared

    Raises:
        UserError: a missing or empty folder; an image that cannot be used; a target that exists; a full disk.
        OSError: a full disk as well, or no right to write.
    """
    scales, name = _check_scales(scales), _check_name(name)
    suffix = '.lmdb' if as_lmdb else ''
    pairs = [(f'GTmod{scale}{suffix}', f'LRbicx{scale}{suffix}', scale) for scale in scales]
    return _prepare(functools.partial(_shrink, pairs), _find_sources([hr], scales), Path(out, name), pairs, **options)


def _check_scales(scales):
    scales = list(scales)
    if not scales or len(set(scales)) < len(scales) or any(scale < 2 for scale in scales):
        raise UserError(f'scales {" ".join(map(str, scales))}: name each once; 2 is the least.')
    return scales


def _check_name(name):
    if name in ('', '.', '..') or name != Path(name).name:
        raise UserError(f"name '{name}' must be that of a set, such as Set5.")
    return name


def _as_list(folders):
    return [folders] if isinstance(folders, (str, Path)) else list(folders or [])


def _find_sources(hr, scales, lr=()):
    """The images of all HR folders, each with its LR files; in the order of the folders, then of the names."""
    if lr and len(lr) != len(hr) * len(scales):
        raise UserError(f'lr: {len(lr)} given, but {len(hr) * len(scales)} needed: for each HR folder one folder a '
                         'scale, in the order of the scales.')
    sources = {}
    for number, hr_folder in enumerate(hr):
        hr_images = list_images(hr_folder)
        lr_of = dict.fromkeys(hr_images, ())
        for lr_folder in lr[number * len(scales):(number + 1) * len(scales)]:
            lr_images = list_images(lr_folder)
            pairs, only_hr, only_lr = pair_names(hr_images, lr_images)
            if only_hr or only_lr:
                unpaired = [hr_images[name] for name in only_hr] + [lr_images[name] for name in only_lr]
                raise UserError(f"'{hr_folder}' and '{lr_folder}' do not pair up (0001.png and 0001.png or 0001x4.png "
                                 f'would). Without partner: {_named(unpaired)}')
            lr_of = {name: (*lr_of[name], lr_images[pairs[name]]) for name in hr_images}
        for name, path in hr_images.items():
            if name in sources:
                raise UserError(f"'{sources[name].hr}' and '{path}' have the same name; rename one of them, and its "
                                 'LR images with it.')
            sources[name] = Source(name, path, lr_of[name])
    return list(sources.values())


def _named(paths, most=10):
    more = f' and {len(paths) - most} more' if len(paths) > most else ''
    return ', '.join(map(str, paths[:most])) + more


def _prepare(make, sources, parent, pairs, *, kept=(), compress=True, keep_grey=False, border='clamp', skip_bad=False,
             force=False, workers=0, progress=no_progress):
    """Makes all sources, checks what was written, and moves it to its place.

    Args:
        make (Callable): `make(source, read, shrink)` to Made.
        sources (list[Source]): What to make.
        parent (Path): Where the folders go.
        pairs (list[tuple]): Name of the HR folder, of the LR folder, and the scale.
        kept (Sequence[str]): Those of the folders that are there already, and are compared instead of written.
    """
    if border not in BORDERS:
        raise UserError(f'border {border} must be one of {", ".join(BORDERS)}.')
    make = functools.partial(_make, make, keep_grey, border, compress)
    targets = list(dict.fromkeys(name for pair in pairs for name in pair[:2]))
    read = {path.parent.resolve() for source in sources for path in (source.hr, *source.lr)}
    for target in targets:
        if any((parent / target).resolve() in (folder, *folder.parents) for folder in read):
            raise UserError(f"'{parent / target}' is to be written and to be read; choose another place.")
    if is_lmdb(targets[0]):
        for source in sources:
            lmdb_key(f'{source.name}_s000')  # now, not when half is done
    alpha, small, skipped = [], [], []
    written = [target for target in targets if target not in kept]
    with atomic_folders(parent, written, force) as unfinished:
        with contextlib.ExitStack() as stack:
            writers = {target: stack.enter_context(LmdbVerifier(parent / target) if target in kept else
                                                   open_writer(unfinished / target)) for target in targets}
            results = stack.enter_context(parallel_map(make, sources, workers))
            for made, source in zip(progress(results, len(sources), 'preparing'), sources):
                if made.problem and not skip_bad:
                    raise UserError(f'{made.problem} (--skip-bad, in Python skip_bad=True, leaves such images out.)')
                for target, *record in made.records:
                    writers[target].put(*record)
                alpha += made.alpha
                small += [source.hr] * made.small
                skipped += [made.problem] * bool(made.problem)
        if len(skipped) == len(sources):
            raise UserError(f'no image is left, {len(skipped)} were bad. The first: {skipped[0]}')
        counts = _verify(unfinished, written, pairs, workers, progress)
    return PrepareResult({parent / target: count for target, count in counts.items()}, len(sources) - len(skipped), alpha,
                    small, skipped)


def _verify(unfinished, targets, pairs, workers, progress):
    """Checks the written folders as `udl-prepare check` does; returns how many images each holds."""
    checked = {target: check_images(unfinished / target, workers, progress) for target in targets}
    problems = [f'{target}: {problem}' for target in targets for problem in checked[target].problems]
    for hr, lr, scale in pairs:
        if hr in checked:
            problems += check_pair(checked[hr].shapes, checked[lr].shapes, scale, same_names=True)[1]
    if problems:
        raise UserError(f'what was written does not read back: {_named(problems)}. Disk or memory may be damaged; '
                         'nothing was kept.')
    return {target: len(checked[target].shapes) for target in targets}


def _make(make, keep_grey, border, compress, source):
    """Runs in a worker process."""
    alpha = []

    def read(path):
        img, has_alpha = read_image(path, keep_grey)
        alpha.extend([path] * has_alpha)
        return img

    def shrink(img, scale):
        return imresize(img, 1 / scale, border)

    try:
        records, small = make(source, read, shrink)
    except UserError as err:
        return SourceResult([], alpha, problem=str(err))
    return SourceResult([(target, name, encode(img, compress), shape_of(img)) for target, name, img in records], alpha,
                small)


def _cut(targets, scales, crop, step, source, read, shrink):
    """Sub-images of a source for each target: HR first, then LR of each scale."""
    multiple = math.lcm(*scales)
    whole = read(source.hr)
    hr = _cut_to_multiple(whole, multiple, source.hr)
    height, width = hr.shape[:2]
    images = [(targets[0], 1, hr)]
    for number, (target, scale) in enumerate(zip(targets[1:], scales)):
        if source.lr:
            lr = read(source.lr[number])
            _check_lr_size(whole, lr, scale, source.hr, source.lr[number])
        else:
            lr = shrink(hr, scale)
        images.append((target, scale, lr))
    places = [(top, left) for top in positions(height, crop, step) for left in positions(width, crop, step)]
    records = [(target, f'{source.name}_s{number:03d}',
                img[top // scale:min(top + crop, height) // scale, left // scale:min(left + crop, width) // scale])
               for target, scale, img in images for number, (top, left) in enumerate(places, 1)]
    return records, min(height, width) < crop


def _shrink(pairs, source, read, shrink):
    """HR and LR images of a source for each pair of folders."""
    whole, records = read(source.hr), []
    for gt_target, lq_target, scale in pairs:
        gt = _cut_to_multiple(whole, scale, source.hr)
        records += [(gt_target, source.name, gt), (lq_target, source.name, shrink(gt, scale))]
    return records, False


def positions(length, crop, step):
    """Where the crops of a line begin: at every `step` as long as they fit, and one that ends where the line does."""
    last = max(length - crop, 0)
    return [*range(0, last, step), last]


def _cut_to_multiple(img, multiple, path):
    height, width = (length // multiple * multiple for length in img.shape[:2])
    if not height or not width:
        raise UserError(f"'{path}' is {img.shape[1]} x {img.shape[0]} pixels, less than the scale, {multiple}.")
    return img[:height, :width]


def _check_lr_size(hr, lr, scale, hr_path, lr_path):
    """Accepts sizes of HR cut to a multiple of the scale, or rounded up as MATLAB does: the pixels lie the same."""
    if any(length not in (whole // scale, -(-whole // scale)) for whole, length in zip(hr.shape[:2], lr.shape[:2])):
        raise UserError(f"'{lr_path}' is {lr.shape[1]} x {lr.shape[0]} pixels, but '{hr_path}', "
                         f'{hr.shape[1]} x {hr.shape[0]}, at a scale of {scale} needs '
                         f'{hr.shape[1] // scale} x {hr.shape[0] // scale}. Give one folder of LR for each scale, in '
                         'the order of the scales.')
