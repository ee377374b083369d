"""What stays in float32 under autocast, and why."""
import copy
import pickle

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from conftest import lively
from torch import nn

from udl_plugin.archs.build import build_network
from udl_plugin.archs.mixed_precision import Float32Conv2d, keep_image_convs_in_fp32

pytestmark = [pytest.mark.usefixtures('seed'), pytest.mark.filterwarnings('ignore:torch.meshgrid')]
RGB = {'num_in_ch': 3, 'num_out_ch': 3}
EDSR_S = {**RGB, 'num_feat': 8, 'num_block': 2, 'upscale': 2}
DPDNN = {**RGB, 'num_feat': 8, 'num_step': 2, 'upscale': 2}
SWINIR = {'type': 'SwinIR', 'img_size': 8, 'window_size': 8, 'depths': [2], 'embed_dim': 12, 'num_heads': [2],
          'upscale': 2, 'upsampler': 'pixelshuffledirect'}
VGG = {'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 2, 'upscale': 2}


def in_float32(net):
    return {name for name, module in net.named_modules() if type(module) is Float32Conv2d}


@pytest.mark.parametrize(('network_g', 'names'), [
    ({'type': 'EDSR', **EDSR_S}, {'conv_first', 'conv_last'}),
    ({'type': 'DPDNN', **DPDNN, 'num_in_ch': 1, 'num_out_ch': 1}, {'denoiser.encoder.0.0', 'denoiser.conv_last'}),
    ({'type': 'EDSRVar', **EDSR_S}, {'backbone.conv_first', 'backbone.conv_last', 'var_conv.4'}),
    ({'type': 'EDSRTwo', **EDSR_S}, {'sr_net.conv_first', 'sr_net.conv_last', 'var_net.backbone.conv_first',
                                     'var_net.backbone.conv_last', 'var_net.var_conv.4'}),
    ({'type': 'DPDNN', **DPDNN}, {'denoiser.encoder.0.0', 'denoiser.conv_last'}),
    (VGG, {'body.0', 'body.6'}),  # the last one returns 12 channels, which are shuffled to 3
    ({'type': 'RRDBNet', **RGB, 'scale': 2, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4},
     {'conv_first', 'conv_last'}),  # the first one takes 12 channels, of an image whose pixels were shuffled
    (SWINIR, {'conv_first', 'upsample.0'}),
    ({'type': 'TwoStep', 'backbone': VGG}, {'sr_net.body.0', 'sr_net.body.6', 'var_net.backbone.body.0',
                                            'var_net.backbone.body.6', 'var_net.var_conv.4'}),
])
def test_convolutions_of_images(network_g, names):
    net = build_network(network_g)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    keep_image_convs_in_fp32(net)
    assert in_float32(net) == names
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert in_float32(twin) == names


@pytest.mark.parametrize('network_g', [{'type': 'EDSR', **EDSR_S, 'rgb_mean': [0, 0, 0]}, {'type': 'DPDNN', **DPDNN},
                                     VGG])
def test_images_are_not_rounded(network_g):
    """Neither the input nor the output: from 0.5 to 1, bfloat16 has 128 values, fewer than an 8-bit image."""
    net = lively(build_network(network_g)) if network_g['type'] == 'DPDNN' else build_network(network_g)
    keep_image_convs_in_fp32(net)
    levels = torch.arange(128, 256) / 255
    x = levels.view(1, 1, 8, 16).repeat(1, 3, 1, 1)
    seen = []
    first = next(module for module in net.modules() if type(module) is Float32Conv2d)
    first.register_forward_hook(lambda module, args, out: seen.append((args[0], module.weight, out.clone())))
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        sr = net(x)
    image, weight, feat = seen[0]
    assert len(image[0, 0].unique()) >= 128
    assert torch.equal(feat, nn.functional.conv2d(image, weight, first.bias, padding=1))
    assert sr.dtype is torch.float32
    assert (sr != sr.bfloat16().float()).float().mean() > 0.9


def test_bicubic_steps_of_dpdnn_stay_exact():
    """They resize images, with convolutions that are not modules."""
    net = build_network({'type': 'DPDNN', **DPDNN})
    x = torch.rand(1, 3, 8, 8) * 255
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(net.up(x), build_network({'type': 'DPDNN', **DPDNN}).up(x))
        up, down = net.up(x), net.down(x)
    assert torch.equal(up, net.up(x)) and torch.equal(down, net.down(x))


def test_features_are_in_low_precision():
    net = EDSR(**EDSR_S)
    keep_image_convs_in_fp32(net)
    dtypes = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, out, name=name: dtypes.update({name: out.dtype}))
    with torch.autocast('cpu', torch.bfloat16):
        net(torch.rand(1, 3, 8, 8))
    assert {name for name, dtype in dtypes.items() if dtype is torch.float32} == {'conv_first', 'conv_last'}
    assert len(dtypes) == 8
