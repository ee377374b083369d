import functools
import pickle
from collections import OrderedDict

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.srresnet_arch import MSRResNet
from basicsr.utils import get_root_logger
from conftest import TINY

from udl_plugin.archs import EDSRTwo, EDSRVar
from udl_plugin.archs.build import build_network
from udl_plugin.checkpoints.safe_load import load_checkpoint
from udl_plugin.checkpoints.state_dict import (
    describe_contradiction,
    describe_mismatch,
    get_uncertainty_loss,
    load_matching_state_dict,
    read_state_dict,
    save_checkpoint,
)
from udl_plugin.errors import UserError


def save(path, **content):
    torch.save(content, path)
    return path


def test_keys(tmp_path):
    path = save(tmp_path / 'x.pth', params={'a': torch.ones(1)}, params_ema={'a': torch.zeros(1)})
    assert read_state_dict(path) == ({'a': torch.zeros(1)}, 'params_ema')
    assert read_state_dict(path, 'params') == ({'a': torch.ones(1)}, 'params')
    with pytest.raises(UserError, match=r"has no 'parmas_ema' \(it has: params, params_ema\)"):
        read_state_dict(path, 'parmas_ema')
    path = save(tmp_path / 'y.pth', params={'module.a': torch.ones(1)})
    assert read_state_dict(path) == ({'a': torch.ones(1)}, 'params')
    for name in ('_orig_mod.a', 'module._orig_mod.a', '_orig_mod.module.a'):  # of torch.compile
        assert read_state_dict(save(tmp_path / 'y.pth', params={name: torch.ones(1)}))[0].keys() == {'a'}
    path = save(tmp_path / 'z.pth', a=torch.ones(1))
    assert read_state_dict(path, None) == ({'a': torch.ones(1)}, None)
    with pytest.raises(UserError, match=r"z\.pth' has no 'params' \(it has: a\).*param_key_g"):
        read_state_dict(path)


@pytest.mark.parametrize(('content', 'key'), [
    (torch.ones(1), 'params'), (torch.ones(1), None), ([1], 'params'), ({'params': torch.ones(1)}, 'params'),
    ({'params': {'a': 1}}, 'params')])
def test_file_without_state_dict(tmp_path, content, key):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r"x\.pth' (holds no state dict|has no 'params')"):
        read_state_dict(tmp_path / 'x.pth', key)


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="no file '.*nowhere"):
        read_state_dict(tmp_path / 'nowhere.pth')
    with pytest.raises(UserError, match=r'is a folder; name a file in it, such as models/net_g_latest\.pth'):
        read_state_dict(tmp_path)
    (tmp_path / 'x.onnx').write_bytes(b'\x08\x09onnx')
    with pytest.raises(UserError, match=r"x\.onnx' .*it has another format, or holds Python objects") as caught:
        read_state_dict(tmp_path / 'x.onnx')
    assert 'weights_only' not in str(caught.value)  # torch's advice is the opposite of ours
    whole = save(tmp_path / 'whole.pth', params={'a': torch.ones(1000)})
    (tmp_path / 'torn.pth').write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(UserError, match=r'torn\.pth'):
        read_state_dict(tmp_path / 'torn.pth')
    with open(tmp_path / 'evil.pth', 'wb') as file:
        pickle.dump({'params': Payload(tmp_path / 'ran')}, file)
    with pytest.raises(UserError, match=r'evil\.pth'):
        read_state_dict(tmp_path / 'evil.pth')
    assert not (tmp_path / 'ran').exists()


def test_describe_mismatch():
    net = EDSRVar(**TINY)
    assert describe_mismatch(net, net.state_dict()) == ''
    other = EDSRVar(**{**TINY, 'num_feat': 16, 'upscale': 4})
    assert describe_mismatch(net, other.state_dict()) == \
        'it has num_feat: 16 (network_g: 8), upscale: 4 (network_g: 2)'
    assert describe_mismatch(net, EDSR(**TINY).state_dict()).startswith('tensors missing: 6 (var_conv')
    assert 'unknown' in describe_mismatch(EDSR(**TINY), net.state_dict())
    assert 'another shape' in describe_mismatch(EDSR(**TINY), EDSR(**{**TINY, 'num_feat': 16}).state_dict())
    assert 'missing' in describe_mismatch(net, MSRResNet().state_dict())


