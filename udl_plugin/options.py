"""Checks of a parsed yml that can be made before anything is built."""
import inspect

import torch
import yaml

from udl_plugin.checkpoints import as_plain_data, branch, fingerprint, read_fitting
from udl_plugin.data.pairs import check_maps, check_pairs
from udl_plugin.data.uncertainty_maps import read_about
from udl_plugin.errors import InputError, check_option_names, did_you_mean, find_registered
from udl_plugin.sections import plain_section

# what SRModel, train_pipeline and test_pipeline read there
UPSTREAM_KEYS = {
    'train': ('total_iter', 'warmup_iter', 'ema_decay', 'optim_g', 'scheduler', 'pixel_opt', 'perceptual_opt'),
    'val': ('val_freq', 'save_img', 'pbar', 'suffix', 'metrics'),
    'path': ('pretrain_network_g', 'param_key_g', 'strict_load_g', 'resume_state', 'ignore_resume_networks'),
}
# and what UDLModel does
OUR_KEYS = {
    'train': ('amp', 'channels_last', 'compile', 'accumulate'),
    'val': ('amp', 'save_uncertainty', 'uncertainty_limits'),
}
KEYS = {section: known + OUR_KEYS.get(section, ()) for section, known in UPSTREAM_KEYS.items()}
GIVES = {
    'log_var': 'EDSRVar, DPDNNVar and WithVariance do in step 1, EDSRTwo, DPDNNTwo and TwoStep in step 2',
    'var_sr': 'EDSRTwo, DPDNNTwo and TwoStep do, the networks of step 2',
}
WITH_MAPS = 'PairedImageUncertaintyDataset'
MADE_PATHS = ('experiments_root', 'models', 'training_states', 'log', 'visualization', 'results_root')  # parse_options


def read_yml(path):
    """The content of a yml as plain data; nothing in it runs.

    Raises:
        InputError: the file cannot be read, or is no yml.
    """
    try:
        with open(path, encoding='utf-8') as file:
            return as_plain_data(yaml.safe_load(file))
    except OSError as err:
        raise InputError(f"'{path}': {err.strerror}.") from err
    except (UnicodeDecodeError, yaml.YAMLError) as err:
        raise InputError(f"'{path}' is no yml: {err}") from err


def check_options(opt):
    """Refuses options that cannot work together, and data that does not fit them.

    Args:
        opt (dict): As BasicSR's `parse_options` returns it.

    Raises:
        InputError: names the key or the path and says what to do.
    """
    from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
    for section in ('network_g', 'datasets', 'path'):
        if not isinstance(opt.get(section), dict):
            raise InputError(f'{section}: is missing, or not a section.')
    _find(MODEL_REGISTRY, opt, 'model_type', '')
    network = _check_built(ARCH_REGISTRY, opt['network_g'], 'network_g: ')
    train_opt = opt.get('train') or {}
    losses = {name: _check_built(LOSS_REGISTRY, train_opt[name], f'train: {name}: ')
              for name in ('pixel_opt', 'perceptual_opt') if train_opt.get(name)}
    loss = loss_of(train_opt['pixel_opt'], 'train: pixel_opt: ') if 'pixel_opt' in losses else None
    if opt['model_type'] == 'SRModel' and getattr(loss, 'needs', ()):
        raise InputError(f'model_type: SRModel gives losses no {" and ".join(loss.needs)}, and train: pixel_opt: '
                         f'{type(loss).__name__} needs it; write model_type: UDLModel.')
    if opt['model_type'] == 'SRModel':
        for section, keys in OUR_KEYS.items():
            for key in keys:
                off = (None, 1) if key == 'accumulate' else (None, False)
                if (opt.get(section) or {}).get(key) not in off:
                    raise InputError(f'{section}: {key}: model_type: SRModel does not read it; write model_type: '
                                     'UDLModel.')
    has_maps = (opt['datasets'].get('train') or {}).get('type') == WITH_MAPS
    if has_maps and not ('log_var' in getattr(loss, 'needs', ()) and loss.trains_log_var is False):
        raise InputError(f'datasets: train: type: {WITH_MAPS}: no loss weighs by its maps, as train: pixel_opt: type: '
                         'UDL does. Write type: PairedImageDataset.')
    if opt['model_type'] == 'UDLModel':
        for section, known in KEYS.items():
            _check_keys(section, opt.get(section) or {}, known)
        _check_speed(opt)
        _check_needs(opt, network, loss, given=('log_var',) * has_maps)
        _check_start(opt, network)
        _check_metrics(opt, network)
    _check_scale(opt.get('scale'), network, opt['network_g'])
    for phase, dataset in opt['datasets'].items():
        if dataset.get('type') in ('PairedImageDataset', WITH_MAPS):
            check_pairs(dataset, f'datasets: {phase}')
        if dataset.get('type') == WITH_MAPS:
            check_maps(dataset, f'datasets: {phase}')
        elif 'dataroot_uncertainty' in dataset:
            raise InputError(f'datasets: {phase}: dataroot_uncertainty: is read by type: {WITH_MAPS} alone; write '
                             'that.')


