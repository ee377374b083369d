import pytest
import torch
from conftest import TINY
from torch import nn

from udl_plugin.archs.build import build_network
from udl_plugin.inference.cost import _prepare_runs, multiply_adds, parameters, peak_memory, time_in_turn

# EDSR-baseline as in the literature (CARN, ECCV 2018): 1,518 K parameters and 114.2 G multiply-adds at x4,
# 1,370 K and 316.3 G at x2
BASELINE = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_block': 16}
SWINIR = {'type': 'SwinIR', 'upscale': 2, 'window_size': 8, 'img_size': 16, 'depths': [2], 'embed_dim': 12,
          'num_heads': [2], 'upsampler': 'pixelshuffle'}


@pytest.mark.parametrize(('upscale', 'thousands', 'billions'), [(4, 1518, 114.2), (2, 1370, 316.3)])
def test_parameters_and_multiply_adds_of_a_known_network(upscale, thousands, billions):
    network_g = {**BASELINE, 'upscale': upscale}
    net = build_network(network_g)
    assert round(parameters(net) / 1e3) == thousands
    assert multiply_adds(net, network_g, 3, upscale) / 1e9 == pytest.approx(billions, abs=0.1)


def test_network_with_windows():
    """Images are padded to a multiple of the window."""
    net = build_network(SWINIR).eval()
    assert multiply_adds(net, SWINIR, 3, 2) > 0
    for run in _prepare_runs(SWINIR, (1, 3, 13, 10)):
        run()


def test_functions_are_timed_in_turn(monkeypatch):
    calls, clock = [], iter(range(1000))
    monkeypatch.setattr('udl_plugin.inference.cost.time.perf_counter', lambda: next(clock))
    functions = {'a': lambda x: calls.append('a'), 'b': lambda x: calls.append('b')}
    seconds = time_in_turn(functions, torch.zeros(1), rounds=3)
    assert calls == ['a', 'b'] * 4
    assert seconds == {'a': 1, 'b': 1}


def test_warm_up_round_does_not_count(monkeypatch):
    clock = iter([0, 100, 100, 101, 101, 102])
    monkeypatch.setattr('udl_plugin.inference.cost.time.perf_counter', lambda: next(clock))
    assert time_in_turn({'a': nn.Identity()}, torch.zeros(1), rounds=2) == {'a': 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason='measures the CPU')
def test_memory_of_one_run():
    """At x2, the last feature maps of 8 channels at 1024 x 1024 take 32 MiB each; smaller images take less."""
    network_g = {'type': 'EDSR', **TINY}
    large, small = (peak_memory(network_g, (1, 3, size, size)) / 2**20 for size in (512, 64))
    assert 64 < large < 1000
    assert small < large / 4


@pytest.mark.skipif(torch.cuda.is_available(), reason='measures the CPU')
def test_out_of_memory():
    """Other measurements must go on."""
    assert peak_memory({'type': 'EDSR', **TINY}, (1, 3, 10**6, 10**7)) is None
