"""Checks of a parsed yml that can be made before anything is built."""
import inspect

import torch

from udl_plugin.checkpoints import read_fitting
from udl_plugin.data.pairs import check_pairs
from udl_plugin.errors import InputError, check_option_names, did_you_mean

VAL_KEYS = ('val_freq', 'save_img', 'pbar', 'suffix', 'metrics', 'save_uncertainty')  # all but the last are upstream's


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
    network = _find(ARCH_REGISTRY, opt['network_g'], 'type', 'network_g: ')
    check_option_names(network, opt['network_g'].keys() - {'type'}, 'network_g: ')
    losses = {}
    for name in ('pixel_opt', 'perceptual_opt'):
        loss_opt = (opt.get('train') or {}).get(name)
        if loss_opt:
            losses[name] = _find(LOSS_REGISTRY, loss_opt, 'type', f'train: {name}: ')
            check_option_names(losses[name], loss_opt.keys() - {'type'}, f'train: {name}: ')
    if opt['model_type'] == 'UDLModel':
        _check_val(opt.get('val') or {}, network)
        _check_loss_suits(losses.get('pixel_opt'), network)
        untrained = getattr(network, 'trains_log_var', None) is False  # then its log-variance comes from a checkpoint
        if untrained and opt['path'].get('pretrain_network_g') is None:
            raise InputError(f'path: pretrain_network_g: is missing. {network.__name__} starts from a checkpoint of '
                             'step 1 (train it with options/train_udl_step1.yml) or of step 2.')
    _check_scale(opt.get('scale'), network, opt['network_g'])
    for phase, dataset in opt['datasets'].items():
        if dataset.get('type') == 'PairedImageDataset':
            check_pairs(dataset, f'datasets: {phase}')


def check_checkpoint(opt):
    """Refuses a `path: pretrain_network_g` that UDLModel would refuse, at the price of reading it.

    Args:
        opt (dict): As for `check_options`, and passed by it.

    Raises:
        InputError: names the option, the file and the mismatch.
    """
    from basicsr.utils.registry import ARCH_REGISTRY
    path = opt['path'].get('pretrain_network_g')
    if path is None or opt['model_type'] != 'UDLModel':
        return
    network_opt = dict(opt['network_g'])
    with torch.device('meta'):  # shapes alone: no memory, no random numbers drawn
        net = ARCH_REGISTRY.get(network_opt.pop('type'))(**network_opt)
    read_fitting(net, path, opt['path'].get('param_key_g', 'params'), opt['path'].get('strict_load_g', True))


def _check_val(val_opt, network):
    for key in val_opt:
        if key not in VAL_KEYS:
            raise InputError(f"val: '{key}' is not an option{did_you_mean(key, VAL_KEYS)}. "
                             f"With model_type: UDLModel its options are: {', '.join(VAL_KEYS)}.")
    if val_opt.get('save_uncertainty') and not _gives_log_var(network):
        raise InputError(f'val: save_uncertainty: network_g: {network.__name__} gives no log-variance; EDSRVar and '
                         'EDSRTwo do.')


def _check_loss_suits(loss, network):
    """Refuses a loss that needs a log-variance and a network that has none, or has it for the other step."""
    if not getattr(loss, 'needs_log_var', False):
        return
    if not _gives_log_var(network):
        raise InputError(f'train: pixel_opt: {loss.__name__} needs a log-variance, and network_g: {network.__name__} '
                         'gives none. Use EDSRVar in step 1, EDSRTwo in step 2.')
    steps = 'Step 1 is EDSRVar with ESU, step 2 EDSRTwo with UDL.'
    loss_trains, network_trains = (getattr(part, 'trains_log_var', None) for part in (loss, network))
    if loss_trains is True and network_trains is False:
        raise InputError(f'train: pixel_opt: {loss.__name__} trains the log-variance, and that of network_g: '
                         f'{network.__name__} is frozen. {steps}')
    if loss_trains is False and network_trains is True:
        raise InputError(f'train: pixel_opt: {loss.__name__} weighs by a finished log-variance, and that of '
                         f'network_g: {network.__name__} would stay untrained. {steps}')


def _gives_log_var(network):
    return 'return_log_var' in inspect.signature(network.forward).parameters


def _find(registry, section, key, where):
    """The class that `section[key]` names in a registry of BasicSR."""
    name = section.get(key)
    if name is None:
        raise InputError(f'{where}{key}: is missing.')
    for registered in (name, f'{name}_basicsr'):  # the registry's own second try
        if registered in registry:
            return registry.get(registered)
    raise InputError(f"{where}{key}: there is no '{name}'{did_you_mean(name, registry.keys())}.")


def _check_scale(scale, network, network_opt):
    parameter = inspect.signature(network).parameters.get('upscale')
    upscale = network_opt.get('upscale', parameter.default if parameter else inspect.Parameter.empty)
    if upscale is inspect.Parameter.empty or scale == upscale:
        return
    if scale is None:
        raise InputError(f'scale: is missing; network_g has upscale: {upscale}, so write scale: {upscale}.')
    raise InputError(f'scale: {scale} does not agree with network_g: upscale: {upscale}; '
                     'make both the scale of the data.')
