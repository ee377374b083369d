"""RNG states of Python, NumPy and PyTorch: captured, converted for a checkpoint, and restored."""
from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def capture() -> tuple:
    """States of all generators of this process, in about 20 µs; `to_tensors` converts them for a checkpoint."""
    cuda = torch.cuda.get_rng_state().numpy() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state().numpy(), cuda


def to_tensors(states: tuple) -> dict[str, Any]:
    """What `capture` returned as tensors and numbers, which `torch.load(weights_only=True)` reads."""
    (version, words, gauss), (name, keys, *position), cpu, cuda = states
    return {'python': [version, torch.tensor(words), gauss],
            'numpy': [name, torch.tensor(keys.astype(np.int64)), *map(float, position)],
            'torch': torch.tensor(cpu), 'cuda': None if cuda is None else torch.tensor(cuda)}


def restore(states: dict[str, Any], pytorch: bool = True) -> None:
    """Restores what `to_tensors` returned; a GPU's state only if it has one and there is a GPU.

    Args:
        states: As `to_tensors` returned it.
        pytorch: False: Python's and NumPy's generators only.

    Raises:
        ValueError, TypeError, KeyError, RuntimeError: not what `to_tensors` returned.
    """
    version, words, gauss = states['python']
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, gauss = states['numpy']
    if not 0 <= position <= 624:
        raise ValueError(f"NumPy's generator has no position {position}")  # it would read out of bounds
    np.random.set_state((name, keys.numpy().astype(np.uint32), int(position), int(has_gauss), gauss))
    if pytorch:
        torch.set_rng_state(states['torch'])
        if states['cuda'] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(states['cuda'])


def check(states: dict[str, Any]) -> None:
    """Checks that `restore` would accept these states, and leaves the generators as they are.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError: it would not.
    """
    current = to_tensors(capture())
    try:
        restore(states)
    finally:
        restore(current)
