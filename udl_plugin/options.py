"""Checks of a parsed yml that can be made before anything is built."""
import inspect

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
    for name in ('pixel_opt', 'perceptual_opt'):
        loss_opt = (opt.get('train') or {}).get(name)
        if loss_opt:
            loss = _find(LOSS_REGISTRY, loss_opt, 'type', f'train: {name}: ')
            check_option_names(loss, loss_opt.keys() - {'type'}, f'train: {name}: ')
    if opt['model_type'] == 'UDLModel':
        for key in opt.get('val') or {}:
            if key not in VAL_KEYS:
                raise InputError(f"val: '{key}' is read by nobody{did_you_mean(key, VAL_KEYS)}. "
                                 f"With model_type: UDLModel its keys are: {', '.join(VAL_KEYS)}.")
    _check_scale(opt.get('scale'), network, opt['network_g'])
    for phase, dataset in opt['datasets'].items():
        if dataset.get('type') == 'PairedImageDataset':
            check_pairs(dataset, f'datasets: {phase}')


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