def check_network(opt):
    """Refuses a `network_g` that cannot be built, and a `path: pretrain_network_g` that UDLModel would refuse, at the
    price of building the one and reading the other.

    Args:
        opt (dict): As for `check_options`, and passed by it.

    Raises:
        InputError: names the option, the file and the mismatch.
    """
    from udl_plugin.archs.with_variance import build
    with torch.random.fork_rng(devices=[]):  # the training's own random numbers stay as they are
        try:
            net = build(opt['network_g'])
        except InputError as err:
            raise InputError(f'network_g: {err}') from err
    path = opt['path'].get('pretrain_network_g')
    if path is not None and opt['model_type'] == 'UDLModel':
        state_dict, _, _ = read_fitting(net, path, opt['path'].get('param_key_g', 'params'),
                                        opt['path'].get('strict_load_g', True))
        check_maker_of_maps(opt, branch(state_dict, 'var_net'))


def check_maker_of_maps(opt, var_state_dict):
    """Refuses cached maps of another network than the frozen one, such as step 1 before it was trained again.

    Args:
        var_state_dict (dict): Of the frozen network; empty where there is none, then maps may be of any.

    Raises:
        InputError: names the option, the LMDB and the network that it is of.
    """
    root = (opt['datasets'].get('train') or {}).get('dataroot_uncertainty')
    if root is None or not var_state_dict:
        return
    about = read_about(root)
    if about['fingerprint'] != fingerprint(var_state_dict):
        raise InputError(f"datasets: train: dataroot_uncertainty: the maps in '{root}' are of another network, "
                         f"{about['model']}, {about['param_key']}, as it was then, and not of the one in path: "
                         'pretrain_network_g. Have udl-prepare uncertainty --force write them anew, or name a plain '
                         'network in network_g, which may weigh by any maps.')


def _check_keys(section, section_opt, known):
    for key in section_opt:
        if key not in known and not (section == 'path' and key in MADE_PATHS):
            raise InputError(f"{section}: '{key}' is not an option{did_you_mean(key, known)}. "
                             f"With model_type: UDLModel its options are: {', '.join(known)}.")


def _check_speed(opt):
    train, val = (opt.get(section) or {} for section in ('train', 'val'))
    for where, amp in (('train', train.get('amp')), ('val', val.get('amp'))):
        if amp not in (None, 'bf16', 'fp16'):
            raise InputError(f'{where}: amp: {amp}: is bf16, fp16, or ~ for float32.')
    for key in ('channels_last', 'compile'):
        if train.get(key) not in (None, True, False):
            raise InputError(f'train: {key}: {train[key]}: is true or false.')
    accumulate = train.get('accumulate')
    if accumulate is not None:
        batch = (opt['datasets'].get('train') or {}).get('batch_size_per_gpu', 0)
        if any(type(number) is not int for number in (accumulate, batch)) or accumulate < 1 or batch % accumulate:
            raise InputError(f'train: accumulate: {accumulate}: is the number of equal parts in which a batch goes '
                             f'through: of batch_size_per_gpu: {batch}, a whole number that divides it.')
        if accumulate > 1 and (train.get('pixel_opt') or {}).get('reduction') == 'sum':
            raise InputError('train: accumulate: the parts are averaged, and pixel_opt: reduction: sum is no mean; '
                             'write mean.')
        if accumulate > 1 and (train.get('perceptual_opt') or {}).get('criterion') == 'fro':
            raise InputError('train: accumulate: the parts are averaged, and perceptual_opt: criterion: fro is a norm '
                             'of the whole batch; write l1.')
    asked = [f'{where}: {key}: {section[key]}' for where, section in (('train', train), ('val', val))
             for key in ('amp', 'compile') if section.get(key)]
    if asked and opt.get('num_gpu') not in (None, 'auto', 0, 1) and not opt.get('dist'):  # auto: of a study, one each
        raise InputError(f'{asked[0]} on {opt["num_gpu"]} GPUs wants a process for each: torchrun --nproc_per_node='
                         f'{opt["num_gpu"]} -m udl_plugin.train -opt FILE.yml --launcher pytorch. Or take one GPU.')


def _check_built(registry, section, where):
    """Checks a section that BasicSR builds an instance from, and returns the class."""
    cls = _find(registry, section, 'type', where)
    given = section.keys() - {'type'}
    check_option_names(cls, given, where)
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty \
                and name not in given:
            raise InputError(f'{where}{name}: is missing; type: {cls.__name__} needs it.')
    if isinstance(section.get('backbone'), dict) and 'backbone' in inspect.signature(cls).parameters:
        _check_built(registry, section['backbone'], f'{where}backbone: ')
    if section.get('reduction') == 'none':
        raise InputError(f'{where}reduction: none gives a map, and training needs a number; write mean.')
    return cls


def _check_start(opt, network):
    """Refuses a missing `path: pretrain_network_g` where the network cannot do without."""
    if opt['path'].get('pretrain_network_g') is not None:
        return
    if getattr(network, 'trains_log_var', None) is False:
        raise InputError(f'path: pretrain_network_g: is missing. {network.__name__} starts from a checkpoint of '
                         'step 1 (train that first) or of step 2.')
    if not opt['is_train']:
        raise InputError('path: pretrain_network_g: is missing: there is nothing to test.')


