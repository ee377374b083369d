"""Networks in and out of files: which network is identified, what is refused, and that its output stays the same."""
import sys

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import TINY
from torch import nn

from udl_plugin.archs.build import build_network
from udl_plugin.archs.wrapping import base_config, wrapped_config
from udl_plugin.checkpoints.export import export_network
from udl_plugin.checkpoints.network_file import NetworkFile, load_network_file
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.config.class_options import check_class_options
from udl_plugin.errors import UserError
from udl_plugin.utils import user_imports

REFERENCE_OPTIONS = {'res_scale': 0.1, 'img_range': 255.0, 'rgb_mean': [0, 0, 0]}
DPDNN = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_step': 2, 'upscale': 3}
RCAN = {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_group': 1, 'num_block': 1, 'upscale': 2}
CONFIGS = [
    {'type': 'EDSR', **TINY, **REFERENCE_OPTIONS},
    {'type': 'EDSRVar', **TINY, **REFERENCE_OPTIONS},
    {'type': 'EDSRTwo', **TINY, **REFERENCE_OPTIONS, 'upscale': 4},
    {'type': 'DPDNN', **DPDNN},
    {'type': 'DPDNNVar', **DPDNN, 'img_range': 1.0, 'upscale': 2},
    {'type': 'DPDNNTwo', **DPDNN},
    {'type': 'WithVariance', 'backbone': RCAN},
    {'type': 'TwoStep', 'backbone': RCAN, 'features': 'conv_last'},
    {'type': 'ECBSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 1, 'num_channel': 4, 'with_idt': True,
     'act_type': 'prelu', 'scale': 2},  # its options have no defaults
]
pytestmark = pytest.mark.usefixtures('seed')


def get_type(config):
    return config['type']


def save_new(tmp_path, config, recorded=True):
    """Saves a new network, with or without its config."""
    net = build_network(config).eval()
    path = tmp_path / 'net.pth'
    if recorded:
        save_checkpoint(path, {'params': net.state_dict()}, config, 'EU')
    else:
        torch.save({'params': net.state_dict()}, path)
    return net, path


def images(net_or_file):
    net = net_or_file.build() if isinstance(net_or_file, NetworkFile) else net_or_file
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return net(torch.rand(1, 3, 9, 8, generator=generator))


@pytest.mark.parametrize('config', CONFIGS, ids=get_type)
@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.safetensors'])
def test_export_of_base_network(tmp_path, config, suffix):
    net, path = save_new(tmp_path, config)
    export_network(tmp_path / f'plain{suffix}', load_network_file(path))
    file = load_network_file(tmp_path / f'plain{suffix}')
    assert file.stage == 'plain'
    assert file.notes == []
    assert file.uncertainty_loss is None
    assert file.network_g == base_config(config)
    assert torch.equal(images(file), images(net))


@pytest.mark.parametrize('config', CONFIGS, ids=get_type)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_export_of_complete_network(tmp_path, config, suffix):
    net, path = save_new(tmp_path, config)
    export_network(tmp_path / f'same{suffix}', load_network_file(path), 'udl')
    file = load_network_file(tmp_path / f'same{suffix}')
    assert file.network_g == config
    assert file.uncertainty_loss == (None if file.stage == 'plain' else 'EU')
    assert file.state_dict.keys() == net.state_dict().keys()
    assert all(torch.equal(value, file.state_dict[name]) for name, value in net.state_dict().items())


def test_exported_base_network_loads_in_basicsr(tmp_path):
    """`params` of the .pth, and the .safetensors file, load with `strict=True`."""
    from safetensors.torch import load_file
    net, path = save_new(tmp_path, CONFIGS[2])
    options = {key: value for key, value in CONFIGS[2].items() if key != 'type'}
    export_network(tmp_path / 'plain.pth', load_network_file(path))
    export_network(tmp_path / 'plain.safetensors', load_network_file(path))
    for state_dict in (torch.load(tmp_path / 'plain.pth', weights_only=True)['params'],
                       load_file(tmp_path / 'plain.safetensors')):
        plain = EDSR(**options)
        plain.load_state_dict(state_dict, strict=True)
        assert torch.equal(images(plain), images(net))


@pytest.mark.parametrize(('config', 'assumed'), [
    (CONFIGS[1], 'res_scale: 1, img_range: 255.0, rgb_mean: [0.4488, 0.4371, 0.404]'),
    (CONFIGS[5], 'img_range: 255.0')], ids=['EDSRVar', 'DPDNNTwo'])
def test_file_without_config(tmp_path, config, assumed):
    net, path = save_new(tmp_path, config, recorded=False)
    file = load_network_file(path)
    assert assumed in file.notes[0]
    assert '--opt' in file.notes[0]
    shape = {key: value for key, value in config.items() if key not in REFERENCE_OPTIONS}
    assert file.network_g == shape
    file = load_network_file(path, network_g=config)
    assert file.notes == []
    assert torch.equal(images(file), images(net))


def test_config_of_another_step(tmp_path):
    net, path = save_new(tmp_path, CONFIGS[1], recorded=False)
    assert load_network_file(path, network_g={**CONFIGS[0]}).network_g == CONFIGS[1]
    assert torch.equal(images(load_network_file(path, network_g={**CONFIGS[0], 'type': 'EDSRTwo'})), images(net))


def test_other_network_without_config(tmp_path):
    net, path = save_new(tmp_path, CONFIGS[6], recorded=False)
    with pytest.raises(UserError, match=r"net\.pth': its weights are neither an EDSR nor a DPDNN.*--opt"):
        load_network_file(path)
    assert torch.equal(images(load_network_file(path, network_g=CONFIGS[6])), images(net))


def test_config_from_the_user_may_name_any_network(tmp_path, monkeypatch):
    class Mine(torch.nn.Conv2d):
        def __init__(self):
            super().__init__(3, 3, 1)

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Mine', Mine)
    torch.save({'params': Mine().state_dict()}, tmp_path / 'net.pth')
    assert type(load_network_file(tmp_path / 'net.pth', network_g={'type': 'Mine'}).build()) is Mine
    for config in ({}, {'num_feat': 8}, {'backbone': 'EDSR'}):
        with pytest.raises(UserError, match='network_g: .* has no type'):
            load_network_file(tmp_path / 'net.pth', network_g=config)


def test_keys(tmp_path):
    net, ema = build_network(CONFIGS[0]), build_network(CONFIGS[0])
    path = tmp_path / 'net.pth'
    save_checkpoint(path, {'params': net.state_dict(), 'params_ema': ema.state_dict()}, CONFIGS[0])
    assert torch.equal(images(load_network_file(path)), images(ema))
    assert 'using params_ema, the moving average' in load_network_file(path).notes[0]
    assert torch.equal(images(load_network_file(path, 'params')), images(net))
    assert load_network_file(path, 'params').notes == []
    with pytest.raises(UserError, match=r"has no 'parmas'; it has: network_g, params, params_ema"):
        load_network_file(path, 'parmas')
    torch.save(net.state_dict(), path)  # a state dict itself
    assert torch.equal(images(load_network_file(path, network_g=CONFIGS[0])), images(net))


def test_weights_that_contradict_the_config(tmp_path):
    net, path = save_new(tmp_path, CONFIGS[0])
    with pytest.raises(UserError, match=r"net\.pth': its weights have num_feat: 8 \(network_g: 16\)"):
        load_network_file(path, network_g={**CONFIGS[0], 'num_feat': 16})
    save_checkpoint(path, {'params': net.state_dict()}, {**CONFIGS[0], 'upscale': 3})
    with pytest.raises(UserError, match=r'upscale: 2 \(network_g: 3\)'):
        load_network_file(path)
    with pytest.raises(UserError, match='do not fit network_g.*missing'):
        load_network_file(path, network_g=RCAN)
    with pytest.raises(UserError, match="network_g: 'res_scal' is not an option of type: EDSR"):
        load_network_file(path, network_g={**CONFIGS[0], 'res_scal': 1})


@pytest.mark.parametrize(('declared', 'message'), [
    ('EDSR', 'EDSR has no type'), ({'type': 'RCANN'}, "there is no 'RCANN' .did you mean 'RCAN'"),
    ({'type': 'BasicVSR', 'spynet_path': 'x'}, 'spynet_path: x would read another file'),
    ({'type': 'EDSR', 'num_feat': '../x.pth'}, 'num_feat: .* would read another file'),
    ({'type': 'BasicVSR', 'a': {'b': [{'file': 'x'}]}}, 'a: .* would read another file'), ({'a': 1}, 'has no type'),
    ({'type': 'WithVariance', 'backbone': 'EDSR'}, 'has no type'), ([1], 'has no type')])
def test_invalid_recorded_config(tmp_path, declared, message):
    content = {'params': build_network(CONFIGS[0]).state_dict(), 'network_g': declared}
    torch.save(content, tmp_path / 'net.pth')
    with pytest.raises(UserError, match=rf"net\.pth': network_g[.:].*{message}"):
        load_network_file(tmp_path / 'net.pth')


@pytest.mark.parametrize(('config', 'message'), [
    ({**CONFIGS[0], 'res_scale': 'abc'}, 'EDSR cannot be run on a small image .*TypeError'),
    ({**CONFIGS[0], 'rgb_mean': [1]}, 'type: EDSR: cannot be built'),
    ({**RCAN, 'num_feat': '16'}, 'type: RCAN: cannot be built'),
    ({key: value for key, value in RCAN.items() if key != 'num_in_ch'}, 'type: RCAN: cannot be built'),
    ({'type': 'WithVariance', 'backbone': RCAN, 'features': [1]}, 'type: WithVariance: cannot be built'),
])
def test_recorded_config_with_invalid_values(tmp_path, config, message):
    good = {'RCAN': RCAN, 'WithVariance': CONFIGS[6]}.get(config['type'], CONFIGS[0])
    torch.save({'params': build_network(good).state_dict(), 'network_g': config}, tmp_path / 'net.pth')
    with pytest.raises(UserError, match=message):
        load_network_file(tmp_path / 'net.pth')


def test_weights_that_are_not_finite(tmp_path):
    state_dict = build_network(CONFIGS[0]).state_dict()
    state_dict['conv_last.bias'][1] = float('nan')
    save_checkpoint(tmp_path / 'net.pth', {'params': state_dict}, CONFIGS[0])
    with pytest.raises(UserError, match=r"net\.pth': conv_last\.bias has values that are not finite"):
        load_network_file(tmp_path / 'net.pth')


def test_network_that_changes_the_number_of_channels(tmp_path):
    config = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 1, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4}
    save_checkpoint(tmp_path / 'net.pth', {'params': build_network(config).state_dict()}, config)
    with pytest.raises(UserError, match=r"net\.pth': the network turns an image of 3 channels into one of 1"):
        load_network_file(tmp_path / 'net.pth')


