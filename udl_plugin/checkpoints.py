"""Reads network checkpoints safely, says why one does not fit, and writes them whole."""
import contextlib
import hashlib
import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from udl_plugin.errors import InputError, shortened
from udl_plugin.files import write_whole

MOST_ITEMS = 1_000_000  # numbers, texts and tensors in a checkpoint
MOST_PICKLED = 10 ** 7  # bytes before the first tensor of a file of PyTorch's old format
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16,
          torch.int32, torch.int64, torch.bool, torch.complex64)


def read_checkpoint(path, param_key='params'):
    """Reads the state dict of a network from a file that BasicSR wrote, or mmengine with our model.

    Args:
        path (str): `.pth` file: a dict that holds a state dict under each of its keys, usually `params` and, from
            training with EMA, `params_ema`.
        param_key (str | None): Which of them; `params` is taken where `params_ema` is absent, as BasicSR does. None:
            the file is a state dict itself.

    Returns:
        tuple[dict, str]: Name to tensor (on the CPU, without DataParallel's `module.`), and the key it was found under.

    Raises:
        InputError: no such file, not a checkpoint, one that needs more than tensors, or without that key.
    """
    return _under(load_tensors(path), path, param_key)


def _under(content, path, param_key):
    if param_key is not None:
        keys = list(content) if isinstance(content, dict) else []
        if param_key == 'params_ema' and param_key not in keys and 'params' in keys:
            param_key = 'params'
        if param_key not in keys:
            raise InputError(f"'{path}' has no '{param_key}' (it has: {_some(keys)}); name the right one as path: "
                             'param_key_g, or null where the file is a state dict itself.')
        content = content[param_key]
    return as_state_dict(content, path, param_key), param_key


def as_state_dict(content, path, param_key):
    """Checks that it is one, name to tensor, and returns it without DataParallel's `module.`; `path` is for the error.
    """
    if not isinstance(content, dict) or not content or not all(
            isinstance(name, str) and torch.is_tensor(value) for name, value in content.items()):
        where = f", under '{param_key}'" if param_key else ''
        raise InputError(f"'{path}' holds no state dict, name to tensor{where}.")
    return {name[7:] if name.startswith('module.') else name: value for name, value in content.items()}


def load_tensors(path):
    """As `load_safely`, but a checkpoint of mmengine is given as one of BasicSR: `params`, `params_ema`, `network_g`.
    """
    content = load_safely(path)
    return of_mmengine(content) if is_of_mmengine(content) else content


def load_safely(path):
    """Reads what `torch.save` wrote, on the CPU and as far as it is tensors and plain containers: nothing is executed.

    Raises:
        InputError: no such file, not torch's format, torn, something else than tensors in it, or made to fill the
            memory: compressed, or with tensors that repeat few values to be many.
    """
    try:
        _refuse_packed(path)
        with _allowed(mmengine_globals()):
            content = torch.load(path, map_location='cpu', weights_only=True)
        _refuse_swollen(content, Path(path).stat().st_size)
        return content
    except FileNotFoundError:
        raise InputError(f"there is no file '{path}' (seen from {Path.cwd()}).") from None
    except IsADirectoryError:
        raise InputError(f"'{path}' is a folder; name a file in it, such as models/net_g_latest.pth.") from None
    except Exception as err:  # from a file of any other kind, torch raises nearly anything
        reason = 'it is of another kind, or holds more than tensors, and such things could run code' \
            if isinstance(err, pickle.UnpicklingError) else f'{type(err).__name__}: {err}'.splitlines()[0]
        raise InputError(f"'{path}' cannot be read as a checkpoint of tensors ({reason}).") from err


def _refuse_packed(path):
    """Refuses a file that is small because it is packed, before it is unpacked."""
    with open(path, 'rb') as file:
        is_zip = file.read(4) == b'PK\x03\x04'  # torch asks for no more
        pickled = b'' if is_zip else file.read(MOST_PICKLED)
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError('it is compressed, as torch.save never does, and may be made to fill the memory')
            pickled = b''.join(archive.read(entry) for entry in archive.infolist() if entry.filename.endswith('.pkl'))
    if b'bytearray' in pickled:
        raise ValueError('it asks for bytes that it does not hold')


