"""RNG states of Python, NumPy and PyTorch: captured, restored, and converted for a checkpoint."""
from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def capture() -> tuple:
    """States of all generators of this process, in about 20 µs."""
    cuda = torch.cuda.get_rng_state().numpy() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state().numpy(), cuda


def restore(states: tuple) -> None:
    """Restores what `capture` returned; a GPU's state only if it has one and there is a GPU."""
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(torch.from_numpy(cpu))
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(cuda))


def to_tensors(states: tuple) -> dict[str, Any]:
    """What `capture` returned as tensors and numbers, which `torch.load(weights_only=True)` reads."""
    (version, words, gauss), (name, keys, *position), cpu, cuda = states
    return {'python': [version, torch.tensor(words), gauss],
            'numpy': [name, torch.tensor(keys.astype(np.int64)), *map(float, position)],
            'torch': torch.tensor(cpu), 'cuda': None if cuda is None else torch.tensor(cuda)}


def from_tensors(states: dict[str, Any]) -> tuple:
    """The reverse of `to_tensors`.

    Raises:
        ValueError: the state of NumPy's generator is not one.
    """
    version, words, gauss = states['python']
    name, keys, position, has_gauss, numpy_gauss = states['numpy']
    if not 0 <= position <= 624:
        raise ValueError(f"NumPy's generator has no position {position}")  # it would read out of bounds
    numpy = (name, keys.numpy().astype(np.uint32), int(position), int(has_gauss), numpy_gauss)
    cuda = states['cuda']
    return ((version, tuple(words.tolist()), gauss), numpy, states['torch'].numpy(),
            None if cuda is None else cuda.numpy())