@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors'])
def test_files_that_cannot_be_read(tmp_path, name):
    with pytest.raises(UserError, match='there is no file'):
        load_network_file(tmp_path / name)
    (tmp_path / name).write_bytes(b'nothing of the kind')
    with pytest.raises(UserError, match=rf'{name}.* cannot be read as'):
        load_network_file(tmp_path / name)
    _, path = save_new(tmp_path, CONFIGS[0])
    if name == 'x.safetensors':
        export_network(tmp_path / 'good.safetensors', load_network_file(path))
        path = tmp_path / 'good.safetensors'
    (tmp_path / name).write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=name):
        load_network_file(tmp_path / name)


@pytest.mark.parametrize('content', [{'params': {'x': 1}}, {'params': {}}, torch.zeros(1), [1], {'params': [1]}])
def test_files_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r"x\.pth' holds no state dict"):
        load_network_file(tmp_path / 'x.pth')


def test_bad_targets(tmp_path):
    file = load_network_file(save_new(tmp_path, CONFIGS[5])[1])
    with pytest.raises(UserError, match=r"x\.pkl': the suffix must be one of \.pth"):
        export_network(tmp_path / 'x.pkl', file)
    with pytest.raises(UserError, match=r"x\.pth': float16 is for \.onnx only"):
        export_network(tmp_path / 'x.pth', file, half=True)
    assert not list(tmp_path.glob('x.*'))