def test_saved_checkpoint(tmp_path):
    net = EDSRTwo(**TINY)
    network_g = OrderedDict(type='EDSRTwo', **TINY, rgb_mean=(0, 0, 0))
    save_checkpoint(tmp_path / 'new' / 'net.pth', {'params': net.state_dict()}, network_g)
    content = torch.load(tmp_path / 'new' / 'net.pth', weights_only=True)
    assert content.keys() == {'network_g', 'params'}
    assert content['network_g'] == {'type': 'EDSRTwo', **TINY, 'rgb_mean': [0, 0, 0]}
    assert list(content['params']) == list(net.state_dict())
    assert read_state_dict(tmp_path / 'new' / 'net.pth')[0].keys() == net.state_dict().keys()
    EDSRTwo(**TINY).load_state_dict(content['params'], strict=True)


def test_saved_uncertainty_loss(tmp_path):
    net, path = EDSRVar(**TINY), tmp_path / 'net.pth'
    save_checkpoint(path, {'params': net.state_dict()}, {'type': 'EDSRVar', **TINY}, 'EU')
    content = torch.load(path, weights_only=True)
    assert content['uncertainty_loss'] == 'EU' == get_uncertainty_loss(load_checkpoint(path))
    assert get_uncertainty_loss({'params': {}}) is get_uncertainty_loss({'uncertainty_loss': 3}) is None


