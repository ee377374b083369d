"""A variance head on every super-resolution network of BasicSR, and its step-2 network."""
import copy
import pickle
import threading

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import model_options
from torch import nn

from udl_plugin.archs import EDSRTwo, EDSRVar, TwoStep, VarianceHead, WithVariance
from udl_plugin.archs.build import build_network, get_network_class
from udl_plugin.archs.feature_hook import find_feature_layer
from udl_plugin.archs.padding import get_required_multiple, pad_to_multiple
from udl_plugin.archs.with_variance import takes_options_of
from udl_plugin.archs.wrapping import base_config, base_state_dict, network_stage, wrapped_config
from udl_plugin.errors import UserError

RGB = {'num_in_ch': 3, 'num_out_ch': 3}
SWINIR = {'type': 'SwinIR', 'img_size': 8, 'window_size': 8, 'depths': [2], 'embed_dim': 12, 'num_heads': [2],
          'mlp_ratio': 2}
ECBSR = {'type': 'ECBSR', **RGB, 'num_block': 2, 'num_channel': 8, 'with_idt': False, 'act_type': 'prelu'}
# backbone -> feature layer: the module that the features enter, their channels, the SR image's size over theirs
BACKBONES = [
    *[({'type': 'EDSR', **RGB, 'num_feat': 8, 'num_block': 2, 'upscale': s}, ('upsample.0', 8, s)) for s in (2, 3, 4)],
    *[({'type': 'RCAN', **RGB, 'num_feat': 16, 'num_group': 1, 'num_block': 1, 'upscale': s}, ('upsample.0', 16, s))
      for s in (2, 3, 4)],
    *[({'type': 'MSRResNet', 'num_feat': 8, 'num_block': 2, 'upscale': s}, ('upconv1', 8, s)) for s in (2, 3, 4)],
    *[({'type': 'RRDBNet', **RGB, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4, 'scale': s}, ('conv_up1', 8, 2))
      for s in (2, 4)],
    ({**SWINIR, 'upsampler': 'pixelshuffle', 'upscale': 4}, ('upsample.0', 64, 4)),
    ({**SWINIR, 'upsampler': 'pixelshuffledirect', 'upscale': 3}, ('upsample.0', 12, 3)),
    ({**SWINIR, 'upsampler': 'nearest+conv', 'upscale': 4}, ('conv_up1', 64, 2)),
    ({**SWINIR, 'img_size': 7, 'window_size': 7, 'upsampler': 'pixelshuffle', 'upscale': 2}, ('upsample.0', 64, 2)),
    *[({'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 2, 'upscale': s}, ('body.6', 8, s)) for s in (2, 3, 4)],
    *[({**ECBSR, 'scale': s}, ('backbone.3', 8, s)) for s in (2, 3, 4)],
    ({**ECBSR, 'num_in_ch': 1, 'num_out_ch': 1, 'with_idt': True, 'scale': 2}, ('backbone.3', 8, 2)),
]
ONE_PER_TYPE = {(backbone['type'], backbone.get('upsampler')): backbone for backbone, _ in BACKBONES}.values()
EDSR_X2 = BACKBONES[0][0]
pytestmark = [pytest.mark.usefixtures('seed'), pytest.mark.filterwarnings('ignore:torch.meshgrid')]


def name_of(value):
    return f'{value["type"]}-x{scale_of(value)}' if isinstance(value, dict) else ''


def scale_of(backbone):
    return backbone.get('upscale', backbone.get('scale'))


def lq_for(backbone):
    side = 2 * backbone.get('window_size', 4)
    return torch.rand(2, backbone.get('num_in_ch', 3), side, 2 * side)


@pytest.mark.parametrize(('backbone', 'layer'), BACKBONES, ids=name_of)
def test_features_and_head(backbone, layer):
    net = WithVariance(backbone).eval()
    assert type(net.backbone) is get_network_class(backbone['type'])
    found = find_feature_layer(net.backbone)
    assert (found.module, found.num_feat, found.upscale) == layer
    entered = []
    net.backbone.get_submodule(layer[0]).register_forward_pre_hook(lambda _, args: entered.append(args[0].clone()))
    x = lq_for(backbone)
    sr, log_var = net(x, return_log_var=True)
    scale = scale_of(backbone)
    assert sr.shape == log_var.shape == (2, x.shape[1], scale * x.shape[2], scale * x.shape[3])
    assert torch.equal(log_var, net.var_conv(entered[0]))
    assert torch.equal(net.log_var(x), log_var)
    assert torch.equal(net(x), sr)
    assert torch.is_tensor(net(x))


@pytest.mark.parametrize('backbone', [backbone for backbone, _ in BACKBONES], ids=name_of)
def test_state_dict_has_the_backbones_names(backbone):
    net, base = WithVariance(backbone), build_network(backbone).eval()
    step1 = net.state_dict()
    assert [name for name in step1 if not name.startswith('var_conv.')] == list(base.state_dict())
    base.load_state_dict(base_state_dict(step1), strict=True)
    x = lq_for(backbone)
    assert torch.equal(base(x), net.eval()(x))
    two = TwoStep(backbone).eval()
    two.load_state_dict(step1, strict=True)
    assert type(two.sr_net) is type(base)
    assert torch.equal(two(x), base(x))
    assert torch.equal(two.var_net.log_var(x), net.log_var(x))
    fresh = WithVariance(backbone)
    fresh.load_state_dict(step1, strict=True)
    assert all(torch.equal(value, step1[name]) for name, value in fresh.state_dict().items())
    # step 1 may start from a pretrained base network
    missing, unexpected = WithVariance(backbone).load_state_dict(base.state_dict(), strict=False)
    assert unexpected == []
    assert {name.split('.')[0] for name in missing} == {'var_conv'}


@pytest.mark.parametrize('backbone', ONE_PER_TYPE, ids=name_of)
def test_two_iterations_of_both_steps(tmp_path, backbone):
    """Step 1 trains the head and the backbone, step 2 only `sr_net`."""
    scale = scale_of(backbone)
    opt = model_options(1, tmp_path)
    opt.update(scale=scale, network_g={'type': 'WithVariance', 'backbone': backbone})
    step1 = build_model(opt)
    before = copy.deepcopy(step1.net_g.state_dict())
    batch = {'lq': lq_for(backbone)}
    batch['gt'] = torch.rand(*batch['lq'].shape[:2], *(scale * size for size in batch['lq'].shape[2:]))
    iterate(step1, batch)
    assert step1.net_g.training
    for name, parameter in step1.net_g.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
    trained = changed_modules(step1.net_g, before)
    assert 'var_conv' in trained
    assert len(trained) > 1

    torch.save({'params': step1.net_g.state_dict()}, tmp_path / 'step1.pth')
    opt = model_options(2, tmp_path)
    opt.update(scale=scale, network_g={'type': 'TwoStep', 'backbone': backbone})
    opt['path']['pretrain_network_g'] = str(tmp_path / 'step1.pth')
    step2 = build_model(opt)
    before = copy.deepcopy(step2.net_g.state_dict())
    iterate(step2, batch)
    assert changed_modules(step2.net_g, before) == {'sr_net'}


def iterate(model, batch):
    for iteration in (1, 2):
        model.update_learning_rate(iteration)
        model.feed_data(batch)
        model.optimize_parameters(iteration)


def changed_modules(net, before):
    return {name.split('.')[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def test_gradients_reach_head_and_features():
    net = WithVariance(EDSR_X2)
    net(torch.rand(1, 3, 8, 8), return_log_var=True)[1].sum().backward()
    grads = {name: parameter.grad for name, parameter in net.named_parameters()}
    assert grads['var_conv.0.weight'].abs().sum() > 0
    assert grads['backbone.conv_first.weight'].abs().sum() > 0
    assert grads['backbone.conv_last.weight'] is None


@pytest.mark.parametrize('network_g', [{**EDSR_X2, 'type': 'EDSRVar'}, {'type': 'WithVariance', 'backbone': EDSR_X2},
                                       {'type': 'DPDNNVar', **RGB, 'num_feat': 4, 'num_step': 1, 'upscale': 2}],
                         ids=lambda network_g: network_g['type'])
def test_detached_head(network_g):
    """The same network; the gradient of the map stops at the features."""
    nets = [build_network({**network_g, **options}) for options in ({}, {'detach_features': True})]
    nets[1].load_state_dict(nets[0].state_dict())
    lq = torch.rand(2, 3, 16, 16)
    for one, other in zip(*(net(lq, return_log_var=True) for net in nets)):
        torch.testing.assert_close(one, other)
    nets[1](lq, return_log_var=True)[1].sum().backward()
    assert {name.split('.')[0] for name, parameter in nets[1].named_parameters() if parameter.grad is not None} == {
        'var_conv'}
    assert 'detach_features' not in base_config({**network_g, 'detach_features': True})
    step2 = wrapped_config('step 2', base_config({**network_g, 'detach_features': True}))
    build_network(step2).load_state_dict(nets[1].state_dict())


@pytest.mark.parametrize('dtype', [None, torch.bfloat16], ids=str)
def test_detached_head_learns_from_half_of_the_images(dtype):
    net = WithVariance(EDSR_X2, detach_features=True)
    lq, gradients = torch.rand(6, 3, 8, 8), []
    for part in (slice(None), slice(3), slice(3, None)):
        with torch.autocast('cpu', dtype, enabled=dtype is not None):
            log_var = net(lq, return_log_var=True)[1]
        net.zero_grad()
        log_var[part].float().sum().backward()
        gradients.append(net.var_conv[2].weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1])
    assert not gradients[2].any()


def test_features_option():
    net = WithVariance(EDSR_X2, features='conv_last').eval()
    assert net.var_conv[0].upscale == 1
    x = torch.rand(1, 3, 8, 8)
    feat = []
    net.backbone.conv_last.register_forward_pre_hook(lambda _, args: feat.append(args[0]))
    assert torch.equal(net(x, return_log_var=True)[1], net.var_conv(feat[0]))
    assert TwoStep(EDSR_X2, features='conv_last').var_net.var_conv[0].upscale == 1


def test_wrong_name_lists_candidates():
    with pytest.raises(UserError, match=r"EDSR: features: there is no 'upsmple' .did you mean 'upsample'.*"
                                         r'conv_after_body \(8\), upsample \(8\), upsample.0 \(8\),.* conv_last \(8\)'):
        WithVariance(EDSR_X2, features='upsmple')


class Functional(nn.Module):
    """A backbone whose only module gets no feature map."""

    def __init__(self, upscale=2):
        super().__init__()
        self.weight = nn.Linear(1, 1)

    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=2) * self.weight(torch.ones(1))


class PreUpsampled(nn.Module):
    """Enlarges the image first, with a module, like VDSR."""

    def __init__(self, upscale=2):
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=upscale)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 3, 3, 1, 1))

    def forward(self, x):
        x = self.upsample(x)
        return x + self.body(x)


