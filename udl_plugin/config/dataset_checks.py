"""Checks, before training, what upstream's PairedImageDataset would trip over in a worker at the first iteration."""
from pathlib import Path

from udl_plugin.data.image_io import check_pixel_limit, image_size
from udl_plugin.data.lmdb_io import check_io_backend, read_meta_info
from udl_plugin.data.map_format import read_metadata
from udl_plugin.errors import UserError, raise_errors

MAX_FILES = 100  # of a folder, spread evenly: each costs reading a file; LMDBs list all sizes in one


def check_pairs(dataset_opt, where):
    """Checks that GT and LQ are there, pair up, and have sizes that fit the scale and the patch.

    Args:
        dataset_opt (dict): Options of a PairedImageDataset, with `scale` and `phase` as `parse_options` adds them.
        where (str): Where they stand in the yml, for the message.

    Raises:
        UserError: names the option and the path, and the image where there is one.
    """
    raise_errors(check_pair_options(dataset_opt, where))


def check_pair_options(dataset_opt, where):
    """Yields what `check_pairs` refuses; only of pairs that can be read, the first that does not fit."""
    scale = dataset_opt.get('scale')
    if scale is None:
        yield f'scale: is missing at the top of the yml; {where} needs it.'
    elif dataset_opt['phase'] == 'train':
        gt_size = dataset_opt.get('gt_size')
        if not isinstance(gt_size, int) or gt_size <= 0 or gt_size % scale:
            yield f'{where}: gt_size: {gt_size}: GT patches need a size, a multiple of the scale, {scale}.'
            scale = None
    backend = dataset_opt.get('io_backend')
    problems = [*check_io_backend(backend, where), *_name_problems(dataset_opt, where)]
    if problems:
        yield from problems
        return
    is_lmdb = backend.get('type') == 'lmdb'
    roots = [problem for side in ('dataroot_gt', 'dataroot_lq')
             for problem in _root_problems(dataset_opt.get(side), is_lmdb, f'{where}: {side}')]
    yield from roots
    if roots or scale is None:
        return
    try:
        pairs = list(_lmdb_sizes(dataset_opt, where) if is_lmdb else _folder_sizes(dataset_opt, where))
    except UserError as err:
        yield str(err)
        return
    for name, gt_size, lq_size in pairs:
        problem = _size_problem(gt_size, lq_size, dataset_opt)
        if problem:
            yield (f"{where}: '{name}': GT is {gt_size[1]} x {gt_size[0]} and LQ {lq_size[1]} x {lq_size[0]} "
                   f"pixels, {problem}. GT is from {dataset_opt['dataroot_gt']}, LQ from "
                   f"{dataset_opt['dataroot_lq']}.")
            return


def number_of_pairs(dataset_opt):
    """Of a data set whose pairs have passed `check_pairs`."""
    root, listed = Path(dataset_opt['dataroot_gt']), dataset_opt.get('meta_info_file')
    if dataset_opt['io_backend']['type'] == 'lmdb':
        return len(read_meta_info(root))
    if listed is not None:
        return len(Path(listed).read_text().splitlines())
    return sum(not path.name.startswith('.') for path in root.rglob('*') if path.is_file())


def too_few_images_message(images, batch_size, where):
    """What is said of a training set that does not fill one batch, of which upstream would train nothing, in silence.

    Args:
        images (int): With `dataset_enlarge_ratio`, in one process.
    """
    return (f'{where}: {images} images (dataset_enlarge_ratio counted) do not fill one batch of {batch_size}; write a '
            'smaller batch_size_per_gpu, or a larger dataset_enlarge_ratio.')


def _name_problems(dataset_opt, where):
    template, listed = dataset_opt.get('filename_tmpl', '{}'), dataset_opt.get('meta_info_file')
    if not isinstance(template, str) or template.count('{') != 1 or '{}' not in template or template.count('}') != 1:
        yield f"{where}: filename_tmpl: {str(template)[:80]!r}: is a name with one {{}}, such as '{{}}x4'."
    if listed is not None and not (isinstance(listed, str) and '\0' not in listed and Path(listed).is_file()):
        yield f'{where}: meta_info_file: there is no file {str(listed)[:200]!r} (seen from {Path.cwd()}).'


def _root_problems(root, is_lmdb, where):
    if root is None:
        yield f'{where}: is missing.'
    elif '\0' in str(root) or not Path(root).is_dir():
        yield (f"{where}: there is no folder '{root}' (seen from {Path.cwd()}). Have udl-prepare write it, or delete "
               'the set from the yml.')
    elif is_lmdb and not str(root).endswith('.lmdb'):
        yield f"{where}: '{root}' does not end in .lmdb, which io_backend: lmdb asks for."
    elif not is_lmdb and str(root).endswith('.lmdb'):
        yield f"{where}: '{root}' is an LMDB; write type: lmdb under io_backend."


