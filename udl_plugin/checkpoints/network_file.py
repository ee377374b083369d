"""Networks in files, whoever wrote them: what network it is, and the same one in another form.

A file of ours says what network it holds. Of others, the weights tell the kind and the shape of an EDSR or DPDNN; what
they cannot tell is said to be assumed.
"""
import functools
import inspect
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from udl_plugin.archs.build import build_network, get_network_class, no_larger_than, probe_shapes, with_defaults
from udl_plugin.archs.dpdnn_arch import infer_dpdnn_config
from udl_plugin.archs.edsr_arch import infer_edsr_config
from udl_plugin.archs.wrapping import base_config, base_state_dict, network_stage, wrapped_config
from udl_plugin.checkpoints.reference_names import REFERENCE_CONFIG, from_reference, is_reference
from udl_plugin.checkpoints.safe_load import DTYPES, load_checkpoint
from udl_plugin.checkpoints.state_dict import describe_mismatch, ensure_state_dict
from udl_plugin.errors import UserError, check_kwargs, truncate_repr
from udl_plugin.utils.packages import import_optional
from udl_plugin.utils.plain import to_builtins

KEYS = ('params_ema', 'params', 'state_dict', 'model')  # where a state dict may be, the first that is there
# options with which a network reads another file when it is built
READS_FILES = re.compile(r'(^|_)(paths?|files?|pretrain\w*|url|weights|ckpt|load)(_|$)')
SHAPES = {'EDSR': infer_edsr_config, 'DPDNN': infer_dpdnn_config}  # what weights tell


@dataclass
class NetworkFile:
    """A network in memory, as a file holds it.

    Attributes:
        state_dict (dict): Name to tensor, under our names.
        network_g (dict): The section of a yml that builds it.
        notes (list[str]): What a user should know: what was assumed, what was left out.
    """

    state_dict: dict
    network_g: dict
    notes: list = field(default_factory=list)

    @property
    def stage(self):
        """`plain`, `step 1` or `step 2`."""
        return network_stage(self.state_dict)

    def build(self):
        """Returns the network with its weights, in eval mode on the CPU.

        Raises:
            UserError: the weights are not of `network_g`.
        """
        net = build_network(self.network_g)
        mismatch = describe_mismatch(net, self.state_dict)
        if mismatch:
            raise UserError(f'the weights do not fit network_g: {self.network_g}: {mismatch}.')
        net.load_state_dict(self.state_dict)
        return net.eval()

    @functools.cached_property
    def channels_and_scale(self):
        """Those of its images, found by running it once.

        Raises:
            UserError: it cannot be built or run, or makes an image of other channels.
        """
        lq, sr = probe_shapes(self.build())
        if lq[1] != sr[1]:
            raise UserError(f'its network makes an image of {sr[1]} channels of one of {lq[1]}.')
        return lq[1], sr[2] // lq[2]

    def plain(self):
        """The plain SR network in it."""
        return NetworkFile(base_state_dict(self.state_dict), base_config(self.network_g), self.notes)


# ---- in

def load_network_file(path, param_key=None, network_g=None):
    """Reads the network in a file: one of ours, of BasicSR's, of the authors', or safetensors.

    Args:
        path (str | Path): Nothing in it is executed.
        param_key (str): The key of the state dict in it; without it the first of `KEYS` that is there, or the file
            itself.
        network_g (dict): The section of a yml that says what the weights do not; for files that do not either.

    Returns:
        Model: of the kind that is in the file.

    Raises:
        UserError: not a file of tensors, no state dict, or no network that can be told.
    """
    content, said = _load(path)
    if param_key is None:
        keys = [key for key in KEYS if isinstance(content, dict) and isinstance(content.get(key), dict)]
        param_key = keys[0] if keys else None
    elif not isinstance(content, dict) or param_key not in content:
        keys = ', '.join(key for key in content if isinstance(key, str)) if isinstance(content, dict) else 'no keys'
        raise UserError(f"'{path}' has no '{param_key}'; it has: {keys}.")
    state_dict = ensure_state_dict(content if param_key is None else content[param_key], path, param_key)
    for name, value in state_dict.items():
        if value.layout is not torch.strided or not torch.isfinite(value).all():
            raise UserError(f"'{path}': {name} has values that are no finite numbers.")
    notes = [f"'{path}': params_ema is taken, the moving average; --param-key params takes the other."] \
        if param_key == 'params_ema' and 'params' in content else []
    if is_reference(state_dict):
        state_dict, left_out = from_reference(state_dict, path)
        said, notes = REFERENCE_CONFIG, notes + left_out
    try:
        model = identify_network(state_dict, said, network_g)
        _ = model.channels_and_scale  # or what is wrong with it
    except UserError as err:
        raise UserError(f"'{path}': {err}") from err
    model.notes = notes + model.notes
    return model