class Transposed(nn.Module):
    """Enlarges with a transposed convolution, like FSRCNN."""

    def __init__(self, upscale=2):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, 1, 1)
        self.enlarge = nn.ConvTranspose2d(8, 3, 4, 2, 1)

    def forward(self, x):
        return self.enlarge(self.body(x))


class Padded(nn.Module):
    """Pads its input to a multiple of 8 and crops its output."""

    def __init__(self, upscale=2):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, 1, 1)
        self.enlarge = nn.ConvTranspose2d(8, 3, 4, 2, 1)

    def forward(self, x):
        height, width = x.shape[2:]
        x = nn.functional.pad(x, (0, -width % 8, 0, -height % 8))
        return self.enlarge(self.body(x))[:, :, :2 * height, :2 * width]


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError('never runs')


@pytest.fixture
def registered(monkeypatch):
    for cls in (Functional, PreUpsampled, Transposed, Padded, Broken, Shuffled, ShuffledVar):
        monkeypatch.setitem(ARCH_REGISTRY._obj_map, cls.__name__, cls)


def test_other_upsamplers(registered):
    assert find_feature_layer(PreUpsampled()) == ('body.2', 1, 8, 1, 3, 2)
    assert find_feature_layer(Transposed()) == ('enlarge', 1, 8, 2, 3, 2)
    net = WithVariance({'type': 'Transposed'})
    assert net(torch.rand(1, 3, 5, 5), return_log_var=True)[1].shape == (1, 3, 10, 10)


