"""spandrel's own loader on our files."""
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
pytestmark = pytest.mark.usefixtures('seed')


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Spandrel's main registry, as it was, with ours."""
    copy = MAIN_REGISTRY.copy()
    spandrel.install(copy)
    return copy


def assert_loads(registry, path, section, net):
    model = ModelLoader(registry=registry).load_from_file(path)
    shape = {key: section[key] for key in section if key in ('num_in_ch', 'num_feat', 'num_step', 'upscale')}
    assert str(model.architecture.id) == section['type'].replace('Var', '').replace('Two', '')
    assert type(model.model).__name__ == str(model.architecture.id)
    assert model.scale == shape['upscale']
    assert model.input_channels == model.output_channels == shape['num_in_ch']
    assert model.tags == [f'{shape["num_feat"]}nf']
    x = torch.rand(1, shape['num_in_ch'], 9, 8)
    with torch.no_grad():
        assert torch.equal(model(x), net.eval()(x).clamp(0, 1))


@pytest.mark.parametrize('section', VARIANTS, ids=lambda section: f'{section["type"]}-x{section["upscale"]}')
def test_our_checkpoints(tmp_path, registry, section, recwarn):
    """With what they say of `res_scale` and the rest."""
    net = build_network(section)
    save_checkpoint(tmp_path / 'net.pth', {'params': net.state_dict()}, section)
    assert_loads(registry, tmp_path / 'net.pth', section, net)
    export_network(tmp_path / 'plain.pth', load_network_file(tmp_path / 'net.pth'))
    assert_loads(registry, tmp_path / 'plain.pth', section, net)
    assert not [warning for warning in recwarn if 'does not record' in str(warning.message)]
    export_network(tmp_path / 'plain.safetensors', load_network_file(tmp_path / 'net.pth'))
    x = torch.rand(1, section['num_in_ch'], 6, 6)
    with torch.no_grad():
        assert torch.equal(spandrel.load(tmp_path / 'plain.safetensors')(x), net(x).clamp(0, 1))


@pytest.mark.parametrize('section', VARIANTS, ids=lambda section: f'{section["type"]}-x{section["upscale"]}')
def test_weights_alone(tmp_path, registry, section):
    """Upstream's defaults are taken for the rest, as everywhere, with a warning."""
    net = build_network({key: value for key, value in section.items() if key not in ('res_scale', 'img_range', 'rgb_mean')})
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    with pytest.warns(UserWarning, match='does not record'):
        assert_loads(registry, tmp_path / 'net.pth', section, net)


def test_other_networks_are_left_to_spandrel(tmp_path, registry):
    rcan = build_network({'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_group': 2, 'num_block': 2, 'upscale': 2})
    msrresnet = build_network({'type': 'MSRResNet', 'num_feat': 8, 'num_block': 2})
    for net in (rcan, msrresnet):
        state_dict = net.state_dict()
        assert not any(registry[name].detect(state_dict) for name in ('EDSR', 'DPDNN'))


def test_install_again_and_into_an_empty_registry():
    registry = ArchRegistry()
    spandrel.install(registry)
    spandrel.install(registry)
    assert [str(support.architecture.id) for support in registry] == ['EDSR', 'DPDNN']


def test_main_registry():
    """In a process of its own: spandrel's main registry is for all."""
    script = ('from udl_plugin import spandrel_archs; from spandrel import MAIN_REGISTRY; assert "EDSR" not in '
              'MAIN_REGISTRY; spandrel_archs.install(); assert "EDSR" in MAIN_REGISTRY and "DPDNN" in MAIN_REGISTRY')
    subprocess.run([sys.executable, '-c', script], check=True)


def test_without_spandrel(monkeypatch):
    monkeypatch.setitem(sys.modules, 'spandrel', None)
    monkeypatch.delitem(sys.modules, 'udl_plugin.integrations.spandrel')
    with pytest.raises(UserError, match=r"spandrel is not installed: pip install 'udl_plugin\[spandrel\]'"):
        import udl_plugin.integrations.spandrel  # noqa: F401


def test_load_of_another_network(tmp_path):
    section = {'type': 'MSRResNet', 'num_feat': 8, 'num_block': 2}
    save_checkpoint(tmp_path / 'x.pth', {'params': build_network(section).state_dict()}, section)
    with pytest.raises(UserError, match=r"x\.pth' holds MSRResNet, not one of EDSR, DPDNN"):
        spandrel.load(tmp_path / 'x.pth')