def identify_network(state_dict, said=None, network_g=None):
    """The `Model` of a state dict.

    Args:
        state_dict (dict): Name to tensor, under our names.
        said (dict): The section of a yml that a file says its network is; as a stranger may have written it.
        network_g (dict): Such a section from the user, instead.

    Raises:
        UserError: it cannot be told what network it is, or the section does not fit.
    """
    notes = []
    if network_g is None and said is not None:
        _check_said(said, state_dict)
        section = _section(state_dict, said, notes)
        with no_larger_than(4 * len(state_dict) + 100, 4 * sum(map(torch.numel, state_dict.values())) + 10 ** 6):
            build_network(base_config(section))
        return NetworkFile(state_dict, section, notes)
    return NetworkFile(state_dict, _section(state_dict, network_g, notes), notes)


def _load(path):
    """The content of a file, and what it says about its network: a dict, or None."""
    if Path(path).suffix != '.safetensors':
        content = load_checkpoint(path)
        return content, content.get('network_g') if isinstance(content, dict) else None
    safe_open = import_optional('safetensors').safe_open
    try:
        with safe_open(path, 'pt') as file:
            said = (file.metadata() or {}).get('network_g')
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if any(tensor.dtype not in DTYPES for tensor in tensors.values()):
                raise ValueError('a tensor is of a kind that no network of ours has')
            return tensors, json.loads(said) if said else None
    except FileNotFoundError:
        raise UserError(f"there is no file '{path}'.") from None
    except Exception as err:  # SafetensorError, JSONDecodeError and others
        raise UserError(f"'{path}' cannot be read as safetensors ({type(err).__name__}: {err}).") from err


def _check_said(said, state_dict):
    """Checks the `network_g` recorded in a checkpoint, which may come from a stranger: any registered network is
    accepted, but no option that makes its constructor read another file, and no size its weights cannot have."""
    plain = base_config(said) if isinstance(said, dict) else None
    if not isinstance(plain, dict) or 'type' not in plain:
        raise UserError(f'network_g: {truncate_repr(said)} has no type.')
    get_network_class(plain['type'], 'network_g: ')
    for key, value in plain.items():
        reads_file = READS_FILES.search(str(key)) or (isinstance(value, str) and re.search(r"[/\\]", value))
        if key != 'type' and value and reads_file:
            raise UserError(f"network_g: {key}: {truncate_repr(value)} would read another file. If you trust it, pass the "
                             'network\'s yml: --opt FILE.yml.')
    most = max(255, len(state_dict), *(size for value in state_dict.values() if value.numel() for size in value.shape))
    for key, value in plain.items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, (list, tuple, dict)) or (isinstance(item, int) and item > most):
                raise UserError(f'network_g: {key}: {str(value)[:80]} is more than its weights can have.')


def _check_values(plain):
    """Refuses values that are of another kind than the network's own defaults, and numbers that are not finite."""
    cls = get_network_class(plain['type'], 'network_g: ')
    check_kwargs(cls, plain.keys() - {'type'}, 'network_g: ')
    for name, parameter in inspect.signature(cls).parameters.items():
        default = parameter.default
        if name not in plain or default is None:
            continue
        value = plain[name]
        if default is parameter.empty:  # ECBSR has no defaults at all
            fits, kind = isinstance(value, (bool, str)) or _is_number(value), 'a number, a name, true or false'
        elif isinstance(default, (bool, str)):
            fits, kind = isinstance(value, type(default)), {bool: 'true or false', str: 'a name'}[type(default)]
        elif isinstance(default, (int, float)):
            fits, kind = _is_number(value), 'a number'
        elif isinstance(default, (list, tuple)):
            fits, kind = isinstance(value, (list, tuple)) and all(map(_is_number, value)), 'a list of numbers'
        else:
            fits, kind = False, 'left out'
        if not fits:
            raise UserError(f'network_g: {name}: {value!r} must be {kind}.')


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _section(state_dict, said, notes):
    """The section of the yml for a state dict: its shape from the weights where they tell, the rest as `said`."""
    read = {name: shape for name, shape in ((name, read(state_dict)) for name, read in SHAPES.items()) if shape}
    if said is None:
        if not read:
            raise UserError('its weights are neither an EDSR nor a DPDNN, and it does not say what they are; name the '
                             'yml that it was trained with: --opt FILE.yml.')
        name, shape = next(iter(read.items()))
        assumed = {key: value for key, value in with_defaults({'type': name}).items()
                   if key not in (*shape, 'type', 'checkpointing')}
        notes.append(f'it does not say {", ".join(assumed)}, and weights cannot tell: taken for {name} are '
                     + ', '.join(f'{key}: {to_builtins(value)}' for key, value in assumed.items())
                     + '. If it was trained otherwise, name its yml: --opt FILE.yml.')
        return wrapped_config(network_stage(state_dict), {'type': name, **shape})
    plain = base_config(said)
    if not isinstance(plain, dict) or 'type' not in plain:
        raise UserError('network_g: type: is missing.')
    _check_values(plain)
    shape = read.get(plain['type'], {})
    wrong = [f'{key}: {value} (network_g: {plain[key]})' for key, value in shape.items()
             if key in plain and plain[key] != value]
    if wrong:
        raise UserError(f'its weights have {", ".join(wrong)}.')
    return wrapped_config(network_stage(state_dict), {**plain, **shape}, said.get('features'))