def test_backbone_that_pads(registered):
    net, x = WithVariance({'type': 'Padded'}), torch.rand(1, 3, 13, 18)
    sr, log_var = net(x, return_log_var=True)
    assert sr.shape == log_var.shape == (1, 3, 26, 36)
    assert torch.equal(net.log_var(x), log_var)


def test_options_that_a_backbone_cannot_take():
    for changes in ({'num_feat': 'a'}, {'num_feat': -1}, {'upscale': 5}):
        with pytest.raises(UserError, match=r'type: EDSR: cannot be built with these options .*Error'):
            WithVariance({**EDSR_X2, **changes})


def test_features_that_cannot_be_found(registered):
    with pytest.raises(UserError, match='Functional: features: cannot be found automatically; set it to the name of '):
        WithVariance({'type': 'Functional'})
    with pytest.raises(UserError, match=r'Broken cannot be run on a small image .*RuntimeError: never runs'):
        WithVariance({'type': 'Broken'})


@pytest.mark.parametrize(('backbone', 'message'), [
    ({'type': 'RCANN'}, "backbone: type: there is no 'RCANN' .did you mean 'RCAN'"),
    ('EDSR', "backbone: expected a config such as .*, got 'EDSR'"),
    ({'num_feat': 8}, "backbone: expected a config such as .*, got {'num_feat': 8}"),
    ({'type': 'EDSRVar', **RGB}, 'backbone: type: EDSRVar already has a variance head'),
])
def test_bad_backbone(backbone, message):
    for arch in (WithVariance, TwoStep):
        with pytest.raises(UserError, match=message):
            arch(backbone)


