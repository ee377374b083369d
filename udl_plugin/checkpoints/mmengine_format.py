"""mmengine's checkpoints without mmengine: safe stand-ins for what they pickle, and their layout as BasicSR's.

Beside tensors, they hold curves (`HistoryBuffer`), which are NumPy arrays. NumPy's own classes must not be given to
`torch.load`: it would call them with whatever the file says, and they trust it, pointers to objects included.
"""
from __future__ import annotations

import contextlib
import math
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from udl_plugin.archs.wrapping import sub_state_dict
from udl_plugin.errors import truncate_repr

DTYPES = ('f8', 'f4', 'i8', 'i4', 'b1')  # as pickles name them
STATISTICS = ('min', 'max', 'mean', 'current')  # methods of HistoryBuffer that a checkpoint refers to


class _HistoryStandIn:
    """In place of mmengine's `HistoryBuffer`: drops the curve."""

    def __setstate__(self, state: Any) -> None:
        pass


class _DTypeStandIn:
    """In place of `numpy.dtype`, whose own pickles may declare bytes to be pointers to objects."""

    def __init__(self, name: Any, *_: Any):
        if name not in DTYPES:
            raise pickle.UnpicklingError(f'an array of {truncate_repr(name)}')
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ('<', '|', '='):
            raise pickle.UnpicklingError(f'an array with the byte order {truncate_repr(state[1])}')


class _ArrayStandIn(np.ndarray):
    """In place of `numpy.ndarray`: accepts numbers only, and as many as there are bytes for."""

    def __new__(cls, *_: Any) -> _ArrayStandIn:
        return np.zeros(0).view(cls)

    def __setstate__(self, state: Any) -> None:
        shape, kind, is_fortran, data = state[1:]
        if type(kind) is not _DTypeStandIn or type(data) is not bytes or type(shape) is not tuple or not all(
                type(size) is int and size >= 0 for size in shape) \
                or math.prod(shape) * kind.dtype.itemsize != len(data):
            raise pickle.UnpicklingError('an array that does not hold numbers')
        np.ndarray.__setstate__(self, (1, shape, kind.dtype, is_fortran is True, data))  # type: ignore[arg-type]

    def __reduce__(self) -> Any:
        return np.array(self).__reduce__()


def _reconstruct(*_: Any) -> _ArrayStandIn:
    """In place of NumPy's function, which makes an array of any class."""
    return _ArrayStandIn()


def _scalar(kind: Any, data: Any) -> Any:
    """In place of NumPy's function: returns a Python number."""
    if type(kind) is not _DTypeStandIn or type(data) is not bytes or len(data) != kind.dtype.itemsize:
        raise pickle.UnpicklingError('a scalar that is not a number')
    return np.frombuffer(data, kind.dtype)[0].item()


def mmengine_globals(history: type = _HistoryStandIn) -> list[tuple[Any, str]]:
    """Entries for `torch.serialization.add_safe_globals` that let `torch.load` read mmengine's checkpoints.

    Args:
        history: Class that curves are read as.
    """
    def get_statistic(owner: Any, name: Any) -> Any:  # in place of `getattr`, which would let a file reach anything
        if owner is not history or name not in STATISTICS:
            raise pickle.UnpicklingError(f'getattr of {truncate_repr(name)}')
        return getattr(history, name, None)

    functions = [(stand_in, f'{package}.multiarray.{name}') for name, stand_in in (
        ('_reconstruct', _reconstruct), ('scalar', _scalar)) for package in ('numpy.core', 'numpy._core')]
    return [(history, 'mmengine.logging.history_buffer.HistoryBuffer'), (get_statistic, 'builtins.getattr'),
            (_ArrayStandIn, 'numpy.ndarray'), (_DTypeStandIn, 'numpy.dtype'), *functions]


@contextlib.contextmanager
def allow_globals(entries: list[tuple[Any, str]]) -> Iterator[None]:
    """Like `torch.serialization.safe_globals`, but does not remove entries that were allowed before."""
    allowed = {entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}'
               for entry in torch.serialization.get_safe_globals()}
    with torch.serialization.safe_globals([entry for entry in entries if entry[1] not in allowed]):
        yield


def is_mmengine_checkpoint(content: Any) -> bool:
    return isinstance(content, dict) and content.keys() >= {'meta', 'state_dict'} and all(
        isinstance(part, dict) and all(isinstance(name, str) for name in part)
        for part in (content['state_dict'], content.get('ema_state_dict', {})))


def from_mmengine(content: dict[str, Any]) -> dict[str, Any]:
    """Converts a checkpoint of mmengine's `Runner` with our model to BasicSR's layout: `params`, `params_ema`.

    With mmengine's `EMAHook`, `state_dict` is the moving average and `ema_state_dict` the trained network.
    """
    generator = sub_state_dict(content['state_dict'], 'generator')
    metadata: dict[str, Any] = {key: content[key] for key in ('network_g', 'uncertainty_loss') if key in content}
    if 'ema_state_dict' not in content:
        return {**metadata, 'params': generator}
    trained = sub_state_dict(content['ema_state_dict'], 'module.generator')
    return {**metadata, 'params': trained, 'params_ema': generator}