def check_maps(dataset_opt, where):
    """Checks that the maps of a PairedImageUncertaintyDataset, whose pairs have passed `check_pairs`, belong to them.

    Raises:
        UserError: names the option and the path, and the image where there is one.
    """
    if dataset_opt['phase'] != 'train' or dataset_opt['io_backend']['type'] != 'lmdb':
        raise UserError(f'{where}: type: PairedImageUncertaintyDataset is for training from LMDBs; write '
                         'PairedImageDataset.')
    for key in ('mean', 'std'):
        if dataset_opt.get(key) is not None:
            raise UserError(f'{where}: {key}: maps are made of images as they are; write PairedImageDataset, and take '
                             'the maps of the network itself.')
    root, scale = dataset_opt.get('dataroot_uncertainty'), dataset_opt['scale']
    channels = 1 if dataset_opt.get('color') == 'y' else 3
    if root is None:
        raise UserError(f'{where}: dataroot_uncertainty: is missing; udl-prepare uncertainty writes it.')
    try:
        shapes, about = read_meta_info(root), read_metadata(root)
    except UserError as err:
        raise UserError(f'{where}: dataroot_uncertainty: {err}') from err
    if about['scale'] != scale:
        raise UserError(f"{where}: dataroot_uncertainty: the maps in '{root}' are of scale {about['scale']}, and not "
                         f'of scale: {scale}.')
    again = f"Have udl-prepare uncertainty write '{root}' anew, from these images."
    for key, (height, width, _) in read_meta_info(dataset_opt['dataroot_lq']).items():
        if key not in shapes or key not in about['limits']:
            raise UserError(f"{where}: dataroot_uncertainty: there is no map of '{key}'. {again}")
        if shapes[key] != (scale * height, scale * width, channels):
            raise UserError(f"{where}: dataroot_uncertainty: '{key}': its map is {shapes[key][1]} x {shapes[key][0]} "
                             f'pixels of {shapes[key][2]} channels and not {scale * width} x {scale * height} of '
                             f'{channels}. {again}')


def _size_problem(gt_size, lq_size, dataset_opt):
    scale = dataset_opt['scale']
    training = dataset_opt['phase'] == 'train'
    # in validation, upstream cuts GT to the LQ's size times the scale
    expected = tuple(scale * length for length in lq_size) if training else tuple(n // scale for n in gt_size)
    if (gt_size if training else lq_size) != expected:
        return f'which is not a scale of {scale}'
    if training and min(gt_size) < dataset_opt['gt_size']:
        return f"smaller than the patch, gt_size: {dataset_opt['gt_size']}"
    return ''


def _lmdb_sizes(dataset_opt, where):
    shapes = {}
    for side in ('dataroot_gt', 'dataroot_lq'):
        try:
            shapes[side] = read_meta_info(dataset_opt[side])
        except UserError as err:
            raise UserError(f'{where}: {side}: {err}') from err
    gt, lq = shapes['dataroot_gt'], shapes['dataroot_lq']
    if gt.keys() != lq.keys():
        only_gt, only_lq = sorted(gt.keys() - lq.keys()), sorted(lq.keys() - gt.keys())
        raise UserError(f'{where}: the keys of dataroot_gt and dataroot_lq differ: {len(only_gt)} only in GT '
                         f'{only_gt[:3]}, {len(only_lq)} only in LQ {only_lq[:3]}.')
    return [(key, gt[key][:2], lq[key][:2]) for key in gt]


def _folder_sizes(dataset_opt, where):
    from basicsr.data.data_util import paired_paths_from_folder, paired_paths_from_meta_info_file
    roots = [dataset_opt['dataroot_lq'], dataset_opt['dataroot_gt']]
    template = dataset_opt.get('filename_tmpl', '{}')
    try:
        if dataset_opt.get('meta_info_file') is not None:
            pairs = paired_paths_from_meta_info_file(roots, ['lq', 'gt'], dataset_opt['meta_info_file'], template)
        else:
            pairs = paired_paths_from_folder(roots, ['lq', 'gt'], template)
    except (AssertionError, OSError, ValueError, LookupError) as err:
        raise UserError(f"{where}: {err} LQ is '{roots[0]}', GT is '{roots[1]}', filename_tmpl '{template}'.") from err
    for pair, root in ((pair, root) for pair in pairs for root in roots):
        if not any(Path(path).resolve().is_relative_to(Path(root).resolve()) for path in pair.values()):
            raise UserError(f"{where}: meta_info_file: {pair['gt_path']!r} is not in '{root}'.")
    if not pairs:
        raise UserError(f"{where}: dataroot_gt: '{roots[1]}' holds no image.")
    for pair in pairs[::-(-len(pairs) // MAX_FILES)]:
        yield pair['gt_path'], _image_size(pair['gt_path'], where), _image_size(pair['lq_path'], where)


def _image_size(path, where):
    try:
        if not Path(path).is_file():
            raise ValueError('it is no file')
        data = Path(path).read_bytes()
        check_pixel_limit(data)
        return image_size(data)
    except (OSError, ValueError) as err:
        reason = err.strerror if getattr(err, 'strerror', None) else str(err) if isinstance(err, ValueError) else \
            'it is no image'
        raise UserError(f"{where}: '{path}' cannot be read: {reason}.") from err
