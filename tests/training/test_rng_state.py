import io
import random

import numpy as np
import torch

from udl_plugin.training import rng_state


def draw():
    return [random.random(), random.gauss(0, 1), float(np.random.normal()), np.random.randint(1000),
            float(torch.rand(1)), float(torch.randn(1))]


def through_a_file(states):
    buffer = io.BytesIO()
    torch.save(states, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def test_what_was_read_is_drawn_again():
    for seed in range(3):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        draw()  # both normal distributions keep a second number for the next call
        states = through_a_file(rng_state.to_tensors(rng_state.capture()))
        wanted = [draw() for _ in range(3)]
        rng_state.restore(states)
        assert [draw() for _ in range(3)] == wanted


def test_pytorch_can_be_left_as_it_is():
    states = rng_state.to_tensors(rng_state.capture())
    wanted = draw()
    torch.manual_seed(12)
    rng_state.restore(states, pytorch=False)
    found = draw()
    assert found[:4] == wanted[:4]
    torch.manual_seed(12)
    assert found[4] == float(torch.rand(1)) != wanted[4]
