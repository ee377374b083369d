import pickle
from collections import OrderedDict

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.srresnet_arch import MSRResNet
from conftest import TINY

from udl_plugin.archs import EDSRTwo, EDSRVar
from udl_plugin.archs.build import build_network
from udl_plugin.archs.wrapping import base_state_dict
from udl_plugin.checkpoints.state_dict import (
    describe_mismatch,
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
    assert read_state_dict(path) == ({'a': torch.ones(1)}, 'params')
    assert read_state_dict(path, 'params_ema') == ({'a': torch.zeros(1)}, 'params_ema')
    with pytest.raises(UserError, match=r"has no 'parmas_ema' \(it has: params, params_ema\)"):
        read_state_dict(path, 'parmas_ema')
    path = save(tmp_path / 'y.pth', params={'module.a': torch.ones(1)})
    assert read_state_dict(path, 'params_ema') == ({'a': torch.ones(1)}, 'params')
    path = save(tmp_path / 'z.pth', a=torch.ones(1))
    assert read_state_dict(path, None) == ({'a': torch.ones(1)}, None)
    with pytest.raises(UserError, match=r"z\.pth' has no 'params' \(it has: a\).*param_key_g"):
        read_state_dict(path)


@pytest.mark.parametrize(('content', 'key'), [
    (torch.ones(1), 'params'), (torch.ones(1), None), ([1], 'params'), ({'params': torch.ones(1)}, 'params'),
    ({'params': {'a': 1}}, 'params')])
def test_no_state_dict(tmp_path, content, key):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r'x\.pth'):
        read_state_dict(tmp_path / 'x.pth', key)


class Payload:
    """Would make a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="no file '.*nowhere"):
        read_state_dict(tmp_path / 'nowhere.pth')
    (tmp_path / 'text.pth').write_text('hello')
    with pytest.raises(UserError, match=r'text\.pth'):
        read_state_dict(tmp_path / 'text.pth')
    whole = save(tmp_path / 'whole.pth', params={'a': torch.ones(1000)})
    (tmp_path / 'torn.pth').write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(UserError, match=r'torn\.pth'):
        read_state_dict(tmp_path / 'torn.pth')
    with open(tmp_path / 'evil.pth', 'wb') as file:
        pickle.dump({'params': Payload(tmp_path / 'ran')}, file)
    with pytest.raises(UserError, match=r'evil\.pth'):
        read_state_dict(tmp_path / 'evil.pth')
    assert not (tmp_path / 'ran').exists()


def test_explain_mismatch():
    net = EDSRVar(**TINY)
    assert describe_mismatch(net, net.state_dict()) == ''
    other = EDSRVar(**{**TINY, 'num_feat': 16, 'upscale': 4})
    assert describe_mismatch(net, other.state_dict()) == \
        'it has num_feat: 16 (network_g: 8), upscale: 4 (network_g: 2)'
    assert describe_mismatch(net, EDSR(**TINY).state_dict()).startswith('tensors missing: 6 (var_conv')
    assert 'unknown' in describe_mismatch(EDSR(**TINY), net.state_dict())
    assert 'another shape' in describe_mismatch(EDSR(**TINY), EDSR(**{**TINY, 'num_feat': 16}).state_dict())
    assert 'missing' in describe_mismatch(net, MSRResNet().state_dict())


@pytest.mark.parametrize('arch', [EDSRVar, EDSRTwo])
def test_plain_network_in_it(arch):
    net, plain = arch(**TINY), EDSR(**TINY)
    plain.load_state_dict(base_state_dict(net.state_dict()), strict=True)
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(plain(x), net(x))
    assert base_state_dict(plain.state_dict()).keys() == plain.state_dict().keys()


def test_written_checkpoint(tmp_path):
    net = EDSRTwo(**TINY)
    section = OrderedDict(type='EDSRTwo', **TINY, rgb_mean=(0, 0, 0))
    save_checkpoint(tmp_path / 'new' / 'net.pth', {'params': net.state_dict()}, section)
    content = torch.load(tmp_path / 'new' / 'net.pth', weights_only=True)
    assert content['network_g'] == {'type': 'EDSRTwo', **TINY, 'rgb_mean': [0, 0, 0]}
    assert list(content['params']) == list(net.state_dict())
    assert read_state_dict(tmp_path / 'new' / 'net.pth')[0].keys() == net.state_dict().keys()
    EDSRTwo(**TINY).load_state_dict(content['params'], strict=True)


def test_mismatch_tells_what_the_file_says(tmp_path):
    section = {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_group': 1, 'num_block': 1}
    save_checkpoint(tmp_path / 'net.pth', {'params': build_network(section).state_dict()}, section)
    with pytest.raises(UserError, match=r"The file says that it is of: \{'type': 'RCAN'.* no variance head"):
        load_matching_state_dict(EDSRTwo(**TINY), tmp_path / 'net.pth')
    with pytest.raises(UserError, match=r'no file .*nowhere\.pth.* Train step 1 first, or name its checkpoint'):
        load_matching_state_dict(EDSRTwo(**TINY), tmp_path / 'nowhere.pth')


def test_files_that_are_taken_for_checkpoints(tmp_path):
    (tmp_path / 'x.onnx').write_bytes(b'\x08\x09onnx')
    with pytest.raises(UserError) as caught:
        read_state_dict(tmp_path / 'x.onnx')
    assert 'it is of another kind, or holds more than tensors' in str(caught.value)
    assert 'weights_only' not in str(caught.value)  # torch's advice is the opposite of ours
    with pytest.raises(UserError, match=r'is a folder; name a file in it, such as models/net_g_latest\.pth'):
        read_state_dict(tmp_path)
