"""Networks in files, whoever wrote them: what network it is, and the same one in another form.

A file of ours says what network it holds. Of others, the weights tell the kind and the shape of an EDSR or DPDNN; what
they cannot tell is said to be assumed.
"""
import contextlib
import functools
import importlib
import inspect
import io
import json
import math
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch

from udl_plugin.archs.dpdnn_arch import dpdnn_options
from udl_plugin.archs.edsr_arch import edsr_options
from udl_plugin.archs.with_variance import arch_class, build, no_larger_than, run_small
from udl_plugin.authors import AUTHORS, from_authors, is_authors, to_authors
from udl_plugin.checkpoints import (
    DTYPES,
    as_plain_data,
    as_state_dict,
    branch,
    explain_mismatch,
    load_tensors,
    sr_state_dict,
    write_checkpoint,
)
from udl_plugin.errors import InputError, check_option_names, shortened
from udl_plugin.files import write_whole
from udl_plugin.sections import plain_section, section_of

RANGE = 'RGB in [0, 1], float32'
CHECKED_SIZES = ((17, 40), (33, 16))  # of LR images; another than the exporter sees
SUFFIXES = ('.pth', '.pt', '.safetensors', '.onnx')
KEYS = ('params_ema', 'params', 'state_dict', 'model')  # where a state dict may be, the first that is there
# options with which a network reads another file when it is built
READS_FILES = re.compile(r'(^|_)(paths?|files?|pretrain\w*|url|weights|ckpt|load)(_|$)')
SHAPES = {'EDSR': edsr_options, 'DPDNN': dpdnn_options}  # what weights tell


@dataclass
class Model:
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
    def kind(self):
        """`plain`, `step 1` or `step 2`."""
        return kind_of(self.state_dict)

    def build(self):
        """Returns the network with its weights, in eval mode on the CPU.

        Raises:
            InputError: the weights are not of `network_g`.
        """
        net = build(self.network_g)
        mismatch = explain_mismatch(net, self.state_dict)
        if mismatch:
            raise InputError(f'the weights do not fit network_g: {self.network_g}: {mismatch}.')
        net.load_state_dict(self.state_dict)
        return net.eval()

    @functools.cached_property
    def channels_and_scale(self):
        """Those of its images, found by running it once.

        Raises:
            InputError: it cannot be built or run, or makes an image of other channels.
        """
        lq, sr = run_small(self.build())
        if lq[1] != sr[1]:
            raise InputError(f'its network makes an image of {sr[1]} channels of one of {lq[1]}.')
        return lq[1], sr[2] // lq[2]

    def plain(self):
        """The plain SR network in it."""
        return Model(sr_state_dict(self.state_dict), plain_section(self.network_g), self.notes)


def kind_of(state_dict):
    if branch(state_dict, 'sr_net'):
        return 'step 2'
    return 'step 1' if branch(state_dict, 'var_conv') else 'plain'


# ---- in

def read_model(path, param_key=None, network_g=None):
    """Reads the network in a file: one of ours, of BasicSR's, of the authors', or safetensors.

    Args:
        path (str | Path): Nothing in it is executed.
        param_key (str): The key of the state dict in it; without it the first of `KEYS` that is there, or the file
            itself.
        network_g (dict): The section of a yml that says what the weights do not; for files that do not either.

    Returns:
        Model: of the kind that is in the file.

    Raises:
        InputError: not a file of tensors, no state dict, or no network that can be told.
    """
    content, said = _load(path)
    if param_key is None:
        keys = [key for key in KEYS if isinstance(content, dict) and isinstance(content.get(key), dict)]
        param_key = keys[0] if keys else None
    elif not isinstance(content, dict) or param_key not in content:
        keys = ', '.join(key for key in content if isinstance(key, str)) if isinstance(content, dict) else 'no keys'
        raise InputError(f"'{path}' has no '{param_key}'; it has: {keys}.")
    state_dict = as_state_dict(content if param_key is None else content[param_key], path, param_key)
    for name, value in state_dict.items():
        if value.layout is not torch.strided or not torch.isfinite(value).all():
            raise InputError(f"'{path}': {name} has values that are no finite numbers.")
    notes = [f"'{path}': params_ema is taken, the moving average; --param-key params takes the other."] \
        if param_key == 'params_ema' and 'params' in content else []
    if is_authors(state_dict):
        state_dict, left_out = from_authors(state_dict, path)
        said, notes = AUTHORS, notes + left_out
    try:
        model = model_of(state_dict, said, network_g)
        _ = model.channels_and_scale  # or what is wrong with it
    except InputError as err:
        raise InputError(f"'{path}': {err}") from err
    model.notes = notes + model.notes
    return model