def _refuse_swollen(content, size):
    """Refuses what stands for far more than the file holds: tensors that repeat few values, lists within lists."""
    storages, values = {}, 0
    for tensor in _tensors(content):
        if tensor.layout is not torch.strided or tensor.device.type != 'cpu' or tensor.dtype not in DTYPES:
            raise ValueError(f'a tensor of {tensor.layout}, {tensor.dtype} on {tensor.device} is none of a network')
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        values += tensor.nbytes
        if tensor.nbytes > storage.nbytes():
            raise ValueError(f'a tensor of {tuple(tensor.shape)} repeats few values, and may be made to fill the '
                             'memory')
    held = sum(storages.values())
    if held > size or values > 8 * held + 2 ** 26:  # tensors may share, but not all of them
        raise ValueError(f'its tensors are said to be of {max(held, values)} bytes, and it has {size}; such a file may '
                         'be made to fill the memory')


def _tensors(content):
    """The tensors in containers, each as often as it stands there."""
    waiting, steps = [content], 0
    while waiting:
        item, steps = waiting.pop(), steps + 1
        if steps > MOST_ITEMS:
            raise ValueError(f'it stands for more than {MOST_ITEMS} things, and may be made to fill the memory')
        if torch.is_tensor(item):
            yield item
        elif isinstance(item, (dict, list, tuple)):
            waiting += item.values() if isinstance(item, dict) else item


class _History:
    """Stands for mmengine's `HistoryBuffer`, the curves in its checkpoints, where mmengine need not be installed."""

    def __setstate__(self, state):
        pass


class _Kind:
    """Stands for `numpy.dtype`, whose own pickles may say that bytes are pointers to objects."""

    def __init__(self, name, *_):
        if name not in KINDS:
            raise pickle.UnpicklingError(f'an array of {shortened(name)}')
        self.dtype = np.dtype(name)

    def __setstate__(self, state):
        if state[1] not in ('<', '|', '='):
            raise pickle.UnpicklingError(f'an array in the order of bytes {shortened(state[1])}')


class _Array(np.ndarray):
    """Stands for `numpy.ndarray`: takes numbers alone, as many as there are bytes for."""

    def __new__(cls, *_):
        return np.zeros(0).view(cls)

    def __setstate__(self, state):
        _, shape, kind, by_columns, data = state
        if type(kind) is not _Kind or type(data) is not bytes or type(shape) is not tuple or not all(
                type(size) is int and size >= 0 for size in shape) \
                or math.prod(shape) * kind.dtype.itemsize != len(data):
            raise pickle.UnpicklingError('an array that is none of numbers')
        super().__setstate__((1, shape, kind.dtype, by_columns is True, data))

    def __reduce__(self):
        return np.array(self).__reduce__()


def _reconstruct(*_):
    """In place of NumPy's, which makes an array of any class."""
    return _Array()


def _scalar(kind, data):
    """In place of NumPy's: a plain number."""
    if type(kind) is not _Kind or type(data) is not bytes or len(data) != kind.dtype.itemsize:
        raise pickle.UnpicklingError('a scalar that is no number')
    return np.frombuffer(data, kind.dtype)[0].item()


KINDS = ('f8', 'f4', 'i8', 'i4', 'b1')  # as pickles call them
STATISTICS = ('min', 'max', 'mean', 'current')  # methods of mmengine's curves that a checkpoint names


def mmengine_globals(history=_History):
    """What mmengine's checkpoints hold beside tensors, for `torch.serialization`: curves, and the arrays they are of.

    NumPy's own classes are not among it: `torch.load` would call them with whatever a file says, and they believe it.

    Args:
        history (type): What the curves are read as.
    """
    def method(owner, name):  # in place of `getattr`, with which a file could reach for anything
        if owner is not history or name not in STATISTICS:
            raise pickle.UnpicklingError(f'getattr of {shortened(name)}')
        return getattr(history, name, None)

    of_numpy = [(stand_in, f'{package}.multiarray.{name}') for name, stand_in in (
        ('_reconstruct', _reconstruct), ('scalar', _scalar)) for package in ('numpy.core', 'numpy._core')]
    return [(history, 'mmengine.logging.history_buffer.HistoryBuffer'), (method, 'builtins.getattr'),
            (_Array, 'numpy.ndarray'), (_Kind, 'numpy.dtype'), *of_numpy]


@contextlib.contextmanager
def _allowed(entries):
    """Lets `torch.load` read these in the block, and leaves what is allowed besides as it is: torch's own would take
    away what was allowed before under the same names."""
    known = {_name(entry) for entry in torch.serialization.get_safe_globals()}
    with torch.serialization.safe_globals([entry for entry in entries if _name(entry) not in known]):
        yield


def _name(entry):
    return entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}'


