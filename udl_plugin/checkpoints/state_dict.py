"""Reads the state dict of a network, explains why it does not fit, and writes checkpoints atomically."""
from __future__ import annotations

import hashlib
import io
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import get_root_logger

from udl_plugin.archs.build import with_defaults
from udl_plugin.archs.wrapping import base_config, network_stage
from udl_plugin.checkpoints.safe_load import PathLike, load_checkpoint
from udl_plugin.errors import UserError, truncate_repr
from udl_plugin.utils.atomic_io import atomic_write
from udl_plugin.utils.plain import to_builtins
from udl_plugin.utils.user_imports import get_imported

StateDict = dict[str, torch.Tensor]
DEFAULT_KEY = 'params_ema'  # the moving average, which validation used; where there is none, `params`
# options of a network that do not change its output: they save memory, or act in training only, as dropout does
COST_ONLY = re.compile('checkpoint|drop')


def read_state_dict(path: PathLike, param_key: str | None = DEFAULT_KEY) -> tuple[StateDict, str | None]:
    """Reads the state dict of a network from a checkpoint of BasicSR, or of mmengine with our model.

    Args:
        path: `.pth` file with a state dict under `params` and, from training with EMA, `params_ema`.
        param_key: Which of them. `params` is used if `params_ema` is absent, as in BasicSR. None: the file is a state
            dict itself.

    Returns:
        Name to tensor, on the CPU, under the network's own names (see `ensure_state_dict`); and the key that it was
        found under.

    Raises:
        UserError: see `load_tensors_only`; or the file has no such key, or no state dict there.
    """
    return _get_state_dict(load_checkpoint(path), path, param_key)


def _get_state_dict(content: Any, path: PathLike, param_key: str | None) -> tuple[StateDict, str | None]:
    if param_key is not None:
        keys = list(content) if isinstance(content, dict) else []
        if param_key == DEFAULT_KEY and param_key not in keys:
            param_key = 'params'
        if param_key not in keys:
            raise UserError(f"'{path}' has no '{param_key}' (it has: {_first_names(keys)}). Set path.param_key_g to "
                            'one of these, or to null if the file is a state dict itself.')
        content = content[param_key]
    return ensure_state_dict(content, path, param_key), param_key


def ensure_state_dict(content: Any, path: PathLike, param_key: str | None) -> StateDict:
    """Returns `content` without DataParallel's `module.` and torch.compile's `_orig_mod.` in the names.

    Raises:
        UserError: it is not a state dict, names to tensors; names the file and the key.
    """
    if not isinstance(content, dict) or not content or not all(
            isinstance(name, str) and torch.is_tensor(value) for name, value in content.items()):
        where = f" under '{param_key}'" if param_key else ''
        raise UserError(f"'{path}' holds no state dict (names to tensors){where}.")
    return {name.replace('_orig_mod.', '').removeprefix('module.'): value for name, value in content.items()}


def load_matching_state_dict(net: torch.nn.Module, path: PathLike, param_key: str | None = DEFAULT_KEY,
                             strict: bool = True, read: Callable[[PathLike], Any] = load_checkpoint,
                             network_g: Mapping[str, Any] | None = None, resumed: bool = False
                             ) -> tuple[StateDict, str | None, str]:
    """Reads the checkpoint of `path.pretrain_network_g` and matches it with `net`; see `match_state_dict`.

    Args:
        read: What reads the file. To match several networks with one file, pass a caching one, such as
            `functools.lru_cache(load_checkpoint)`.
        network_g: Config of `net`, to be compared with the one that the file records.
        resumed: The file belongs to the training state of `path.resume_state`; then step 2 accepts none of step 1.

    Raises:
        UserError: names the option, the file, and the mismatch or contradiction. Without `strict`, a contradiction is
            logged instead.
    """
    try:
        content = read(path)
        if resumed:
            _check_stage(net, _get_state_dict(content, path, param_key)[0], path)
        result = match_state_dict(net, content, path, param_key, strict)
        contradiction = network_g and describe_contradiction(content.get('network_g'), network_g)
        if contradiction and strict:
            raise UserError(f"'{path}' {contradiction}. Write what it was trained with, or path.strict_load_g: false "
                            'to load it anyway.')
        if contradiction:
            get_root_logger().warning(f"'{path}' {contradiction}. Loaded anyway: path.strict_load_g is false.")
        return result
    except UserError as err:
        option = 'path.resume_state' if resumed else 'path.pretrain_network_g'
        hint = ' Train step 1 first, or name its checkpoint.' if hasattr(net, 'expand') and not (
            resumed or Path(path).exists()) else ''
        raise UserError(f'{option}: {err}{hint}') from err.__cause__