def model_of(state_dict, said=None, network_g=None):
    """The `Model` of a state dict.

    Args:
        state_dict (dict): Name to tensor, under our names.
        said (dict): The section of a yml that a file says its network is; as a stranger may have written it.
        network_g (dict): Such a section from the user, instead.

    Raises:
        InputError: it cannot be told what network it is, or the section does not fit.
    """
    notes = []
    if network_g is None and said is not None:
        _check_said(said, state_dict)
        section = _section(state_dict, said, notes)
        with no_larger_than(4 * len(state_dict) + 100, 4 * sum(map(torch.numel, state_dict.values())) + 10 ** 6):
            build(plain_section(section))
        return Model(state_dict, section, notes)
    return Model(state_dict, _section(state_dict, network_g, notes), notes)


def _load(path):
    """The content of a file, and what it says about its network: a dict, or None."""
    if Path(path).suffix != '.safetensors':
        content = load_tensors(path)
        return content, content.get('network_g') if isinstance(content, dict) else None
    safe_open = _package('safetensors').safe_open
    try:
        with safe_open(path, 'pt') as file:
            said = (file.metadata() or {}).get('network_g')
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if any(tensor.dtype not in DTYPES for tensor in tensors.values()):
                raise ValueError('a tensor is of a kind that no network of ours has')
            return tensors, json.loads(said) if said else None
    except FileNotFoundError:
        raise InputError(f"there is no file '{path}'.") from None
    except Exception as err:  # SafetensorError, JSONDecodeError and others
        raise InputError(f"'{path}' cannot be read as safetensors ({type(err).__name__}: {err}).") from err


def _check_said(said, state_dict):
    """Checks the `network_g` recorded in a checkpoint, which may come from a stranger: any registered network is
    accepted, but no option that makes its constructor read another file, and no size its weights cannot have."""
    plain = plain_section(said) if isinstance(said, dict) else None
    if not isinstance(plain, dict) or 'type' not in plain:
        raise InputError(f'network_g: {shortened(said)} has no type.')
    arch_class(plain['type'], 'network_g: ')
    for key, value in plain.items():
        reads_file = READS_FILES.search(str(key)) or (isinstance(value, str) and re.search(r"[/\\]", value))
        if key != 'type' and value and reads_file:
            raise InputError(f"network_g: {key}: {shortened(value)} would read another file. If you trust it, pass the "
                             'network\'s yml: --opt FILE.yml.')
    most = max(255, len(state_dict), *(size for value in state_dict.values() if value.numel() for size in value.shape))
    for key, value in plain.items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, (list, tuple, dict)) or (isinstance(item, int) and item > most):
                raise InputError(f'network_g: {key}: {str(value)[:80]} is more than its weights can have.')


def _check_values(plain):
    """Refuses values that are of another kind than the network's own defaults, and numbers that are not finite."""
    cls = arch_class(plain['type'], 'network_g: ')
    check_option_names(cls, plain.keys() - {'type'}, 'network_g: ')
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
            raise InputError(f'network_g: {name}: {value!r} must be {kind}.')


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _section(state_dict, said, notes):
    """The section of the yml for a state dict: its shape from the weights where they tell, the rest as `said`."""
    read = {name: shape for name, shape in ((name, read(state_dict)) for name, read in SHAPES.items()) if shape}
    if said is None:
        if not read:
            raise InputError('its weights are neither an EDSR nor a DPDNN, and it does not say what they are; name the '
                             'yml that it was trained with: --opt FILE.yml.')
        name, shape = next(iter(read.items()))
        assumed = {key: value for key, value in complete({'type': name}).items()
                   if key not in (*shape, 'type', 'checkpointing')}
        notes.append(f'it does not say {", ".join(assumed)}, and weights cannot tell: taken for {name} are '
                     + ', '.join(f'{key}: {as_plain_data(value)}' for key, value in assumed.items())
                     + '. If it was trained otherwise, name its yml: --opt FILE.yml.')
        return section_of(kind_of(state_dict), {'type': name, **shape})
    plain = plain_section(said)
    if not isinstance(plain, dict) or 'type' not in plain:
        raise InputError('network_g: type: is missing.')
    _check_values(plain)
    shape = read.get(plain['type'], {})
    wrong = [f'{key}: {value} (network_g: {plain[key]})' for key, value in shape.items()
             if key in plain and plain[key] != value]
    if wrong:
        raise InputError(f'its weights have {", ".join(wrong)}.')
    return section_of(kind_of(state_dict), {**plain, **shape}, said.get('features'))


