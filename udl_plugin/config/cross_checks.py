"""Checks of options against each other, the data and the checkpoints, before anything is built.

What each option may be by itself is in `udl_plugin/config/schema.py`. `check_options` looks at the sections that a model reads
and at how they agree: it also serves dicts made by hand, and those of studies. A whole yml is checked by the entry
points, with `yml_problems` of the schema first.
"""
import contextlib
import inspect
import math
from os import path as osp

import torch

from udl_plugin.archs.wrapping import base_config, sub_state_dict
from udl_plugin.checkpoints.state_dict import fingerprint, load_matching_state_dict
from udl_plugin.config.class_options import build_loss, resolve_class, scale_key
from udl_plugin.config.dataset_checks import check_maps, check_pair_options, number_of_pairs, too_few_images_message
from udl_plugin.config.problems import ErrorCollector, get_section
from udl_plugin.config.schema import LOADER_OPTIONS, PAIRS, WITH_MAPS, dataset_problems, validate_sections
from udl_plugin.data.map_format import read_metadata
from udl_plugin.errors import UserError, raise_errors

GIVES = {
    'log_var': 'EDSRVar, DPDNNVar and WithVariance do in step 1, EDSRTwo, DPDNNTwo and TwoStep in step 2',
    'frozen_sr': 'EDSRTwo, DPDNNTwo and TwoStep do, the networks of step 2',
}
_unchecked = False


@contextlib.contextmanager
def unchecked():
    """Within it, `check_options` lets everything pass."""
    global _unchecked
    before, _unchecked = _unchecked, True
    try:
        yield
    finally:
        _unchecked = before


def check_options(opt):
    """Refuses options that are wrong or cannot work together, and data that does not fit them.

    Args:
        opt (dict): As BasicSR's `parse_options` returns it, or one made by hand. Of the sections train, val, path and
            those that describe a network, a loss or a metric, every key is checked; others may be missing.

    Raises:
        UserError: all that is wrong, a line each; names the key or the path and says what to do.
    """
    if not _unchecked:
        raise_errors(collect_errors(opt).messages)


def collect_errors(opt, known=()):
    """What `check_options` refuses.

    Args:
        known (list[Problem]): What is known to be wrong; what follows from it is not told.

    Returns:
        Report
    """
    report = ErrorCollector([*known] or validate_sections(opt))
    network, loss = _network_of(opt, report), _loss_of(opt, report)
    model_type = opt.get('model_type')
    if model_type == 'SRModel':
        report.check(_fed_by_srmodel, loss)
    report.check(_devices, opt, reads=('num_gpu', 'datasets: train: prefetch_mode'))
    report.check(maps_problems, opt, loss, reads=('train', 'train: pixel_opt', 'datasets: train: type'))
    if model_type == 'UDLModel':
        report.check(_speed, opt, reads=('num_gpu',))
        report.check(_accumulation, opt, reads=('train: accumulate', 'datasets: train', 'datasets: train: '
                                                'batch_size_per_gpu'))
        if network is not None:
            has_maps = get_section(get_section(opt, 'datasets'), 'train').get('type') == WITH_MAPS
            report.check(_maps_saved, opt, network)
            report.check(check_required_outputs, network, loss, ('log_var',) * has_maps)
            report.check(_start, opt, network, reads=('path', 'path: resume_state'))
            report.check(_metrics, opt, network)
    if network is not None:
        report.check(_channels, opt, network, reads=('network_g: num_in_ch', 'network_g: backbone'))
        report.check(_scale, opt.get('scale'), network, opt['network_g'], reads=(
            'scale', 'network_g: backbone', 'network_g: upscale', 'network_g: scale', 'network_g: backbone: upscale',
            'network_g: backbone: scale', 'network_g: backbone: type'))
    if model_type != 'UDLModel':
        report.check(_files, opt)  # of UDLModel, `check_network` reads them, if it gets so far
    for phase, dataset in get_section(opt, 'datasets').items():
        if isinstance(dataset, dict):
            where, known = f'datasets: {phase}', len(report.messages)
            report.check(_data, dataset, where, reads=(
                'scale', *(f'{where}{key}' for key in ('', ': type', ': io_backend', ': io_backend: type'))))
            if phase == 'train' and not report.blames_within(where) and len(report.messages) == known:
                report.check(_batches, opt, dataset, where, reads=('num_gpu',))
    return report