@pytest.mark.parametrize(('suffix', 'missing'), [('.safetensors', 'safetensors.torch'), ('.onnx', 'onnxruntime')])
def test_missing_package(tmp_path, monkeypatch, suffix, missing):
    file = load_network_file(save_new(tmp_path, CONFIGS[0])[1])
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"needs the package {missing.split('.')[0]}: pip install 'udl_plugin\[conv"):
        export_network(tmp_path / f'x{suffix}', file)


@ARCH_REGISTRY.register()
class UsersNetwork(nn.Module):
    """A user's own network."""

    def __init__(self, num_feat=4, upscale=2, norm_path=None):
        super().__init__()
        self.body = nn.Conv2d(3, num_feat, 3, 1, 1)
        self.up = nn.Sequential(nn.Conv2d(num_feat, 3 * upscale ** 2, 3, 1, 1), nn.PixelShuffle(upscale))

    def forward(self, x):
        return self.up(self.body(x))


@pytest.mark.parametrize('stage', ['plain', 'step 1', 'step 2'])
def test_any_registered_network(tmp_path, stage):
    config = wrapped_config(stage, {'type': 'UsersNetwork', 'num_feat': 6, 'norm_path': None})
    net, path = save_new(tmp_path, config)
    file = load_network_file(path)
    assert (file.stage, file.network_g) == (stage, config)
    assert all(torch.equal(value, file.state_dict[name]) for name, value in net.state_dict().items())


