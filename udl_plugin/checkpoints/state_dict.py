"""Reads network checkpoints safely, says why one does not fit, and writes them whole."""
import hashlib
import io
from collections import OrderedDict
from pathlib import Path

import torch

from udl_plugin.checkpoints.safe_load import from_mmengine, is_mmengine_checkpoint, load_checkpoint
from udl_plugin.errors import UserError
from udl_plugin.utils.atomic_io import atomic_write
from udl_plugin.utils.plain import to_builtins


def read_state_dict(path, param_key='params'):
    """Reads the state dict of a network from a file that BasicSR wrote, or mmengine with our model.

    Args:
        path (str): `.pth` file: a dict that holds a state dict under each of its keys, usually `params` and, from
            training with EMA, `params_ema`.
        param_key (str | None): Which of them; `params` is taken where `params_ema` is absent, as BasicSR does. None:
            the file is a state dict itself.

    Returns:
        tuple[dict, str]: Name to tensor (on the CPU, without DataParallel's `module.`), and the key it was found under.

    Raises:
        UserError: no such file, not a checkpoint, one that needs more than tensors, or without that key.
    """
    return _under(load_checkpoint(path), path, param_key)


def _under(content, path, param_key):
    if param_key is not None:
        keys = list(content) if isinstance(content, dict) else []
        if param_key == 'params_ema' and param_key not in keys and 'params' in keys:
            param_key = 'params'
        if param_key not in keys:
            raise UserError(f"'{path}' has no '{param_key}' (it has: {_first_names(keys)}); name the right one as path: "
                             'param_key_g, or null where the file is a state dict itself.')
        content = content[param_key]
    return ensure_state_dict(content, path, param_key), param_key


def ensure_state_dict(content, path, param_key):
    """Checks that it is one, name to tensor, and returns it without DataParallel's `module.`; `path` is for the error.
    """
    if not isinstance(content, dict) or not content or not all(
            isinstance(name, str) and torch.is_tensor(value) for name, value in content.items()):
        where = f", under '{param_key}'" if param_key else ''
        raise UserError(f"'{path}' holds no state dict, name to tensor{where}.")
    return {name[7:] if name.startswith('module.') else name: value for name, value in content.items()}


def load_matching_state_dict(net, path, param_key='params', strict=True):
    """Reads the state dict for `net` from a checkpoint and makes sure that it fits.

    Args:
        net (nn.Module): One with `expand` (a `TwoStep`) also takes a checkpoint of step 1, for both branches, and
            always all of it: a step 2 that weighs by a half-loaded network would be nonsense.
        path, param_key: As in `read_checkpoint`.
        strict (bool): False: what does not fit is the caller's to drop.

    Returns:
        tuple[dict, str, str]: What `net.load_state_dict` takes, the key it was found under, and what does not fit.

    Raises:
        UserError: names the option, the file and the mismatch.
    """
    option = 'path: pretrain_network_g'
    try:
        content = load_checkpoint(path)
        return match_state_dict(net, content, path, param_key, strict)
    except UserError as err:
        first = '' if Path(path).exists() or not hasattr(net, 'expand') else \
            ' Train step 1 first, or name its checkpoint.'
        raise UserError(f'{option}: {err}{first}') from err.__cause__


def match_state_dict(net, content, path, param_key='params', strict=True, option='network_g'):
    """As `load_matching_state_dict`, of a checkpoint that is read already, in BasicSR's layout or mmengine's.

    Args:
        option (str): What says what `net` is, for errors.
    """
    content = from_mmengine(content) if is_mmengine_checkpoint(content) else content
    state_dict, found_key = _under(content, path, param_key)
    two_step = hasattr(net, 'expand')
    if two_step:
        state_dict = net.expand(state_dict)
    mismatch = describe_mismatch(net, state_dict)
    if not mismatch:
        return state_dict, found_key, ''
    own = net.state_dict()
    nothing_fits = not any(name in own and own[name].shape == value.shape for name, value in state_dict.items())
    if strict or two_step or nothing_fits:
        if not two_step and any(name.startswith('sr_net.') for name in state_dict):
            advice = ('It is of step 2: write the type of step 2, such as EDSRTwo, or take its plain network out of it '
                      'with udl-convert.')
        elif two_step and not any('var_conv.' in name for name in state_dict):
            advice = 'It has no variance head: name a checkpoint of step 1 (such as EDSRVar trained with ESU).'
        elif two_step:
            advice = 'Both steps need the same network.'
        else:
            advice = f'Set its options in {option}' + (
                '.' if nothing_fits or option != 'network_g' else ', or strict_load_g: false to load what fits.')
        said = content.get('network_g')
        told = f' The file says that it is of: {said}.' if isinstance(said, dict) else ''
        raise UserError(f"'{path}' does not fit {option}: {type(net).__name__}: {mismatch}.{told} {advice}")
    return state_dict, found_key, mismatch


def describe_mismatch(net, state_dict):
    """Says why `net.load_state_dict(state_dict)` would fail.

    Networks with `options_from_weights(state_dict)` are compared by their options, others by names and shapes.

    Returns:
        str: What differs; empty where nothing does.
    """
    own = net.state_dict()
    missing = sorted(own.keys() - state_dict.keys())
    unknown = sorted(state_dict.keys() - own.keys())
    other_shape = [name for name in own if name in state_dict and own[name].shape != state_dict[name].shape]
    if not (missing or unknown or other_shape):
        return ''
    if hasattr(net, 'options_from_weights'):
        wanted, found = net.options_from_weights(own), net.options_from_weights(state_dict)
        if found is not None and found != wanted:
            return 'it has ' + ', '.join(f'{name}: {found[name]} (network_g: {wanted[name]})'
                                         for name in wanted if found[name] != wanted[name])
    kinds = (('missing', missing), ('unknown', unknown), ('of another shape', other_shape))
    return 'tensors ' + ', '.join(f'{kind}: {len(names)} ({_first_names(names)})' for kind, names in kinds if names)


def _first_names(names):
    return ', '.join(map(str, names[:3])) + (', ...' if len(names) > 3 else '')


def fingerprint(state_dict):
    """A text that two state dicts share if they hold the same values, as float32, under the same names."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        digest.update(name.encode() + state_dict[name].detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(path, state_dicts, network_g):
    """Writes a checkpoint that BasicSR reads, and that says what network it is of.

    Args:
        path (str | Path): A `.pth` file; it is there when it is whole.
        state_dicts (dict): Under which key, such as `params` and `params_ema`, which state dict.
        network_g (dict): The section of the yml that builds the network. It goes under that name beside them, and into
            the metadata that torch keeps with each state dict, for tools that hand on the state dict alone.
    """
    network_g = to_builtins(network_g)
    content = {'network_g': network_g}
    for key, state_dict in state_dicts.items():
        content[key] = OrderedDict((name, value.detach().cpu().contiguous()) for name, value in state_dict.items())
        content[key]._metadata = OrderedDict({'': {'version': 1, 'network_g': network_g}})
    buffer = io.BytesIO()
    torch.save(content, buffer)
    atomic_write(Path(path), buffer.getvalue())