def metrics_of_maps(opt):
    """The sections of `val: metrics` whose function takes `log_var`."""
    from basicsr.utils.registry import METRIC_REGISTRY
    metrics = (opt.get('val') or {}).get('metrics') or {}
    functions = {name: _find(METRIC_REGISTRY, metric, 'type', f'val: metrics: {name}: ')
                 for name, metric in metrics.items()}
    return [metrics[name] for name, function in functions.items()
            if 'log_var' in inspect.signature(function).parameters]


def _check_metrics(opt, network):
    from basicsr.utils.registry import METRIC_REGISTRY
    for name, metric in ((opt.get('val') or {}).get('metrics') or {}).items():
        where = f'val: metrics: {name}: '
        function = _find(METRIC_REGISTRY, metric, 'type', where)
        check_option_names(function, metric.keys() - {'type'}, where)
        parameters = inspect.signature(function).parameters
        if 'crop_border' not in metric and 'crop_border' in parameters:
            raise InputError(f'{where}crop_border: is missing; write the scale.')
        if 'log_var' in parameters and not _gives(network, 'log_var'):
            raise InputError(f'val: metrics: {metric["type"]} needs log_var, and network_g: {network.__name__} gives '
                             f'none; {GIVES["log_var"]}.')


def loss_of(section, where):
    """The loss that a section of a yml describes: an instance of one of ours, which knows what it `needs`; the class of
    one of BasicSR's, which needs nothing.

    Raises:
        InputError: there is none of that name, or not with these options.
    """
    from basicsr.utils.registry import LOSS_REGISTRY
    cls = _find(LOSS_REGISTRY, section, 'type', where)
    if not hasattr(cls, 'needs'):
        return cls
    try:
        return cls(**{key: value for key, value in section.items() if key != 'type'})
    except InputError as err:
        raise InputError(f'{where}{err}') from err


def _check_needs(opt, network, loss, given):
    """Refuses uses of maps that the network does not give, or gives for the other step; `given` are in the data."""
    if (opt.get('val') or {}).get('save_uncertainty') and not _gives(network, 'log_var'):
        raise InputError(f'val: save_uncertainty: network_g: {network.__name__} gives no log_var; {GIVES["log_var"]}.')
    limits = (opt.get('val') or {}).get('uncertainty_limits')
    if limits is not None and not (isinstance(limits, (list, tuple)) and len(limits) == 2 and all(
            isinstance(limit, (int, float)) for limit in limits) and limits[0] < limits[1]):
        raise InputError(f'val: uncertainty_limits: {limits}: are a lower and a higher number, such as [-1, 4].')
    needs = getattr(loss, 'needs', ())
    for name in needs:
        if name not in given and not _gives(network, name):
            raise InputError(f'train: pixel_opt: {type(loss).__name__} needs {name}, and network_g: '
                             f'{network.__name__} gives none; {GIVES[name]}.')
    if not needs:
        return
    steps = 'Step 1 is a network such as EDSRVar with ESU, step 2 one such as EDSRTwo with UDL.'
    loss_trains, network_trains = (getattr(part, 'trains_log_var', None) for part in (loss, network))
    if loss_trains is True and network_trains is False:
        raise InputError(f'train: pixel_opt: {type(loss).__name__} trains the log-variance, and that of network_g: '
                         f'{network.__name__} is frozen. {steps}')
    if loss_trains is False and network_trains is True:
        raise InputError(f'train: pixel_opt: {type(loss).__name__} weighs by a finished log-variance, and that of '
                         f'network_g: {network.__name__} would stay untrained. {steps}')


def _gives(network, name):
    return f'return_{name}' in inspect.signature(network.forward).parameters


def _find(registry, section, key, where):
    """The class that `section[key]` names in a registry of BasicSR."""
    name = section.get(key)
    if name is None:
        raise InputError(f'{where}{key}: is missing.')
    return find_registered(registry, name, f'{where}{key}: ')


def scale_key(network):
    """What a class of network calls its scale: `upscale`, or as RRDBNet does."""
    return 'upscale' if 'upscale' in inspect.signature(network).parameters else 'scale'


def _check_scale(scale, network, network_opt):
    where = 'network_g: '
    if isinstance(network_opt.get('backbone'), dict):
        from basicsr.utils.registry import ARCH_REGISTRY
        network_opt, where = plain_section(network_opt), f'{where}backbone: '
        network = _find(ARCH_REGISTRY, network_opt, 'type', where)
    parameters, key = inspect.signature(network).parameters, scale_key(network)
    if key not in parameters:
        return
    upscale = network_opt.get(key, parameters[key].default)
    if scale == upscale:
        return
    if scale is None:
        raise InputError(f'scale: is missing; write scale: {upscale}, for {where}{key}: {upscale}.')
    raise InputError(f'scale: {scale} does not agree with {where}{key}: {upscale}; make both the scale of the data.')