def test_options_of_any_kind(tmp_path, monkeypatch):
    """Nested lists, lists of strings, None, required ones, and numbers under keys that look like those of files."""
    class ManyOptions(UsersNetwork):
        def __init__(self, blocks, drop_path_rate=0., kinds=(), window=8, path_dims=None, init: int = None, **_):  # noqa: RUF013
            assert (blocks, kinds, window, path_dims, init) == ([[1, 2], [3]], ['a', 'b'], [8, 8], [4, 0.5], None)
            super().__init__()

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'ManyOptions', ManyOptions)
    config = {'type': 'ManyOptions', 'blocks': [[1, 2], [3]], 'drop_path_rate': 0.1, 'kinds': ['a', 'b'],
              'window': [8, 8], 'path_dims': [4, 0.5], 'init': None, 'num_paths': 1, 'pretrain_size': 224}
    assert list(check_class_options(ARCH_REGISTRY, config)) == []
    net, path = save_new(tmp_path, config)
    assert load_network_file(path).network_g == config
    for refused in (True, 1, 'x', ['x'], {'a': 'x'}):
        save_checkpoint(path, {'params': net.state_dict()}, {**config, 'pretrained': refused})
        with pytest.raises(UserError, match=r'network_g.pretrained: .* would read another file'):
            load_network_file(path)


def test_names_of_an_earlier_version(tmp_path):
    from udl_plugin.model_files import read_model
    _, path = save_new(tmp_path, CONFIGS[1])
    assert read_model(path).plain().network_g == CONFIGS[0]


def test_network_of_an_own_module(tmp_path, monkeypatch):
    """A checkpoint names the modules that it needs; reading it imports none."""
    (tmp_path / 'own_module.py').write_text('open("imported", "w")\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(user_imports, '_imported', ['own_module.py'])
    save_checkpoint('x.pth', {'params': build_network(CONFIGS[0]).state_dict()}, {'type': 'OwnNet'})
    with pytest.raises(UserError, match=r"'x.pth': .*there is no 'OwnNet'.* It was trained with imports: "
                                        r"\['own_module.py'\]; pass those that you trust with --import .in Python"):
        load_network_file('x.pth')
    assert not (tmp_path / 'imported').exists()
    export_network('x.safetensors', NetworkFile(build_network(CONFIGS[0]).state_dict(), {'type': 'OwnNet'}), 'udl')
    with pytest.raises(UserError, match=r"'x.safetensors': .* It was trained with imports: \['own_module.py'\]"):
        load_network_file('x.safetensors')
    assert not (tmp_path / 'imported').exists()
    save_checkpoint('x.pth', {'params': build_network(CONFIGS[0]).state_dict()}, CONFIGS[0])
    assert load_network_file('x.pth').architecture == 'EDSR'


def test_config_of_the_user_that_contradicts_the_recorded_one(tmp_path):
    _, path = save_new(tmp_path, CONFIGS[1])
    assert load_network_file(path, network_g=CONFIGS[2] | {'upscale': 2}).stage == 'step 1'
    with pytest.raises(UserError, match=r"net\.pth': it was trained with network_g\.res_scale: 0\.1, --opt has 1\. "):
        load_network_file(path, network_g={**CONFIGS[1], 'res_scale': 1})