def as_parsed(data, is_train, auto_resume=False):
    """What `parse_options` adds to a yml that it might not get through, as far as checks ask for it.

    Args:
        data (dict): The content of the yml; is not changed.
        is_train (bool): For training, or for a test.
        auto_resume (bool): As on the command line.
    """
    opt = {**data, 'is_train': is_train, 'dist': False, 'auto_resume': auto_resume}
    for section in ('datasets', 'path'):
        opt[section] = dict(get_section(data, section))
    for phase, dataset in opt['datasets'].items():
        if isinstance(dataset, dict):
            roots = {key: osp.expanduser(dataset[key]) for key in ('dataroot_gt', 'dataroot_lq')
                     if isinstance(dataset.get(key), str) and '\0' not in dataset[key]}
            scale = {'scale': data['scale']} if 'scale' in data else {}
            opt['datasets'][phase] = {**dataset, **roots, **scale, 'phase': str(phase).split('_')[0]}
    for key, value in opt['path'].items():
        if isinstance(key, str) and ('resume_state' in key or 'pretrain_network' in key) \
                and isinstance(value, str) and '\0' not in value:
            opt['path'][key] = osp.expanduser(value)
    if is_train:
        root = osp.join(osp.abspath('experiments'), str(data.get('name')))
        opt['path'].update({key: osp.join(root, key) for key in ('models', 'training_states')})
    return opt


def _network_of(opt, report):
    from basicsr.utils.registry import ARCH_REGISTRY
    if report.blames('network_g', 'network_g: type'):
        return None
    return resolve_class(ARCH_REGISTRY, opt['network_g'], 'network_g: ')


def _loss_of(opt, report):
    """The loss of train: pixel_opt as `loss_of` has it; None where there is none, or it is wrong."""
    section = get_section(get_section(opt, 'train'), 'pixel_opt')
    if not section or report.blames_within('train: pixel_opt'):
        return None
    if section.get('reduction') == 'none':
        report.messages.append('train: pixel_opt: reduction: none gives a map, and training needs a number; write '
                               'mean.')
        report.places.append('train: pixel_opt')
        return None
    try:
        return build_loss(section, 'train: pixel_opt: ')
    except UserError as err:
        report.messages.append(str(err))
        report.places.append('train: pixel_opt')
        return None


def _fed_by_srmodel(loss):
    if getattr(loss, 'required_outputs', ()):
        yield (f'model_type: SRModel gives losses no {" and ".join(loss.required_outputs)}, and train: pixel_opt: '
               f'{type(loss).__name__} needs it; write model_type: UDLModel.')


def maps_problems(opt, loss):
    """Cached maps that the loss does not read."""
    has_maps = get_section(get_section(opt, 'datasets'), 'train').get('type') == WITH_MAPS
    if has_maps and not ('log_var' in getattr(loss, 'required_outputs', ()) and loss.trains_log_var is False):
        yield (f'datasets: train: type: {WITH_MAPS}: no loss weighs by its maps, as train: pixel_opt: type: UDL does. '
               f'Write type: {PAIRS}.')


def _files(opt):
    """Files that upstream would miss after it has made its folders."""
    for key, value in get_section(opt, 'path').items():
        if str(key).startswith('pretrain_network') and isinstance(value, str) and not osp.isfile(value):
            yield f"path: {key}: there is no file '{value}' (seen from {osp.abspath('.')})."