def test_probe_changes_nothing():
    """Neither the random numbers nor the network."""
    net = build_network(BACKBONES[3][0])
    before, random_state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    find_feature_layer(net)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_copy_and_pickle():
    net, x = WithVariance(EDSR_X2), torch.rand(1, 3, 8, 8)
    expected = net.log_var(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other.log_var(x), expected)
        with torch.no_grad():
            other.var_conv[4].bias += 1
    assert torch.equal(net.log_var(x), expected)


def test_many_threads_at_once():
    """DataParallel runs replicas that share their hooks in one thread each."""
    net, images = WithVariance(EDSR_X2).eval(), torch.rand(8, 1, 3, 16, 16)
    with torch.no_grad():
        expected = [net(x, return_log_var=True)[1] for x in images]
        for _ in range(5):
            got = [None] * len(images)

            def run(number, got=got):
                with torch.no_grad():
                    got[number] = net(images[number], return_log_var=True)[1]

            threads = [threading.Thread(target=run, args=(number,)) for number in range(len(images))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(got, expected))


def test_error_in_the_backbone_leaves_nothing_behind():
    net = WithVariance(EDSR_X2)
    with pytest.raises(RuntimeError):
        net(torch.rand(1, 2, 8, 8), return_log_var=True)
    with pytest.raises(RuntimeError):
        net.log_var(torch.rand(1, 2, 8, 8))
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(net(x, return_log_var=True)[1], net.log_var(x))


