"""Sizes that a user's own network accepts: declared by its class, or found by running it."""
import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F

from udl_plugin.archs import WithVariance
from udl_plugin.archs.padding import TRIED_MULTIPLES, get_declared, get_required_multiple
from udl_plugin.archs.with_variance import takes_options_of
from udl_plugin.checkpoints.network_file import NetworkFile
from udl_plugin.config.cross_checks import check_network
from udl_plugin.errors import UserError
from udl_plugin.inference.upscaler import Upscaler


class Windowed(nn.Module):
    """Raises an error for sizes that are no multiples of `window`, or with `crops` returns a smaller image."""

    built = 0

    def __init__(self, window=8, crops=False):
        super().__init__()
        Windowed.built += 1
        self.window, self.crops = window, crops
        self.body, self.up = nn.Conv2d(3, 8, 3, 1, 1), nn.Sequential(nn.Conv2d(8, 12, 3, 1, 1), nn.PixelShuffle(2))

    def forward(self, x):
        height, width = x.shape[2:]
        if self.crops:
            x = x[:, :, :height // self.window * self.window, :width // self.window * self.window]
        elif height % self.window or width % self.window:
            raise ValueError
        return {'out': self.up(self.body(x))}


class Declared(Windowed):
    required_multiple = 24
    receptive_radius = 3

    def __init__(self):
        super().__init__(24)


class DeclaredByOptions(Windowed):
    @staticmethod
    def required_multiple(options):
        return 2 * options.get('window', 8)

    @staticmethod
    def receptive_radius(options):
        return options.get('window', 8) + 1


class DeclaredWrong(Windowed):
    required_multiple = '8'


@takes_options_of(DeclaredByOptions)
class DeclaredByOptionsVar(WithVariance):
    pass


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for cls in (Windowed, Declared, DeclaredByOptions, DeclaredByOptionsVar, DeclaredWrong):
        monkeypatch.setitem(ARCH_REGISTRY._obj_map, cls.__name__, cls)


@pytest.mark.parametrize('multiple', TRIED_MULTIPLES)
@pytest.mark.parametrize('crops', [False, True])
def test_multiple_is_found(multiple, crops):
    assert get_required_multiple({'type': 'Windowed', 'window': multiple, 'crops': crops}) == multiple


def test_multiple_is_found_once(monkeypatch):
    """Whatever the step; and without a trace in the random numbers."""
    monkeypatch.setattr('udl_plugin.archs.padding._found', {})
    config, before, state = {'type': 'Windowed', 'window': 4}, Windowed.built, torch.get_rng_state()
    for network_g in (config, config, {'type': 'TwoStep', 'backbone': config}):
        assert get_required_multiple(network_g) == 4
    assert Windowed.built == before + 1
    assert torch.equal(torch.get_rng_state(), state)


def test_no_multiple():
    opt = {'network_g': {'type': 'Windowed', 'window': 56}, 'model_type': 'UDLModel', 'path': {}}
    with pytest.raises(UserError, match='network_g: type: Windowed: there is no multiple among 1, 2, 4, .*; declare .* '
                                        'as a class attribute: required_multiple = 24'):
        check_network(opt)


@pytest.mark.parametrize(('network_g', 'multiple', 'radius'), [
    ({'type': 'Declared'}, 24, 3), ({'type': 'DeclaredByOptions', 'window': 5}, 10, 6),
    ({'type': 'WithVariance', 'backbone': {'type': 'DeclaredByOptions'}}, 16, 9),
    ({'type': 'DeclaredByOptionsVar'}, 16, 9), ({'type': 'Windowed'}, 8, None)])
def test_declared_by_the_class(network_g, multiple, radius):
    assert get_required_multiple(network_g) == multiple
    assert get_declared(network_g, 'receptive_radius', 0) == radius


def test_wrong_declaration():
    with pytest.raises(UserError, match="type: DeclaredWrong: its class attribute required_multiple is '8'; expected"):
        get_required_multiple({'type': 'DeclaredWrong'})


@pytest.mark.parametrize(('config', 'overlap', 'note'), [
    ({'type': 'DeclaredByOptions'}, 16, ''), ({'type': 'Windowed'}, 16, 'receptive radius of the network is unknown')])
def test_upscaler_of_an_own_network(config, overlap, note):
    net = ARCH_REGISTRY.get(config['type'])()
    upscaler = Upscaler(NetworkFile(net.state_dict(), config), tile=64)
    assert upscaler.overlap == overlap
    assert note in ' '.join(upscaler.notes)
    assert bool(note) == bool(upscaler.notes)
    x = torch.rand(3, 19, 70)
    sr = upscaler.upscale(x).image
    assert sr.shape == (3, 38, 140)
    net.window = 1
    with torch.no_grad():
        inside = net(x[None])['out'][0, :, 8:-8, 8:-8].clamp(0, 1)
    assert F.l1_loss(sr[:, 8:-8, 8:-8], inside) < 1e-5