def _data(dataset, where):
    if dataset.get('type') in (PAIRS, WITH_MAPS):
        problems = list(check_pair_options(dataset, where))
        yield from problems
        if problems:
            return
    if dataset.get('type') == WITH_MAPS:
        check_maps(dataset, where)
    elif dataset.get('dataroot_uncertainty') is not None:
        yield f'{where}: dataroot_uncertainty: is read by type: {WITH_MAPS} alone; write that.'


def _batches(opt, dataset, where):
    """A training set that does not fill one batch."""
    batch = dataset.get('batch_size_per_gpu')
    if dataset.get('type') not in (PAIRS, WITH_MAPS) or type(batch) is not int:
        return
    if not opt.get('dist') and type(opt.get('num_gpu')) is int:
        batch *= max(1, opt['num_gpu'])
    share = dataset.get('dataset_enlarge_ratio', 1) / (opt['world_size'] if opt.get('dist') else 1)
    images = math.ceil(number_of_pairs(dataset) * share)
    if images < batch:
        yield too_few_images_message(images, batch, where)


def _devices(opt):
    """GPUs that are asked for, and not there."""
    there, asked = torch.cuda.device_count(), opt.get('num_gpu')
    if type(asked) is int and asked > there and not opt.get('dist'):
        has = f'{there} of them' if there else 'none that PyTorch can use'
        yield f'num_gpu: {asked}: this machine has {has}; write {there}, or auto.'
    if get_section(get_section(opt, 'datasets'), 'train').get('prefetch_mode') == 'cuda' and not there:
        yield 'datasets: train: prefetch_mode: cuda: there is no GPU that PyTorch can use; write cpu or ~.'


def check_data(phase, scale, section):
    """Refuses a section of `datasets` that is wrong, or whose data is, for a loader that is not BasicSR's.

    Args:
        phase (str): train, val or test.
        scale (int): Of the network.
        section (dict): As in a yml, without what BasicSR's loader reads.

    Raises:
        UserError: all that is wrong.
    """
    where = f'datasets: {phase}'
    raise_errors(f'{where}: {key}: is of BasicSR\'s loader; write it to the one that is used.'
              for key in LOADER_OPTIONS & section.keys())
    loader = {'num_worker_per_gpu': 0, 'batch_size_per_gpu': 1} if phase == 'train' else {}
    report = ErrorCollector(dataset_problems(phase, {**section, **loader}, phase != 'test'))
    report.check(_data, {**section, 'phase': phase, 'scale': scale}, where, reads=(
        where, f'{where}: type', f'{where}: io_backend', f'{where}: io_backend: type'))
    raise_errors(report.messages)


def check_network(opt):
    """Refuses a `network_g` that cannot be built, and a `path: pretrain_network_g` that UDLModel would refuse, at the
    price of building the one and reading the other.

    Args:
        opt (dict): As for `check_options`, and passed by it.

    Raises:
        UserError: names the option, the file and the mismatch.
    """
    from udl_plugin.archs.build import build_network
    # the training's own random numbers stay as they are
    with torch.random.fork_rng(devices=[]):
        try:
            net = build_network(opt['network_g'])
        except UserError as err:
            raise UserError(f'network_g: {err}') from err
    path = opt['path'].get('pretrain_network_g')
    if path is not None and opt['model_type'] == 'UDLModel':
        state_dict, _, _ = load_matching_state_dict(net, path, opt['path'].get('param_key_g', 'params'),
                                        opt['path'].get('strict_load_g', True))
        check_map_fingerprint(opt, sub_state_dict(state_dict, 'var_net'))


def network_problems(opt, report):
    """Adds what `check_network` refuses to a report; where the network is wrong, files that are missing."""
    where = ('path', 'path: resume_state', *(f'path: {key}' for key in (
        'pretrain_network_g', 'param_key_g', 'strict_load_g')))
    if not report.blames_within('network_g'):
        report.check(check_network, opt, reads=where)
    if any(message.startswith('network_g: ') for message in report.messages):
        report.check(_files, opt, reads=where)