def _check_stage(net: torch.nn.Module, state_dict: StateDict, path: PathLike) -> None:
    found, own = network_stage(state_dict), network_stage(net.state_dict())
    if found != own:
        raise UserError(f"'{path}' has the stage {found}, and network_g: {type(net).__name__} the stage {own}; a "
                        'resume continues the same network. To start a new training from it, write another name and '
                        f'path.pretrain_network_g: {path}, and do not resume.')


def match_state_dict(net: torch.nn.Module, content: Any, path: PathLike, param_key: str | None = DEFAULT_KEY,
                     strict: bool = True, option: str = 'network_g') -> tuple[StateDict, str | None, str]:
    """Finds the state dict for `net` in a checkpoint that `load_checkpoint` read.

    Args:
        net: A `TwoStep` also accepts a step-1 checkpoint, for both branches. It must match completely, whatever
            `strict` says: weights from a partly loaded network would be meaningless.
        content: Of BasicSR's layout.
        path: For messages.
        param_key: As in `read_state_dict`.
        strict: False: return what does not fit as well; the caller drops it.
        option: Key of the config of `net`, for messages.

    Returns:
        What `net.load_state_dict` takes; the key that it was found under; what does not fit, or an empty string.

    Raises:
        UserError: names the file and the mismatch, and says what to change.
    """
    state_dict, found_key = _get_state_dict(content, path, param_key)
    expand = getattr(net, 'expand', None)  # of a TwoStep
    if expand is not None:
        state_dict = expand(state_dict)
    mismatch = describe_mismatch(net, state_dict)
    own = net.state_dict()
    nothing_fits = not any(name in own and own[name].shape == value.shape for name, value in state_dict.items())
    if not mismatch or not (strict or expand is not None or nothing_fits):
        return state_dict, found_key, mismatch
    if expand is None and any(name.startswith('sr_net.') for name in state_dict):
        advice = (f'It is a checkpoint of step 2: set {option}.type to a step-2 network, such as EDSRTwo, or extract '
                  'its base network with udl-convert.')
    elif expand is None:
        advice = f'Set the same options in {option}' + (
            '.' if nothing_fits or option != 'network_g' else ', or path.strict_load_g: false to load only what fits.')
    elif any('var_conv.' in name for name in state_dict):
        advice = 'Both steps require the same network.'
    else:
        advice = 'It has no variance head: name a checkpoint of step 1 (such as EDSRVar trained with ESU).'
    declared = content.get('network_g')
    written_for = f' The file was written for {declared}.' if isinstance(declared, dict) else ''
    raise UserError(f"'{path}' does not fit {option}: {type(net).__name__}: {mismatch}.{written_for} {advice}")


def describe_mismatch(net: torch.nn.Module, state_dict: Mapping[str, torch.Tensor]) -> str:
    """Describes why `net.load_state_dict(state_dict)` would fail; returns an empty string if it would not.

    Networks with `options_from_weights(state_dict)` are compared by their options, others by names and shapes.
    """
    own = net.state_dict()
    groups = {'missing': sorted(own.keys() - state_dict.keys()), 'unknown': sorted(state_dict.keys() - own.keys()),
              'of another shape': [name for name in own
                                   if name in state_dict and own[name].shape != state_dict[name].shape]}
    if not any(groups.values()):
        return ''
    get_options: Any = getattr(net, 'options_from_weights', lambda _: None)
    expected, found = get_options(own), get_options(state_dict)
    if found is not None and found != expected:
        return 'it has ' + ', '.join(f'{name}: {found[name]} (network_g: {expected[name]})'
                                     for name in expected if found[name] != expected[name])
    return 'tensors ' + ', '.join(f'{what}: {len(names)} ({_first_names(names)})'
                                  for what, names in groups.items() if names)


