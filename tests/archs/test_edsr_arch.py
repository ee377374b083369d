import copy
import pickle

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from torch import nn

from udl_plugin.archs import EDSRTwo, EDSRVar, VarianceHead
from udl_plugin.archs.build import build_network
from udl_plugin.archs.edsr_arch import infer_edsr_config
from udl_plugin.config.cross_checks import check_network
from udl_plugin.errors import UserError

TINY = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2}
VARIANTS = [
    {**TINY, 'upscale': 2},
    {**TINY, 'upscale': 3, 'res_scale': 0.1},
    {**TINY, 'upscale': 4, 'rgb_mean': [0, 0, 0]},
    {**TINY, 'upscale': 8, 'img_range': 1.},
]
pytestmark = pytest.mark.usefixtures('seed')


def record_calls(net):
    """Names of the submodules that run, in order."""
    ran = []
    for name, module in net.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    return ran


@pytest.mark.parametrize('options', VARIANTS)
def test_forward_of_step_2(options):
    net, x = EDSRTwo(**options), torch.rand(2, 3, 5, 7, requires_grad=True)
    sr, log_var = net(x, return_log_var=True)
    assert type(net.sr_net) is EDSR
    assert torch.equal(net(x), net.sr_net(x))
    assert torch.equal(sr, net.sr_net(x))
    assert torch.equal(log_var, net.var_net(x, return_log_var=True)[1])
    assert not log_var.requires_grad


@pytest.mark.parametrize('changes', [{'num_in_ch': 1, 'num_out_ch': 1}, {'num_out_ch': 1}])
def test_one_channel(changes):
    """BasicSR's class is built with it, and fails when it is run, or returns three channels."""
    for network_g in ({'type': 'EDSR', **TINY, **changes}, {'type': 'EDSRVar', **TINY, **changes},
                      {'type': 'EDSRTwo', **TINY, **changes}):
        with pytest.raises(UserError, match=r"num_\w+_ch: 1: BasicSR's EDSR .* requires 3. For images of one channel, "
                                            'use DPDNN'):
            build_network(network_g)
    with pytest.raises(UserError, match='network_g: num_in_ch: 1: '):
        check_network({'network_g': {'type': 'EDSR', **TINY, 'num_in_ch': 1}, 'model_type': 'UDLModel', 'path': {}})


def test_double_precision():
    """In BasicSR the mean is not a buffer: it must follow the input."""
    x = torch.rand(1, 3, 5, 5, dtype=torch.float64)
    assert all(out.dtype == torch.float64 for out in EDSRVar(**TINY, upscale=2).double()(x, return_log_var=True))


@pytest.mark.parametrize('upscale', [1, 2, 3, 4, 8])
def test_variance_head_equals_the_reference(seed, upscale):
    """Upsampling in the kernel gives the results and gradients of upsampling the features."""
    head = VarianceHead(8, 3, upscale).double()
    feat = torch.randn(2, 8, 4, 5, dtype=torch.float64, requires_grad=True)
    x = feat.repeat_interleave(upscale, dim=2).repeat_interleave(upscale, dim=3)
    for layer in (0, 2, 4):
        x = nn.functional.elu(nn.functional.conv2d(x, head[layer].weight, head[layer].bias, padding=1))
    torch.testing.assert_close(head(feat), x)
    inputs, probe = [feat, *head.parameters()], torch.randn_like(x)
    for got, expected in zip(*(torch.autograd.grad((out * probe).sum(), inputs) for out in (head(feat), x))):
        torch.testing.assert_close(got, expected)
    assert head(1e3 * feat).min() >= -1


def test_forward_does_not_run_the_variance_branch():
    net = EDSRVar(**TINY, upscale=2)
    ran = record_calls(net)
    net(torch.rand(1, 3, 4, 4))
    assert 'backbone.conv_last' in ran
    assert not any(name.startswith('var_conv') for name in ran)
    net = EDSRTwo(**TINY, upscale=2)
    ran = record_calls(net)
    net(torch.rand(1, 3, 4, 4))
    assert not any(name.startswith('var_net') for name in ran)


def test_log_var_does_not_run_the_tail_of_the_frozen_network():
    net = EDSRTwo(**TINY, upscale=2)
    ran = record_calls(net)
    net(torch.rand(1, 3, 4, 4), return_log_var=True)
    assert 'var_net.var_conv' in ran
    assert 'var_net.backbone.conv_last' not in ran
    assert 'var_net.backbone.upsample.0' not in ran


