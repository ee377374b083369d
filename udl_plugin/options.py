"""Checks of a parsed yml that can be made before anything is built."""
import inspect

from udl_plugin.data.pairs import check_pairs
from udl_plugin.errors import InputError, did_you_mean

VAL_KEYS = ('val_freq', 'save_img', 'pbar', 'suffix', 'metrics')  # upstream reads these in train, test and SRModel
UDL_VAL_KEYS = (*VAL_KEYS, 'save_uncertainty')


def check_options(opt):
    """Refuses options that cannot work together, and data that does not fit them.

    Args:
        opt (dict): As BasicSR's `parse_options` returns it.

    Raises:
        InputError: names the key or the path and says what to do.
    """
    _check_scale(opt)
    if opt.get('model_type') == 'UDLModel':
        for key in opt.get('val') or {}:
            if key not in UDL_VAL_KEYS:
                raise InputError(f"val: '{key}' is read by nobody{did_you_mean(key, UDL_VAL_KEYS)}. "
                                 f"With model_type: UDLModel these are: {', '.join(UDL_VAL_KEYS)}.")
    for phase, dataset in opt['datasets'].items():
        if dataset.get('type') == 'PairedImageDataset':
            check_pairs(dataset, f'datasets: {phase}')


def _check_scale(opt):
    upscale = _upscale(opt['network_g'])
    if upscale is None or opt.get('scale') == upscale:
        return
    if opt.get('scale') is None:
        raise InputError(f'scale: is missing; network_g has upscale: {upscale}, so write scale: {upscale}.')
    raise InputError(f"scale: {opt['scale']} does not agree with network_g: upscale: {upscale}; "
                     'make both the scale of the data.')


def _upscale(network_opt):
    """The network's scale, written or its class's default; None where its class has no such option."""
    from basicsr.utils.registry import ARCH_REGISTRY
    if 'upscale' in network_opt or network_opt['type'] not in ARCH_REGISTRY:
        return network_opt.get('upscale')
    parameter = inspect.signature(ARCH_REGISTRY.get(network_opt['type'])).parameters.get('upscale')
    return None if parameter is None or parameter.default is parameter.empty else parameter.default