def describe_contradiction(recorded: Any, network_g: Mapping[str, Any], source: str = 'the yml') -> str:
    """Describes where `network_g` contradicts the config that a checkpoint records; an empty string if it does not.

    Weights of the right shapes give other images if `res_scale`, `img_range` or `rgb_mean` changed. Base networks are
    compared, with the defaults of their class, because step 2 starts from step 1; and `features` where both name it.

    Args:
        recorded: Not trusted; nothing is compared if it is no config.
        network_g: Of the network that takes the weights.
        source: Where that is from, for the message.
    """
    old, new = (base_config(config) if isinstance(config, Mapping) else None for config in (recorded, network_g))
    if not isinstance(old, Mapping) or not isinstance(new, Mapping) or not isinstance(old.get('type'), str):
        return ''
    if old['type'] == new['type']:
        old, new = to_builtins(with_defaults(old)), to_builtins(with_defaults(new))
    else:
        old, new = {'type': old['type']}, {'type': new['type']}
    where = 'network_g.backbone' if 'backbone' in network_g else 'network_g'
    pairs = [(f'{where}.{key}', old[key], new[key]) for key in new if key in old and not COST_ONLY.search(key)]
    features = recorded.get('features'), network_g.get('features')
    if all(isinstance(name, str) for name in features):
        pairs.append(('network_g.features', *features))
    found = [f'{key}: {truncate_repr(one)}, {source} has {truncate_repr(other)}' for key, one, other in pairs
             if _differ(one, other)]
    return f'was trained with {"; ".join(found)}' if found else ''


def _differ(one: Any, other: Any) -> bool:
    try:
        return bool(one != other)
    except (RuntimeError, TypeError, ValueError):  # a file may record a tensor, which has no single answer
        return True


def _first_names(names: Sequence[Any]) -> str:
    return ', '.join(map(str, names[:3])) + (', ...' if len(names) > 3 else '')


def fingerprint(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Hash of the names and of the values as float32."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        digest.update(name.encode() + state_dict[name].detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(path: PathLike, state_dicts: Mapping[str, Mapping[str, torch.Tensor]],
                    network_g: Mapping[str, Any], uncertainty_loss: str | None = None,
                    error_scale: float = 1.0) -> None:
    """Writes, atomically, a checkpoint that BasicSR can read and that records which network it holds.

    Args:
        path: A `.pth` file.
        state_dicts: Key, such as `params` and `params_ema`, to state dict.
        network_g: Config of the network. It is stored under that key, and in the metadata that PyTorch keeps with each
            state dict, for tools that pass on only the state dict.
        uncertainty_loss: Registered name of the loss that the variance head was trained with, such as `ESU`; of a
            step-2 network, in step 1. It is stored under that key; `udl_plugin.load` reads it.
        error_scale: Factor on the expected error, from a calibration; likewise.
    """
    network_g = to_builtins(network_g)
    content: dict[str, Any] = {'network_g': network_g}
    if uncertainty_loss is not None:
        content['uncertainty_loss'] = uncertainty_loss
    if error_scale != 1:
        content['error_scale'] = error_scale
    if get_imported():
        content['imports'] = get_imported()  # for the error of a reader, which never imports them
    for key, state_dict in state_dicts.items():
        content[key] = OrderedDict((name, value.detach().cpu().contiguous()) for name, value in state_dict.items())
        content[key]._metadata = OrderedDict({'': {'version': 1, 'network_g': network_g}})
    buffer = io.BytesIO()
    torch.save(content, buffer)
    atomic_write(Path(path), buffer.getvalue())


def get_uncertainty_loss(content: Any) -> str | None:
    """The loss that a checkpoint records for its variance head (see `save_checkpoint`); None if it records none."""
    name = content.get('uncertainty_loss') if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


def get_error_scale(content: Any) -> float:
    """The factor on the expected error that a checkpoint records (see `save_checkpoint`); 1 if it records none."""
    try:
        scale = float(content['error_scale'])
    except (KeyError, TypeError, ValueError):
        return 1.0
    return scale if scale > 0 and math.isfinite(scale) else 1.0
