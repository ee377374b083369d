"""Checks the images of paired data sets before training, in place of a traceback of a worker in the first iteration."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import path as osp
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import UnidentifiedImageError

from udl_plugin.config.problems import KeyPath, OptionError, errors_at
from udl_plugin.data.image_io import NOT_AN_IMAGE, SUFFIXES, check_pixel_limit, decode_complete, image_size
from udl_plugin.data.lmdb_io import is_lmdb, open_lmdb, read_meta_info
from udl_plugin.data.map_format import read_metadata
from udl_plugin.errors import UserErrors, raise_errors

MAX_FILES = 100  # read of a folder, evenly spaced. An LMDB lists the sizes of all images in one file
MAX_DECODED = 1000  # a validation set of no more images is decoded before the training, in some seconds
Size = tuple[int, ...]  # height, width


class Pairs(NamedTuple):
    """What `check_pairs` read.

    Attributes:
        number: Of pairs.
        sizes: Name, GT size and LQ size; of a folder, of `MAX_FILES` pairs at most, in validation `MAX_DECODED` / 2.
        paths: Paths or keys of GT and LQ, of as many.
        deep: An image of more than 8 bits per channel, for a message; empty if none was found.
    """

    number: int
    sizes: list[tuple[str, Size, Size]]
    paths: Sequence[tuple[str, str]] = ()
    deep: str = ''


def check_pairs(dataset_opt: Mapping[str, Any], path: KeyPath) -> Pairs:
    """Checks that GT and LQ exist, are paired, and have sizes that fit the scale and the patch size.

    A validation set of at most `MAX_DECODED` images is decoded, because its images are never skipped.

    Args:
        dataset_opt: Options of a PairedImageDataset, with `scale` and `phase` as `parse_options` adds them.
        path: Their keys in the option file, for messages.

    Raises:
        UserErrors: names the option, the path and the image.
    """
    raise_errors(_check_options(dataset_opt, path))
    pairs = (_read_lmdbs if dataset_opt['io_backend']['type'] == 'lmdb' else _read_folders)(dataset_opt, path)
    for name, gt_size, lq_size in pairs.sizes:
        problem = _check_size(gt_size, lq_size, dataset_opt)
        if problem:
            raise _error(path, f"'{name}': GT is {gt_size[1]} x {gt_size[0]} and LQ {lq_size[1]} x {lq_size[0]} "
                               f"pixels, {problem}. GT is from {dataset_opt['dataroot_gt']}, LQ from "
                               f"{dataset_opt['dataroot_lq']}.")
    return pairs._replace(deep=_check_content(dataset_opt, pairs, path))


def too_few_images(images: int, batch_size: int) -> OptionError:
    """The error of a training set that does not fill one batch, on which BasicSR would silently train nothing.

    Args:
        images: With `dataset_enlarge_ratio`, in one process.
        batch_size: In one process.
    """
    return OptionError(('datasets', 'train'), (
        f'{images} images (dataset_enlarge_ratio counted) do not fill one batch of {batch_size}; write a smaller '
        'batch_size_per_gpu, or a larger dataset_enlarge_ratio.'))


def check_maps(dataset_opt: Mapping[str, Any], pairs: Pairs, path: KeyPath) -> None:
    """Checks that the maps of a PairedImageUncertaintyDataset belong to its images.

    Args:
        dataset_opt: As for `check_pairs`.
        pairs: What that returned.
        path: Keys of the data set, for messages.

    Raises:
        UserErrors: names the option, the path and the image.
    """
    if dataset_opt['phase'] != 'train' or dataset_opt['io_backend']['type'] != 'lmdb':
        raise _error((*path, 'type'), 'PairedImageUncertaintyDataset is for training from LMDBs; write '
                                      'PairedImageDataset.')
    if dataset_opt.get('mean') is not None:
        raise _error((*path, 'mean'), 'maps are made from images without normalization; write PairedImageDataset to '
                                      'use maps of the frozen network itself.')
    path, root, scale = (*path, 'dataroot_uncertainty'), dataset_opt.get('dataroot_uncertainty'), dataset_opt['scale']
    channels = 1 if dataset_opt.get('color') == 'y' else 3
    if root is None:
        raise _error(path, 'is missing; udl-prepare uncertainty writes it.')
    with errors_at(*path):
        shapes, metadata = read_meta_info(root), read_metadata(root)
    if metadata['scale'] != scale:
        raise _error(path, f"the maps in '{root}' are of scale {metadata['scale']}, not of scale: {scale}.")
    advice = f"Have udl-prepare uncertainty write '{root}' again, from these images."
    for name, _, (height, width) in pairs.sizes:
        if name not in shapes or name not in metadata['limits']:
            raise _error(path, f"there is no map of '{name}'. {advice}")
        if shapes[name] != (scale * height, scale * width, channels):
            raise _error(path, f"'{name}': its map is {shapes[name][1]} x {shapes[name][0]} pixels of "
                                f'{shapes[name][2]} channels, not {scale * width} x {scale * height} of {channels}. '
                              f'{advice}')


def _error(path: KeyPath, message: str) -> UserErrors:
    return UserErrors([OptionError(path, message)])


def _check_options(dataset_opt: Mapping[str, Any], path: KeyPath) -> Iterator[OptionError]:
    scale, gt_size = dataset_opt.get('scale'), dataset_opt.get('gt_size')
    if scale and dataset_opt['phase'] == 'train' and type(gt_size) is int and gt_size % scale:
        yield OptionError((*path, 'gt_size'), f'{gt_size}: the size of GT patches must be a multiple of the scale, '
                                              f'{scale}.')
    listed = dataset_opt.get('meta_info_file')
    if listed is not None and not osp.isfile(listed):
        yield OptionError((*path, 'meta_info_file'), f"there is no file '{listed}' (seen from {Path.cwd()}).")
    is_lmdb = dataset_opt['io_backend']['type'] == 'lmdb'
    for side in ('dataroot_gt', 'dataroot_lq'):
        root, key = dataset_opt.get(side), (*path, side)
        if root is None:
            yield OptionError(key, 'is missing.')
        elif not osp.isdir(root):
            yield OptionError(key, f"there is no folder '{root}' (seen from {Path.cwd()}). Have udl-prepare write it, "
                                   'or delete the data set from the option file.')
        elif is_lmdb and not str(root).endswith('.lmdb'):
            yield OptionError(key, f"'{root}' does not end in .lmdb, as io_backend: type: lmdb requires.")
        elif not is_lmdb and str(root).endswith('.lmdb'):
            yield OptionError(key, f"'{root}' is an LMDB; write type: lmdb under io_backend.")


def _check_size(gt_size: Size, lq_size: Size, dataset_opt: Mapping[str, Any]) -> str:
    scale = dataset_opt['scale']
    training = dataset_opt['phase'] == 'train'
    # in validation, BasicSR crops GT to the LQ size times the scale
    expected = tuple(scale * length for length in lq_size) if training else tuple(n // scale for n in gt_size)
    if (gt_size if training else lq_size) != expected:
        return f'which is not a scale of {scale}'
    if training and min(gt_size) < dataset_opt['gt_size']:
        return f"smaller than the patch, gt_size: {dataset_opt['gt_size']}"
    return ''


def _read_lmdbs(dataset_opt: Mapping[str, Any], path: KeyPath) -> Pairs:
    with errors_at(*path, 'dataroot_gt'):
        gt = read_meta_info(dataset_opt['dataroot_gt'])
    with errors_at(*path, 'dataroot_lq'):
        lq = read_meta_info(dataset_opt['dataroot_lq'])
    only_gt, only_lq = sorted(gt.keys() - lq.keys()), sorted(lq.keys() - gt.keys())
    if only_gt or only_lq:
        raise _error(path, f'the keys of dataroot_gt and dataroot_lq differ: {len(only_gt)} only in GT {only_gt[:3]}, '
                           f'{len(only_lq)} only in LQ {only_lq[:3]}.')
    return Pairs(len(gt), [(key, gt[key][:2], lq[key][:2]) for key in gt], [(key, key) for key in gt])


def _read_folders(dataset_opt: Mapping[str, Any], path: KeyPath) -> Pairs:
    from basicsr.data.data_util import paired_paths_from_folder, paired_paths_from_meta_info_file
    roots = [dataset_opt['dataroot_lq'], dataset_opt['dataroot_gt']]
    template = dataset_opt.get('filename_tmpl', '{}')
    try:
        if dataset_opt.get('meta_info_file') is not None:
            pairs = paired_paths_from_meta_info_file(roots, ['lq', 'gt'], dataset_opt['meta_info_file'], template)
        else:
            _check_names(dataset_opt, template, path)
            pairs = paired_paths_from_folder(roots, ['lq', 'gt'], template)
    except UserErrors:
        raise
    except (AssertionError, OSError, ValueError, LookupError, AttributeError) as err:
        raise _error(path, f"{err} LQ is '{roots[0]}', GT is '{roots[1]}', filename_tmpl '{template}'.") from err
    if not pairs:
        raise _error((*path, 'dataroot_gt'), f"'{roots[1]}' contains no image.")
    pairs.sort(key=lambda pair: pair['gt_path'])  # a folder's are in no order
    limit = MAX_DECODED // 2 if dataset_opt['phase'] == 'val' else MAX_FILES
    paths = [(pair['gt_path'], pair['lq_path']) for pair in pairs[::-(-len(pairs) // limit)]]
    return Pairs(len(pairs), [(gt, _read_size(gt, path), _read_size(lq, path)) for gt, lq in paths], paths)


def _check_names(dataset_opt: Mapping[str, Any], template: str, path: KeyPath) -> None:
    """Checks what two folders contain: BasicSR reads each file as an image, and pairs names with the same suffix.

    Raises:
        UserErrors: names the file.
    """
    gt_root, lq_root = Path(dataset_opt['dataroot_gt']), Path(dataset_opt['dataroot_lq'])
    gt, lq = _list_files(gt_root, (*path, 'dataroot_gt')), _list_files(lq_root, (*path, 'dataroot_lq'))
    partners = {name: f'{template.format(Path(name).stem)}{Path(name).suffix}' for name in gt}
    only_gt = [name for name in gt if partners[name] not in lq]
    only_lq = sorted(set(lq) - set(partners.values()))
    hint = f"GT is '{gt_root}', LQ is '{lq_root}', filename_tmpl '{template}'."
    if only_gt:
        wanted = Path(partners[only_gt[0]])
        message = f"'{only_gt[0]}' of GT has no LQ image '{wanted}'{_count_others(only_gt)}."
        stem = f"{Path(only_gt[0]).stem}x{dataset_opt['scale']}"
        others = [name for name in only_lq if Path(name).stem in (wanted.stem, stem)]
        if others and Path(others[0]).suffix != wanted.suffix:
            message += f" There is '{others[0]}', but both need the same suffix: convert one of them."
        elif others:
            message += f" There is '{others[0]}': write filename_tmpl: '{{}}x{dataset_opt['scale']}'."
        raise _error(path, f'{message} {hint}')
    if only_lq:
        raise _error(path, f"'{only_lq[0]}' of LQ has no GT image{_count_others(only_lq)}. {hint}")


def _list_files(root: Path, path: KeyPath) -> list[str]:
    """The names of the files that BasicSR reads as the images in a folder; raises if one is not an image."""
    files = [file for file in sorted(root.iterdir()) if not file.name.startswith('.') and not file.is_dir()]
    for file in files:
        if not file.exists():
            raise _error(path, f"'{file}' is a broken link, to '{file.readlink()}'. (A relative target begins at the "
                               'folder of the link.)')
        if file.suffix.lower() not in SUFFIXES:
            _read_size(str(file), path)
    return [file.name for file in files]


def _count_others(names: list[str]) -> str:
    return f', nor have {len(names) - 1} more' if len(names) > 1 else ''


def _read_size(file: str, path: KeyPath) -> Size:
    try:
        data = Path(file).read_bytes()
        check_pixel_limit(data)
        return image_size(data)
    except UnidentifiedImageError as err:
        raise _error(path, f"'{file}' cannot be read: {NOT_AN_IMAGE}.") from err
    except Exception as err:  # decoders raise exceptions of any type
        reason = getattr(err, 'strerror', None) or ' '.join(str(err).split()).rstrip('.')
        raise _error(path, f"'{file}' cannot be read: {reason}.") from err


def _check_content(dataset_opt: Mapping[str, Any], pairs: Pairs, path: KeyPath) -> str:
    """Decodes the images of a validation set; of another set, or a large one, the first pair.

    Returns:
        `deep` of `Pairs`.

    Raises:
        UserErrors: images of the validation set cannot be decoded.
    """
    decodes_all = dataset_opt['phase'] == 'val' and 2 * pairs.number <= MAX_DECODED
    bad, deep = [], ''
    for root, paths in zip((dataset_opt['dataroot_gt'], dataset_opt['dataroot_lq']), zip(*pairs.paths)):
        for name, data in _read_records(root, paths if decodes_all else paths[:1]):
            try:
                if decode_complete(data).dtype != np.uint8:
                    deep = deep or name
            except ValueError as err:
                bad.append(f'{name} cannot be read: {str(err).rstrip(".")}')
    if bad and decodes_all:
        more = f' So it is with {len(bad) - 1} more images.' if len(bad) > 1 else ''
        raise _error(path, f'{bad[0]}. Restore the image, or remove it from GT and LQ: validation skips none.{more}')
    return deep


def _read_records(root: str, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Name for messages and content of images in an LMDB, or of files."""
    if not is_lmdb(root):
        yield from ((f"'{path}'", Path(path).read_bytes()) for path in paths)
        return
    with open_lmdb(root) as env, env.begin() as txn:
        for path in paths:
            yield f"'{root}': '{path}'", txn.get(path.encode()) or b''
