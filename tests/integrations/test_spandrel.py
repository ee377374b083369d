"""spandrel's own loader reads our files."""
import subprocess
import sys

import pytest
import torch
from conftest import TINY
from spandrel import MAIN_REGISTRY, ArchRegistry, ModelLoader

from udl_plugin.archs.build import build_network
from udl_plugin.checkpoints.export import export_network
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.errors import UserError
from udl_plugin.integrations import spandrel

EDSR = {**TINY, 'res_scale': 0.3, 'img_range': 255.0, 'rgb_mean': [0.5, 0.4, 0.3]}
DPDNN = {'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_step': 2, 'upscale': 3, 'img_range': 2.0}
VARIANTS = [
    {'type': 'EDSR', **EDSR, 'upscale': 2}, {'type': 'EDSR', **EDSR, 'upscale': 3, 'num_block': 5},
    {'type': 'EDSR', **EDSR, 'upscale': 4, 'num_feat': 12}, {'type': 'EDSR', **EDSR, 'upscale': 8},
    {'type': 'EDSRVar', **EDSR}, {'type': 'EDSRTwo', **EDSR},
    {'type': 'DPDNN', **DPDNN}, {'type': 'DPDNN', **DPDNN, 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 4},
    {'type': 'DPDNN', **DPDNN, 'upscale': 2, 'num_step': 4}, {'type': 'DPDNNVar', **DPDNN},
    {'type': 'DPDNNTwo', **DPDNN},
]
WARNING = 'For spandrel, first convert the file'
pytestmark = pytest.mark.usefixtures('seed')


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """A copy of spandrel's main registry with our architectures."""
    copy = MAIN_REGISTRY.copy()
    spandrel.install(copy)
    return copy


def assert_loads(registry, path, network_g, net):
    model = ModelLoader(registry=registry).load_from_file(path)
    shape = {key: network_g[key] for key in network_g if key in ('num_in_ch', 'num_feat', 'num_step', 'upscale')}
    assert str(model.architecture.id) == network_g['type'].replace('Var', '').replace('Two', '')
    assert type(model.model).__name__ == str(model.architecture.id)
    assert model.scale == shape['upscale']
    assert model.input_channels == model.output_channels == shape['num_in_ch']
    assert model.tags == [f'{shape["num_feat"]}nf']
    x = torch.rand(1, shape['num_in_ch'], 9, 8)
    with torch.no_grad():
        assert torch.equal(model(x), net.eval()(x).clamp(0, 1))


@pytest.mark.parametrize('network_g', VARIANTS, ids=lambda network_g: f'{network_g["type"]}-x{network_g["upscale"]}')
def test_our_checkpoints(tmp_path, registry, network_g, recwarn):
    """`res_scale` and other options come from the metadata in the file."""
    net = build_network(network_g)
    save_checkpoint(tmp_path / 'net.pth', {'params': net.state_dict()}, network_g)
    assert_loads(registry, tmp_path / 'net.pth', network_g, net)
    export_network(tmp_path / 'plain.pth', load_network_file(tmp_path / 'net.pth'))
    assert_loads(registry, tmp_path / 'plain.pth', network_g, net)
    assert not [warning for warning in recwarn if WARNING in str(warning.message)]
    export_network(tmp_path / 'plain.safetensors', load_network_file(tmp_path / 'net.pth'))
    x = torch.rand(1, network_g['num_in_ch'], 6, 6)
    with torch.no_grad():
        assert torch.equal(spandrel.load(tmp_path / 'plain.safetensors')(x), net(x).clamp(0, 1))


@pytest.mark.parametrize('network_g', VARIANTS, ids=lambda network_g: f'{network_g["type"]}-x{network_g["upscale"]}')
def test_weights_without_metadata(tmp_path, registry, network_g):
    """BasicSR's defaults are used for the other options, with a warning."""
    net = build_network({key: value for key, value in network_g.items()
                         if key not in ('res_scale', 'img_range', 'rgb_mean')})
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    with pytest.warns(UserWarning, match=WARNING):
        assert_loads(registry, tmp_path / 'net.pth', network_g, net)


def test_other_networks_are_left_to_spandrel(tmp_path, registry):
    rcan = build_network(
        {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_group': 2, 'num_block': 2, 'upscale': 2})
    msrresnet = build_network({'type': 'MSRResNet', 'num_feat': 8, 'num_block': 2})
    for net in (rcan, msrresnet):
        state_dict = net.state_dict()
        assert not any(registry[name].detect(state_dict) for name in ('EDSR', 'DPDNN'))


def test_install_twice_and_into_an_empty_registry():
    registry = ArchRegistry()
    spandrel.install(registry)
    spandrel.install(registry)
    assert [str(support.architecture.id) for support in registry] == ['EDSR', 'DPDNN']


def test_main_registry_and_import_path_of_earlier_versions():
    """In a process of its own, because the main registry is shared."""
    script = ('import udl_plugin.spandrel_archs as shim; from spandrel import MAIN_REGISTRY as registry;'
              'assert "EDSR" not in registry; shim.install(); assert "EDSR" in registry and "DPDNN" in registry;'
              'import udl_plugin.integrations.spandrel as new; assert shim.load is new.load')
    subprocess.run([sys.executable, '-c', script], check=True)


def test_without_spandrel(monkeypatch):
    monkeypatch.setitem(sys.modules, 'spandrel', None)
    monkeypatch.delitem(sys.modules, 'udl_plugin.integrations.spandrel')
    with pytest.raises(UserError, match=r"spandrel is not installed: pip install 'udl_plugin\[spandrel\]'"):
        import udl_plugin.integrations.spandrel  # noqa: F401


def test_load_of_another_network(tmp_path):
    network_g = {'type': 'MSRResNet', 'num_feat': 8, 'num_block': 2}
    save_checkpoint(tmp_path / 'x.pth', {'params': build_network(network_g).state_dict()}, network_g)
    with pytest.raises(UserError, match=r"x\.pth' holds MSRResNet, not one of EDSR, DPDNN"):
        spandrel.load(tmp_path / 'x.pth')