def check_map_fingerprint(opt, var_state_dict):
    """Refuses cached maps of another network than the frozen one, such as step 1 before it was trained again.

    Args:
        var_state_dict (dict): Of the frozen network; empty where there is none, then maps may be of any.

    Raises:
        UserError: names the option, the LMDB and the network that it is of.
    """
    root = (opt['datasets'].get('train') or {}).get('dataroot_uncertainty')
    if root is None or not var_state_dict:
        return
    about = read_metadata(root)
    if about['fingerprint'] != fingerprint(var_state_dict):
        raise UserError(f"datasets: train: dataroot_uncertainty: the maps in '{root}' are of another network, "
                         f"{about['model']}, {about['param_key']}, as it was then, and not of the one in path: "
                         'pretrain_network_g. Have udl-prepare uncertainty --force write them anew, or name a plain '
                         'network in network_g, which may weigh by any maps.')


def _speed(opt):
    train, val = get_section(opt, 'train'), get_section(opt, 'val')
    asked = [f'{where}: {key}: {section[key]}' for where, section in (('train', train), ('val', val))
             for key in ('amp', 'compile') if section.get(key)]
    if asked and opt.get('num_gpu') not in (None, 'auto', 0, 1) and not opt.get('dist'):  # auto: of a study, one each
        yield (f'{asked[0]} on {opt["num_gpu"]} GPUs wants a process for each: torchrun --nproc_per_node='
               f'{opt["num_gpu"]} -m udl_plugin.train -opt FILE.yml --launcher pytorch. Or take one GPU.')


def _accumulation(opt):
    train = get_section(opt, 'train')
    accumulate = train.get('accumulate')
    if accumulate is None:
        return
    batch = get_section(get_section(opt, 'datasets'), 'train').get('batch_size_per_gpu', 0)
    if type(batch) is not int or batch % accumulate:
        yield (f'train: accumulate: {accumulate}: is the number of equal parts in which a batch goes through: of '
               f'batch_size_per_gpu: {batch}, a whole number that divides it.')
    if accumulate > 1 and get_section(train, 'pixel_opt').get('reduction') == 'sum':
        yield 'train: accumulate: the parts are averaged, and pixel_opt: reduction: sum is no mean; write mean.'
    if accumulate > 1 and get_section(train, 'perceptual_opt').get('criterion') == 'fro':
        yield ('train: accumulate: the parts are averaged, and perceptual_opt: criterion: fro is a norm of the whole '
               'batch; write l1.')


def _start(opt, network):
    """A missing `path: pretrain_network_g` where the network cannot do without."""
    if opt['path'].get('pretrain_network_g') is not None:
        return
    if getattr(network, 'trains_log_var', None) is False:
        yield (f'path: pretrain_network_g: is missing. {network.__name__} starts from a checkpoint of step 1 (train '
               'that first) or of step 2.')
    elif not opt['is_train']:
        yield 'path: pretrain_network_g: is missing: there is nothing to test.'


def metrics_of_maps(opt):
    """The sections of `val: metrics` whose function takes `log_var`."""
    from basicsr.utils.registry import METRIC_REGISTRY
    metrics = (opt.get('val') or {}).get('metrics') or {}
    functions = {name: resolve_class(METRIC_REGISTRY, metric, f'val: metrics: {name}: ')
                 for name, metric in metrics.items()}
    return [metrics[name] for name, function in functions.items()
            if 'log_var' in inspect.signature(function).parameters]


def _metrics(opt, network):
    from basicsr.utils.registry import METRIC_REGISTRY
    for name, metric in get_section(get_section(opt, 'val'), 'metrics').items():
        try:
            function = resolve_class(METRIC_REGISTRY, metric, '')
        except UserError:
            continue  # the schema tells
        if 'log_var' in inspect.signature(function).parameters and not _gives(network, 'log_var'):
            yield (f'val: metrics: {name}: {metric["type"]} needs log_var, and network_g: {network.__name__} gives '
                   f'none; {GIVES["log_var"]}.')