def test_own_networks_share_the_general_classes():
    for name in ('EDSR', 'DPDNN'):
        assert issubclass(ARCH_REGISTRY.get(f'{name}Var'), WithVariance)
        assert issubclass(ARCH_REGISTRY.get(f'{name}Two'), TwoStep)
        assert isinstance(ARCH_REGISTRY.get(f'{name}Var')(3, 3, num_feat=4).var_conv, VarianceHead)


@pytest.mark.parametrize('arch', [EDSRVar, EDSRTwo])
def test_features_option_of_edsr(arch):
    network_g = {'type': arch.__name__, **RGB, 'num_feat': 8, 'num_block': 1, 'upscale': 2, 'features': 'conv_last'}
    net = build_network(network_g)
    head = (net.var_net if arch is EDSRTwo else net).var_conv
    assert head[0].upscale == 1
    assert 'features' not in base_config(network_g)
    build_network(base_config(network_g)).load_state_dict(base_state_dict(net.state_dict()))
    with pytest.raises(UserError, match="there is no 'conv_lost' .did you mean 'conv_last'"):
        build_network({**network_g, 'features': 'conv_lost'})


def test_class_with_options_of_edsr_and_default_features():
    @takes_options_of(EDSR, features='conv_last')
    class LastVar(WithVariance):
        pass

    assert LastVar(3, 3, num_feat=8, num_block=1).var_conv[0].upscale == 1
    assert LastVar(3, 3, num_feat=8, num_block=1, features='upsample').var_conv[0].upscale == 4


class Shuffled(Transposed):
    required_multiple = 4


@takes_options_of(Shuffled)
class ShuffledVar(WithVariance):
    pass


@pytest.mark.parametrize(('network_g', 'multiple'), [
    (EDSR_X2, 1),
    ({'type': 'EDSRTwo', **RGB}, 1),
    *[({'type': 'RRDBNet', **RGB, 'scale': scale}, multiple) for scale, multiple in ((1, 4), (2, 2), (4, 1))],
    ({'type': 'RRDBNet', **RGB}, 1),
    ({**SWINIR, 'window_size': 5}, 5),
    ({'type': 'TwoStep', 'backbone': {'type': 'SwinIR'}}, 7),
    ({'type': 'Shuffled'}, 4),
    ({'type': 'ShuffledVar'}, 4),
    ({'type': 'WithVariance', 'backbone': {'type': 'Shuffled'}}, 4),
])
def test_required_multiple(registered, network_g, multiple):
    assert get_required_multiple(network_g) == multiple


def test_pad_to_multiple():
    lq = torch.arange(6.).view(1, 1, 2, 3)
    assert pad_to_multiple(lq, 4).tolist() == [[[[0, 1, 2, 2], *[[3, 4, 5, 5]] * 3]]]
    assert torch.equal(pad_to_multiple(lq, 1), lq)


def test_config_and_stage_of_each_step():
    """Those of EDSR and DPDNN have classes of their own, unless their features are named; others are wrapped."""
    rcan = BACKBONES[3][0]
    for base, features, step1, step2 in (
            (EDSR_X2, None, {**EDSR_X2, 'type': 'EDSRVar'}, {**EDSR_X2, 'type': 'EDSRTwo'}),
            (EDSR_X2, 'conv_last', *({'type': name, 'backbone': EDSR_X2, 'features': 'conv_last'}
                                     for name in ('WithVariance', 'TwoStep'))),
            (rcan, None, *({'type': name, 'backbone': rcan} for name in ('WithVariance', 'TwoStep')))):
        for stage, expected in (('plain', base), ('step 1', step1), ('step 2', step2)):
            config = wrapped_config(stage, base, features)
            assert config == expected
            assert base_config(config) == base
            assert network_stage(build_network(config).state_dict()) == stage
        assert wrapped_config('step 1', base, features, True) == {**step1, 'detach_features': True}
