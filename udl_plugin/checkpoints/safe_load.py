"""Reads checkpoints as tensors and plain containers only: nothing in them is executed."""
import contextlib
import math
import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch

from udl_plugin.archs.wrapping import sub_state_dict
from udl_plugin.errors import UserError, truncate_repr

MOST_ITEMS = 1_000_000  # numbers, texts and tensors in a checkpoint
MOST_PICKLED = 10 ** 7  # bytes before the first tensor of a file of PyTorch's old format
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16,
          torch.int32, torch.int64, torch.bool, torch.complex64)


def load_checkpoint(path):
    """As `load_safely`, but a checkpoint of mmengine is given as one of BasicSR: `params`, `params_ema`, `network_g`.
    """
    content = load_tensors_only(path)
    return from_mmengine(content) if is_mmengine_checkpoint(content) else content


def load_tensors_only(path):
    """Reads what `torch.save` wrote, on the CPU and as far as it is tensors and plain containers: nothing is executed.

    Raises:
        UserError: no such file, not torch's format, torn, something else than tensors in it, or made to fill the
            memory: compressed, or with tensors that repeat few values to be many.
    """
    try:
        _refuse_packed(path)
        with _allowed(mmengine_globals()):
            content = torch.load(path, map_location='cpu', weights_only=True)
        _refuse_swollen(content, Path(path).stat().st_size)
        return content
    except FileNotFoundError:
        raise UserError(f"there is no file '{path}' (seen from {Path.cwd()}).") from None
    except IsADirectoryError:
        raise UserError(f"'{path}' is a folder; name a file in it, such as models/net_g_latest.pth.") from None
    except Exception as err:  # from a file of any other kind, torch raises nearly anything
        reason = 'it is of another kind, or holds more than tensors, and such things could run code' \
            if isinstance(err, pickle.UnpicklingError) else f'{type(err).__name__}: {err}'.splitlines()[0]
        raise UserError(f"'{path}' cannot be read as a checkpoint of tensors ({reason}).") from err


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
            raise pickle.UnpicklingError(f'an array of {truncate_repr(name)}')
        self.dtype = np.dtype(name)

    def __setstate__(self, state):
        if state[1] not in ('<', '|', '='):
            raise pickle.UnpicklingError(f'an array in the order of bytes {truncate_repr(state[1])}')


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
            raise pickle.UnpicklingError(f'getattr of {truncate_repr(name)}')
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


def is_mmengine_checkpoint(content):
    return isinstance(content, dict) and content.keys() >= {'meta', 'state_dict'} and all(
        isinstance(part, dict) and all(isinstance(name, str) for name in part)
        for part in (content['state_dict'], content.get('ema_state_dict', {})))


def from_mmengine(content):
    """A checkpoint of mmengine's `Runner`, with our model, as BasicSR has it. Under its `EMAHook`, `state_dict` is the
    moving average, and `ema_state_dict` the network that is trained."""
    generator = sub_state_dict(content['state_dict'], 'generator')
    averaged = 'ema_state_dict' in content
    trained = sub_state_dict(content['ema_state_dict'], 'module.generator') if averaged else generator
    network_g = {'network_g': content['network_g']} if 'network_g' in content else {}
    return {**network_g, 'params': trained, **({'params_ema': generator} if averaged else {})}