def test_frozen_network_cannot_be_trained():
    net = EDSRTwo(**TINY, upscale=2)
    assert {name.split('.')[0] for name, _ in net.named_parameters()} == {'sr_net'}
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in EDSR(**TINY, upscale=2).parameters())
    net.requires_grad_(True)
    assert not any(tensor.requires_grad for tensor in net.var_net.state_dict(keep_vars=True).values())
    assert not any(module.training for module in net.var_net.modules())
    net.train()
    assert net.training
    assert net.sr_net.training
    assert not any(module.training for module in net.var_net.modules())


def test_frozen_network_is_not_broadcast():
    """DistributedDataParallel looks for these names."""
    net = EDSRTwo(**TINY, upscale=2)
    frozen = {name for name, _ in net.named_buffers()}
    assert {name.split('.')[0] for name in frozen} == {'var_net'}
    assert set(net._ddp_params_and_buffers_to_ignore) == frozen


def test_frozen_network_is_saved_moved_and_copied():
    net = EDSRTwo(**TINY, upscale=2)
    names = set(net.state_dict())
    assert {name for name in names if name.startswith('var_net.')} == \
        {f'var_net.{name}' for name in EDSRVar(**TINY, upscale=2).state_dict()}
    assert copy.deepcopy(net).double().var_net.backbone.conv_first.weight.dtype == torch.float64
    assert set(pickle.loads(pickle.dumps(net)).state_dict()) == names


@pytest.mark.parametrize('options', VARIANTS)
def test_step_1_state_dict_loads_into_both_branches(options):
    step1, net, x = EDSRVar(**options), EDSRTwo(**options), torch.rand(1, 3, 6, 6)
    net.load_state_dict(step1.state_dict(), strict=True)
    assert torch.equal(net(x), step1(x))
    assert torch.equal(net.var_net.log_var(x), step1.log_var(x))
    with torch.no_grad():
        net.sr_net.conv_last.bias += 1
    again = EDSRTwo(**options)
    again.load_state_dict(net.state_dict(), strict=True)  # of step 2: unchanged
    assert torch.equal(again(x), net(x))
    assert torch.equal(again.var_net(x), step1(x))


@pytest.mark.parametrize('options', VARIANTS)
@pytest.mark.parametrize('arch', [EDSRVar, EDSRTwo])
def test_options_are_inferred_from_weights(arch, options):
    shaping = {name: options[name] for name in ('num_in_ch', 'num_out_ch', 'num_feat', 'num_block', 'upscale')}
    assert arch.options_from_weights(arch(**options).state_dict()) == shaping
    assert EDSRTwo.options_from_weights(EDSRVar(**options).state_dict()) == shaping
    assert infer_edsr_config({'some.weight': torch.zeros(1)}) is None


@pytest.mark.parametrize('arch', ['EDSRVar', 'EDSRTwo'])
def test_unknown_option(arch):
    with pytest.raises(UserError, match=f"'num_feats' is not an option of type: {arch} .did you mean 'num_feat'"):
        build_network({'type': arch, **TINY, 'num_feats': 8})


def test_other_networks_are_not_inferred_as_edsr():
    swinir = {'type': 'SwinIR', 'img_size': 8, 'window_size': 8, 'depths': [2], 'embed_dim': 12, 'num_heads': [2]}
    for network_g in ({**swinir, 'upsampler': 'pixelshuffle'}, {'type': 'MSRResNet', 'num_feat': 8, 'num_block': 1},
                    {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_group': 1, 'num_block': 1}):
        assert infer_edsr_config(build_network(network_g).state_dict()) is None
    good = EDSRVar(**TINY, upscale=4).state_dict()
    assert infer_edsr_config(good)['upscale'] == 4
    for name, shape in (('body.alpha', 1), ('extra', 1), ('conv_first.weight', 1), ('conv_first.weight', (0, 3, 3, 3))):
        assert infer_edsr_config({**good, name: torch.zeros(shape)}) is None


def test_step_2_returns_the_frozen_sr_image():
    net = EDSRTwo(**TINY).eval()
    x = torch.rand(1, 3, 8, 9)
    with torch.no_grad():
        sr, frozen_sr = net.sr_net(x), net.var_net(x)
        log_var = net.var_net.log_var(x)
        for flags, expected in (({'return_frozen_sr': True}, (sr, frozen_sr)),
                                ({'return_log_var': True, 'return_frozen_sr': True}, (sr, log_var, frozen_sr))):
            found = net(x, **flags)
            assert len(found) == len(expected)
            for one, other in zip(found, expected):
                torch.testing.assert_close(one, other)
    assert not torch.equal(sr, frozen_sr)
    assert not net(x, return_frozen_sr=True)[1].requires_grad