def test_mismatch_names_the_recorded_network(tmp_path):
    section = {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_group': 1, 'num_block': 1}
    save_checkpoint(tmp_path / 'net.pth', {'params': build_network(section).state_dict()}, section)
    message = r"path\.pretrain_network_g: '.*The file was written for \{'type': 'RCAN'.* no variance head"
    with pytest.raises(UserError, match=message):
        load_matching_state_dict(EDSRTwo(**TINY), tmp_path / 'net.pth')
    message = r'path\.pretrain_network_g: there is no file .*nowhere\.pth.* Train step 1 first, or name its checkpoint'
    with pytest.raises(UserError, match=message):
        load_matching_state_dict(EDSRTwo(**TINY), tmp_path / 'nowhere.pth')


def test_one_read_for_several_networks(tmp_path):
    """As for a network and its moving average."""
    net, ema, path = EDSRVar(**TINY), EDSRVar(**TINY), tmp_path / 'net.pth'
    save_checkpoint(path, {'params': net.state_dict(), 'params_ema': ema.state_dict()}, {'type': 'EDSRVar', **TINY})
    paths = []

    @functools.lru_cache
    def read(path):
        paths.append(path)
        return load_checkpoint(path)

    for key, source in (('params', net), ('params_ema', ema)):
        state_dict, found_key, mismatch = load_matching_state_dict(EDSRTwo(**TINY), path, key, read=read)
        assert (found_key, mismatch) == (key, '')
        assert torch.equal(state_dict['var_net.conv_last.weight'], source.state_dict()['conv_last.weight'])
    with pytest.raises(UserError, match=r"path\.pretrain_network_g: '.*net\.pth' does not fit network_g: EDSR"):
        load_matching_state_dict(EDSR(**{**TINY, 'num_feat': 16}), path, read=read)
    assert paths == [path]


@pytest.mark.parametrize(('arch', 'options', 'strict', 'message'), [
    (EDSRVar, {}, True, 'checkpoint of step 2: set network_g.type to a step-2 network, such as EDSRTwo, or extract'),
    (EDSRTwo, {'num_feat': 16}, False, 'Both steps require the same network'),
])
def test_advice_on_a_step_2_checkpoint(tmp_path, arch, options, strict, message):
    save_checkpoint(tmp_path / 'net.pth', {'params': EDSRTwo(**TINY).state_dict()}, {'type': 'EDSRTwo', **TINY})
    with pytest.raises(UserError, match=message):
        load_matching_state_dict(arch(**{**TINY, **options}), tmp_path / 'net.pth', strict=strict)


def test_advice_and_result_with_strict_load(tmp_path):
    save_checkpoint(tmp_path / 'net.pth', {'params': EDSR(**TINY).state_dict()}, {'type': 'EDSR', **TINY})
    with pytest.raises(UserError, match=r'Set the same options in network_g, or path\.strict_load_g: false'):
        load_matching_state_dict(EDSRVar(**TINY), tmp_path / 'net.pth')
    _, _, mismatch = load_matching_state_dict(EDSRVar(**TINY), tmp_path / 'net.pth', strict=False)
    assert mismatch.startswith('tensors missing: 6 (var_conv')
    with pytest.raises(UserError, match=r'Set the same options in network_g\.$'):  # nothing fits
        load_matching_state_dict(torch.nn.Conv2d(1, 1, 1), tmp_path / 'net.pth', strict=False)


@pytest.mark.parametrize(('recorded', 'network_g', 'found'), [
    ({'type': 'EDSR', **TINY}, {'type': 'EDSR', **TINY, 'res_scale': 0.1}, 'network_g.res_scale: 1, the yml has 0.1'),
    ({'type': 'EDSR', **TINY, 'rgb_mean': [0, 0, 0]}, {'type': 'EDSRTwo', **TINY, 'img_range': 1},
     'network_g.img_range: 255.0, the yml has 1; '
     'network_g.rgb_mean: [0, 0, 0], the yml has [0.4488, 0.4371, 0.404]'),
    ({'type': 'EDSRVar', **TINY, 'res_scale': 0.1}, {'type': 'TwoStep', 'backbone': {'type': 'EDSR', **TINY}},
     'network_g.backbone.res_scale: 0.1, the yml has 1'),
    ({'type': 'EDSR', **TINY}, {'type': 'RCAN', **TINY}, 'network_g.type: EDSR, the yml has RCAN'),
    ({'type': 'WithVariance', 'backbone': {'type': 'EDSR', **TINY}, 'features': 'upsample'},
     {'type': 'TwoStep', 'backbone': {'type': 'EDSR', **TINY}, 'features': 'conv_last'},
     'network_g.features: upsample, the yml has conv_last'),
    ({'type': 'EDSR', **TINY, 'res_scale': torch.ones(2)}, {'type': 'EDSR', **TINY}, 'network_g.res_scale: tensor'),
])
def test_contradiction(recorded, network_g, found):
    assert describe_contradiction(recorded, network_g).startswith(f'was trained with {found}')


@pytest.mark.parametrize(('recorded', 'network_g'), [
    ({'type': 'EDSRVar', **TINY}, {'type': 'TwoStep', 'backbone': {'type': 'EDSR', **TINY, 'res_scale': 1.0}}),
    ({'type': 'EDSR', **TINY}, {'type': 'EDSR', **TINY, 'rgb_mean': [0.4488, 0.4371, 0.4040]}),
    ({'type': 'DPDNN', 'checkpointing': True}, {'type': 'DPDNNVar', 'checkpointing': False}),  # of no effect on images
    ({'type': 'SwinIR'}, {'type': 'SwinIR', 'use_checkpoint': True, 'drop_path_rate': 0}),
    ({'type': 'WithVariance', 'backbone': {'type': 'EDSR', **TINY}},
     {'type': 'EDSRVar', **TINY, 'features': 'upsample'}),
    ({'type': torch.ones(2)}, {'type': 'EDSR'}),
    ({'type': 'EDSR', **TINY, 'features': torch.ones(2)}, {'type': 'EDSRVar', **TINY, 'features': 'upsample'}),
    (None, {'type': 'EDSR'}), (3, {'type': 'EDSR'}), ({'backbone': 3}, {'type': 'EDSR'}),
])
def test_no_contradiction(recorded, network_g):
    assert describe_contradiction(recorded, network_g) == ''


def test_contradiction_is_an_error_or_logged(tmp_path, caplog, monkeypatch):
    """The weights fit, and would give other images."""
    path, network_g = tmp_path / 'x.pth', {'type': 'EDSRTwo', **TINY, 'res_scale': 0.1}
    save_checkpoint(path, {'params': EDSRVar(**TINY).state_dict()}, {'type': 'EDSRVar', **TINY})
    message = (r"path\.pretrain_network_g: '.*x\.pth' was trained with network_g\.res_scale: 1, the yml has 0\.1\. "
               r'Write .* or path\.strict_load_g: false')
    with pytest.raises(UserError, match=message):
        load_matching_state_dict(EDSRTwo(**TINY), path, network_g=network_g)
    monkeypatch.setattr(get_root_logger(), 'propagate', True)
    load_matching_state_dict(EDSRTwo(**TINY), path, strict=False, network_g=network_g)
    assert 'res_scale: 1, the yml has 0.1. Loaded anyway' in caplog.text