def _maps_saved(opt, network):
    if get_section(opt, 'val').get('save_uncertainty') and not _gives(network, 'log_var'):
        yield f'val: save_uncertainty: network_g: {network.__name__} gives no log_var; {GIVES["log_var"]}.'


def check_required_outputs(network, loss, given=(), names=('train: pixel_opt', 'network_g')):
    """Maps that the loss needs and the network does not give, or gives for the other step.

    Args:
        network (type): Class of the network.
        loss (nn.Module | None): The loss.
        given (Iterable[str]): Maps that are in the data.
        names (tuple[str]): What loss and network are called.

    Yields:
        str: A message each.
    """
    where, what = names
    needs = getattr(loss, 'required_outputs', ())
    for name in needs:
        if name not in given and not _gives(network, name):
            yield (f'{where}: {type(loss).__name__} needs {name}, and {what}: {network.__name__} gives none; '
                   f'{GIVES[name]}.')
    if not needs:
        return
    steps = 'Step 1 is a network such as EDSRVar with ESU, step 2 one such as EDSRTwo with UDL.'
    loss_trains, network_trains = (getattr(part, 'trains_log_var', None) for part in (loss, network))
    if loss_trains is True and network_trains is False:
        yield (f'{where}: {type(loss).__name__} trains the log-variance, and that of {what}: {network.__name__} is '
               f'frozen. {steps}')
    if loss_trains is False and network_trains is True:
        yield (f'{where}: {type(loss).__name__} weighs by a finished log-variance, and that of {what}: '
               f'{network.__name__} would stay untrained. {steps}')


def _gives(network, name):
    return f'return_{name}' in inspect.signature(network.forward).parameters


def _plain_network(network, network_opt):
    """Class and section of the plain network, or of one step of a network of ours, and where they stand."""
    where = 'network_g: '
    if isinstance(network_opt.get('backbone'), dict):
        from basicsr.utils.registry import ARCH_REGISTRY
        network_opt, where = base_config(network_opt), f'{where}backbone: '
        network = resolve_class(ARCH_REGISTRY, network_opt, where)
    return network, network_opt, where


def _channels(opt, network):
    """Images of other channels than the network takes."""
    network, network_opt, where = _plain_network(network, opt['network_g'])
    parameters = inspect.signature(network).parameters
    key = next((name for name in ('num_in_ch', 'in_chans') if name in parameters), None)
    takes = network_opt.get(key, parameters[key].default) if key else None
    if type(takes) is not int:
        return
    if takes != 3 and 'rgb_mean' in parameters:
        yield f'{where}{key}: {takes}: {network.__name__} takes away the mean of three channels, and can have no other.'
        return
    for phase, dataset in get_section(opt, 'datasets').items():
        if not isinstance(dataset, dict) or dataset.get('type') not in (PAIRS, WITH_MAPS):
            continue
        gives = 1 if dataset.get('color') == 'y' else 3
        if gives != takes:
            color = 'color: y' if takes == 1 else 'color: ~' if takes == 3 else f'{key}: {gives}'
            yield (f'datasets: {phase}: color: {dataset.get("color") or "~"} gives images of {gives} channels, and '
                   f'{where}{key}: {takes} takes others; write {color}.')


def _scale(scale, network, network_opt):
    network, network_opt, where = _plain_network(network, network_opt)
    parameters, key = inspect.signature(network).parameters, scale_key(network)
    if key not in parameters:
        return
    upscale = network_opt.get(key, parameters[key].default)
    if scale is None:
        yield f'scale: is missing; write scale: {upscale}, for {where}{key}: {upscale}.'
    elif scale != upscale:
        yield f'scale: {scale} does not agree with {where}{key}: {upscale}; make both the scale of the data.'
