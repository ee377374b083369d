"""The states of all random numbers that a training draws: read, put into a checkpoint as plain data, and set again."""
import random

import numpy as np
import torch


def capture():
    """States of Python's, NumPy's and PyTorch's generators in this process, in 20 µs; `plain` makes data of them."""
    on_gpu = torch.cuda.get_rng_state().numpy() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state().numpy(), on_gpu


def to_tensors(states):
    """What `read` gave as tensors and numbers, which are read from a file without running anything in it."""
    (version, words, gauss), (name, keys, *position), cpu, gpu = states
    return {'python': [version, torch.tensor(words), gauss],
            'numpy': [name, torch.tensor(keys.astype(np.int64)), *map(float, position)],
            'torch': torch.tensor(cpu), 'cuda': None if gpu is None else torch.tensor(gpu)}


def restore(states, pytorch=True):
    """Sets what `plain` made, or, without `pytorch`, Python's and NumPy's part of it. A GPU's state is left out where
    there is none, in it or here.

    Raises:
        ValueError, TypeError, KeyError, RuntimeError: it is not what `plain` made.
    """
    version, words, gauss = states['python']
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, gauss = states['numpy']
    if not 0 <= position <= 624:
        raise ValueError(f'NumPy\'s generator has no position {position}')  # it would read there
    np.random.set_state((name, keys.numpy().astype(np.uint32), int(position), int(has_gauss), gauss))
    if pytorch:
        torch.set_rng_state(states['torch'])
        if states['cuda'] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(states['cuda'])


def refuse_wrong(states):
    """
    Raises:
        LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError: it is not what `plain` made.
    """
    before = to_tensors(capture())
    try:
        restore(states)
    finally:
        restore(before)