def is_of_mmengine(content):
    return isinstance(content, dict) and content.keys() >= {'meta', 'state_dict'} and all(
        isinstance(part, dict) and all(isinstance(name, str) for name in part)
        for part in (content['state_dict'], content.get('ema_state_dict', {})))


def of_mmengine(content):
    """A checkpoint of mmengine's `Runner`, with our model, as BasicSR has it. Under its `EMAHook`, `state_dict` is the
    moving average, and `ema_state_dict` the network that is trained."""
    generator = branch(content['state_dict'], 'generator')
    averaged = 'ema_state_dict' in content
    trained = branch(content['ema_state_dict'], 'module.generator') if averaged else generator
    network_g = {'network_g': content['network_g']} if 'network_g' in content else {}
    return {**network_g, 'params': trained, **({'params_ema': generator} if averaged else {})}


def read_fitting(net, path, param_key='params', strict=True):
    """Reads the state dict for `net` from a checkpoint and makes sure that it fits.

    Args:
        net (nn.Module): One with `expand` (a `TwoStep`) also takes a checkpoint of step 1, for both branches, and
            always all of it: a step 2 that weighs by a half-loaded network would be nonsense.
        path, param_key: As in `read_checkpoint`.
        strict (bool): False: what does not fit is the caller's to drop.

    Returns:
        tuple[dict, str, str]: What `net.load_state_dict` takes, the key it was found under, and what does not fit.

    Raises:
        InputError: names the option, the file and the mismatch.
    """
    option = 'path: pretrain_network_g'
    try:
        content = load_tensors(path)
        return fitting(net, content, path, param_key, strict)
    except InputError as err:
        first = '' if Path(path).exists() or not hasattr(net, 'expand') else \
            ' Train step 1 first, or name its checkpoint.'
        raise InputError(f'{option}: {err}{first}') from err.__cause__


def fitting(net, content, path, param_key='params', strict=True, option='network_g'):
    """As `read_fitting`, of a checkpoint that is read already, in BasicSR's layout or mmengine's.

    Args:
        option (str): What says what `net` is, for errors.
    """
    content = of_mmengine(content) if is_of_mmengine(content) else content
    state_dict, found_key = _under(content, path, param_key)
    two_step = hasattr(net, 'expand')
    if two_step:
        state_dict = net.expand(state_dict)
    mismatch = explain_mismatch(net, state_dict)
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
        raise InputError(f"'{path}' does not fit {option}: {type(net).__name__}: {mismatch}.{told} {advice}")
    return state_dict, found_key, mismatch


def explain_mismatch(net, state_dict):
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
    return 'tensors ' + ', '.join(f'{kind}: {len(names)} ({_some(names)})' for kind, names in kinds if names)


def _some(names):
    return ', '.join(map(str, names[:3])) + (', ...' if len(names) > 3 else '')


def branch(state_dict, name):
    """The tensors of one of a `TwoStep`'s networks, `sr_net` or `var_net`; none where there is no such branch."""
    prefix = f'{name}.'
    return {key[len(prefix):]: value for key, value in state_dict.items() if key.startswith(prefix)}


def sr_state_dict(state_dict):
    """The tensors of the plain SR network inside a checkpoint of either step: what upstream's own arch loads."""
    return branch(state_dict, 'sr_net') or {name: value for name, value in state_dict.items()
                                            if not name.startswith('var_conv.')}


def fingerprint(state_dict):
    """A text that two state dicts share if they hold the same values, as float32, under the same names."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        digest.update(name.encode() + state_dict[name].detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_checkpoint(path, state_dicts, network_g):
    """Writes a checkpoint that BasicSR reads, and that says what network it is of.

    Args:
        path (str | Path): A `.pth` file; it is there when it is whole.
        state_dicts (dict): Under which key, such as `params` and `params_ema`, which state dict.
        network_g (dict): The section of the yml that builds the network. It goes under that name beside them, and into
            the metadata that torch keeps with each state dict, for tools that hand on the state dict alone.
    """
    network_g = as_plain_data(network_g)
    content = {'network_g': network_g}
    for key, state_dict in state_dicts.items():
        content[key] = OrderedDict((name, value.detach().cpu().contiguous()) for name, value in state_dict.items())
        content[key]._metadata = OrderedDict({'': {'version': 1, 'network_g': network_g}})
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(Path(path), buffer.getvalue())


def as_plain_data(value):
    """A section of a yml as dicts, lists, numbers and strings, whatever the reader of the yml made of it."""
    if isinstance(value, dict):
        return {str(key): as_plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain_data(item) for item in value]
    return value
