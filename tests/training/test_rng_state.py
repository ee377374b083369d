import io
import random

import numpy as np
import pytest
import torch

from udl_plugin.training import rng_state


def draw():
    return [random.random(), random.gauss(0, 1), float(np.random.normal()), np.random.randint(1000),
            float(torch.rand(1)), float(torch.randn(1))]


def through_a_file(states):
    buffer = io.BytesIO()
    torch.save(states, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def test_same_numbers_after_a_restore():
    for seed in range(3):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        draw()  # both normal distributions keep a second number for the next call
        states = through_a_file(rng_state.to_tensors(rng_state.capture()))
        expected = [draw() for _ in range(3)]
        rng_state.restore(rng_state.from_tensors(states))
        assert [draw() for _ in range(3)] == expected


def test_position_out_of_bounds():
    """NumPy would read past its state."""
    states = rng_state.to_tensors(rng_state.capture())
    states['numpy'][2] = 1e8
    with pytest.raises(ValueError, match='no position'):
        rng_state.from_tensors(states)