def complete(network_g):
    """`network_g` of a plain network with the defaults that it leaves out."""
    parameters = inspect.signature(arch_class(network_g['type'])).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()
                if parameter.default is not parameter.empty}
    return {**defaults, **network_g}


# ---- out

def write_model(path, model, layout='plain'):
    """Writes a network in the form that the suffix of `path` says; it is there when it is whole.

    Args:
        path (str | Path): `.pth` or `.pt` for BasicSR, `.safetensors`, `.onnx`.
        model (Model): What to write.
        layout (str): `plain`, the SR network alone; `udl`, all of it under our names; `authors`, all of it under the
            authors' names, not under a key. Only a `.pth` or `.pt` takes others than `plain`.

    Returns:
        list[str]: What was checked, to tell the user.

    Raises:
        InputError: another suffix, a layout that it does not take, a missing package.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise InputError(f"'{path}': the suffix is none of {', '.join(SUFFIXES)}.")
    if layout != 'plain' and suffix in ('.safetensors', '.onnx'):
        raise InputError(f"'{path}': {suffix} holds the plain network; --layout {layout} wants .pth or .pt.")
    if layout == 'authors':
        return _write_authors(path, model)
    if layout == 'plain':
        model = model.plain()
    if suffix == '.safetensors':
        return _write_safetensors(path, model)
    if suffix == '.onnx':
        return _write_onnx(path, model)
    write_checkpoint(path, {'params': model.state_dict}, model.network_g)
    return []


def _write_authors(path, model):
    if 'features' in model.network_g:
        raise InputError("the authors' head takes what enters the upsampler, not features: "
                         f'{model.network_g["features"]}.')
    buffer = io.BytesIO()
    plain = plain_section(model.network_g)
    torch.save(to_authors(model.state_dict, complete(plain)), buffer)
    write_whole(path, buffer.getvalue())
    return []


def _write_safetensors(path, model):
    tensors = {name: value.clone().contiguous() for name, value in model.state_dict.items()}  # none may share memory
    metadata = {'format': 'pt', 'network_g': json.dumps(as_plain_data(model.network_g))}
    write_whole(path, _package('safetensors.torch').save(tensors, metadata))
    return []


def _write_onnx(path, model):
    """For any height and width, `lq` to `sr`, `(1, C, H, W)` in [0, 1] both. Compared before it is written."""
    for name in ('onnx', 'onnxscript'):
        _package(name)
    runtime = _package('onnxruntime')
    net, (channels, _) = model.build(), model.channels_and_scale
    try:
        content = _exported(net, channels, {'network_g': json.dumps(as_plain_data(model.network_g)), 'range': RANGE})
        session, worst = runtime.InferenceSession(content, providers=['CPUExecutionProvider']), 0
        for size in CHECKED_SIZES:
            lq = torch.rand(1, channels, *size)
            with torch.no_grad():
                sr = net(lq)
            found = torch.from_numpy(session.run(None, {'lq': lq.numpy()})[0])
            worst = max(worst, (sr - found).abs().max().item() if sr.shape == found.shape else math.inf)
    except Exception as err:  # with a network that needs certain sizes, say, all of it may raise anything
        raise InputError(f"'{path}': {type(net).__name__} cannot be exported with free height and width "
                         f'({" ".join(str(err).split())[:200] or type(err).__name__}).') from err
    if not worst < 1e-4:
        raise InputError(f"'{path}' is not written: in onnxruntime the network gives other images (by {worst:.2g}).")
    write_whole(path, content)
    return [f'In onnxruntime, on images of {" and ".join(f"{w} x {h}" for h, w in CHECKED_SIZES)}, it differs by up to '
            f'{worst:.1g} from the network here; 1/255 is one 8-bit level.']


def _exported(net, channels, metadata):
    """The bytes of the ONNX file."""
    lq, names = (torch.rand(1, channels, 24, 32),), {'input_names': ['lq'], 'output_names': ['sr']}
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter('ignore')
        if tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 9):
            free = torch.export.Dim.DYNAMIC
            proto = torch.onnx.export(net, lq, **names, dynamo=True, dynamic_shapes=({2: free, 3: free},),
                                      verbose=False).model_proto
        else:  # whose newer exporter fails over the mean of BasicSR's networks
            buffer, free = io.BytesIO(), {2: 'height', 3: 'width'}
            torch.onnx.export(net, lq, buffer, **names, dynamic_axes={'lq': free, 'sr': free}, opset_version=17)
            proto = _package('onnx').load_from_string(buffer.getvalue())
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()


def _package(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"this needs the package {name.split('.')[0]}: pip install 'udl_plugin[convert]', or, in a "
                         "checkout, pip install '.[convert]'.") from None
