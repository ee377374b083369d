import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from conftest import lively
from torch.nn import functional as F

from udl_plugin.archs import DPDNN, DPDNNTwo, DPDNNVar
from udl_plugin.archs.dpdnn_arch import BicubicDown, BicubicUp, UNet, infer_dpdnn_config
from udl_plugin.archs.edsr_arch import infer_edsr_config
from udl_plugin.archs.wrapping import base_state_dict
from udl_plugin.errors import UserError
from udl_plugin.utils.imresize import imresize

VARIANTS = [
    {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_step': 2, 'upscale': 2},
    {'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 6, 'num_step': 3, 'upscale': 3},
    {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_step': 1, 'upscale': 4},
]
pytestmark = pytest.mark.usefixtures('seed')


@pytest.mark.parametrize('options', VARIANTS)
@torch.no_grad()
def test_shapes(options):
    base, *steps = (arch(**options) for arch in (DPDNN, DPDNNVar, DPDNNTwo))
    for size in ((1, 1), (5, 7), (16, 9)):
        x = torch.rand(2, options['num_in_ch'], *size)
        shape = (2, options['num_in_ch'], *(options['upscale'] * length for length in size))
        assert base(x).shape == shape
        for net in steps:
            sr, log_var = net(x, return_log_var=True)
            assert sr.shape == log_var.shape == net(x).shape == shape


@pytest.mark.parametrize('options', VARIANTS)
def test_equations(options):
    """An independent implementation, with MATLAB's kernels from the weight matrices of `imresize`."""
    from udl_plugin.utils.imresize import _weights

    def resize(x, scale):
        rows, columns = (torch.tensor(_weights(length, scale, 'clamp').toarray()) for length in x.shape[2:])
        return rows @ x @ columns.T

    net = lively(DPDNN(**options)).double()
    with torch.no_grad():
        net.delta.uniform_(0, 1)
        net.eta.uniform_(0, 1)
    scale, y = options['upscale'], torch.rand(1, options['num_in_ch'], 6, 5, dtype=torch.float64) * 255
    x = resize(y, scale)
    for step in range(options['num_step']):
        v = x + net.denoiser(x)
        x = x - net.delta[step] * (resize(resize(x, 1 / scale) - y, scale) + net.eta[step] * (x - v))
    assert (net(y / 255) * 255 - x).abs().max() < 1e-4  # kernels are kept in float32


@pytest.mark.parametrize('arch', [DPDNNVar, DPDNNTwo])
def test_map_is_from_the_last_step(arch):
    """One denoiser runs in every step."""
    net, x, entered = arch(1, 1, num_feat=4, num_step=3, upscale=2, img_range=1), torch.rand(1, 1, 9, 9), []
    var_net = net if arch is DPDNNVar else net.var_net
    lively(var_net.backbone)
    var_net.backbone.denoiser.conv_last.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    var_net.backbone(x)
    maps = [var_net.var_conv(feat) for feat in entered]
    assert len(maps) == 3
    assert not torch.allclose(maps[0], maps[2], atol=1e-4)
    assert torch.equal(net(x, return_log_var=True)[1], maps[2])
    assert torch.equal(var_net.log_var(x), maps[2])


def test_initial_steps():
    net = DPDNN(3, 3, num_feat=4)
    assert net.delta.tolist() == pytest.approx([0.1] * 6)
    assert net.eta.tolist() == pytest.approx([0.9] * 6)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_bicubic_is_matlabs(scale):
    """Except for its rounding, of half a level in each direction."""
    img = np.random.default_rng(0).integers(100, 156, (12 * scale, 11 * scale, 3)).astype(np.uint8)
    x = torch.tensor(img.transpose(2, 0, 1)[None], dtype=torch.float32)
    for resize, factor in ((BicubicUp(scale), scale), (BicubicDown(scale), 1 / scale)):
        expected = imresize(img, factor).transpose(2, 0, 1)
        assert np.abs(resize(x)[0].numpy() - expected).max() < 1.2
    assert torch.allclose(BicubicDown(scale)(BicubicUp(scale)(torch.full((1, 1, 4, 4), 7.))), torch.tensor(7.))


def test_decoder_stages_take_the_encoder_stage_of_their_size():
    net, seen = UNet(1, 4), []
    for join in net.join:
        join.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    stages = []
    for encoder in net.encoder:
        encoder.register_forward_hook(lambda *args: stages.append(args[2]))
    net(torch.rand(1, 1, 32, 48))
    assert [x.shape[2:] for x in seen] == [(4, 6), (8, 12), (16, 24), (32, 48)]
    for joined, stage in zip(seen, reversed(stages)):
        assert torch.equal(joined[:, 4:], stage)


def test_every_weight_is_used():
    net = DPDNNVar(**VARIANTS[0])
    sr, log_var = net(torch.rand(1, 3, 16, 16), return_log_var=True)
    (sr.sum() + log_var.sum()).backward()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def receptive_radius(net):
    """How many HR pixels away the denoiser sees."""
    with torch.no_grad():
        x = torch.zeros(1, 1, 512, 512)
        x[..., 256, 256] = float('nan')
        rows = torch.isnan(net.denoiser(x))[0, 0].any(1).nonzero()
    return max(256 - rows.min().item(), rows.max().item() - 256)


def test_sizes_that_are_not_multiples_of_16_shift_nothing():
    """Farther from the border than the network sees, the result is the same as in a larger image."""
    net = lively(DPDNN(1, 1, num_feat=4, num_step=1, upscale=2, img_range=1))
    radius = receptive_radius(net) // 2 + 4
    image = torch.rand(1, 1, radius + 40, radius + 40)
    with torch.no_grad():
        full = net(image)
        for less in (1, 3, 7):
            part = net(image[..., :-less, :-less])
            inner = 2 * (40 - less)
            assert torch.allclose(part[..., :inner, :inner], full[..., :inner, :inner], atol=1e-4)
            assert (part - net.up(image[..., :-less, :-less])).abs().mean() > 0.01


def test_odd_sizes_do_not_disturb_the_border():
    """The decoder crops on one side only; a constant image shows the effect on the border."""
    net = DPDNN(1, 1, num_feat=4, num_step=2, upscale=3)
    x = torch.full((1, 1, 7, 11), 0.5)
    with torch.no_grad():
        odd, even = net(x), net(torch.full((1, 1, 16, 16), 0.5))
    assert (odd - 0.5).abs().max() < 2 * (even - 0.5).abs().max() + 1e-3


@pytest.mark.parametrize('arch', [DPDNN, DPDNNVar])
def test_checkpointing_changes_no_result(arch):
    options = {**VARIANTS[0], 'num_step': 3}
    standard, checkpointed = arch(**options), arch(**options, checkpointing=True)
    checkpointed.load_state_dict(standard.state_dict())
    x, outputs = torch.rand(1, 3, 12, 12), []
    for net in (standard, checkpointed):
        output = net(x) if arch is DPDNN else torch.cat(net(x, return_log_var=True))
        output.square().sum().backward()
        outputs.append(output)
    assert torch.equal(*outputs)
    for one, other in zip(standard.parameters(), checkpointed.parameters()):
        assert torch.equal(one.grad, other.grad)


def saved_bytes(net, x):
    """Bytes that autograd keeps for the backward pass."""
    saved = {}

    def save(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        net(x)
    return sum(saved.values())


def test_checkpointing_saves_memory():
    standard, checkpointed = (DPDNN(**{**VARIANTS[0], 'num_step': 3}, checkpointing=on) for on in (False, True))
    x = torch.rand(1, 3, 24, 24)
    assert saved_bytes(checkpointed, x) < saved_bytes(standard, x) / 4


@pytest.mark.parametrize('options', VARIANTS)
def test_options_are_inferred_from_weights(options):
    for arch in (DPDNN, DPDNNVar, DPDNNTwo):
        assert infer_dpdnn_config(arch(**options).state_dict()) == options
        assert infer_edsr_config(arch(**options).state_dict()) is None
    assert infer_dpdnn_config({'delta': torch.zeros(6)}) is None


def test_checkpoint_loads_into_the_base_network():
    x = torch.rand(1, 3, 9, 9)
    for arch in (DPDNNVar, DPDNNTwo):
        net, base = arch(**VARIANTS[0]), DPDNN(**VARIANTS[0])
        base.load_state_dict(base_state_dict(net.state_dict()), strict=True)
        assert torch.equal(base(x), net(x))


def test_weights_of_another_scale_do_not_fit():
    with pytest.raises(RuntimeError, match=r'up\.kernel'):
        DPDNN(3, 3, num_feat=4, upscale=2).load_state_dict(DPDNN(3, 3, num_feat=4, upscale=4).state_dict())


def test_img_range():
    net, x = DPDNN(**VARIANTS[0], img_range=1), torch.rand(1, 3, 4, 4)
    wide = DPDNN(**VARIANTS[0])
    wide.load_state_dict(net.state_dict())
    assert not torch.allclose(net(x), wide(x), atol=1e-5)
    for one in (net, wide):
        assert F.mse_loss(one(x), one.up(x)) < 0.1


@pytest.mark.parametrize(('changes', 'message'), [
    ({'num_in_ch': 1}, 'num_in_ch: 1 and num_out_ch: 3 must be equal'),
    ({'upscale': 1}, 'upscale: expected an integer of at least 2, got 1'),
    ({'upscale': 2.0}, r'upscale: expected an integer of at least 2, got 2\.0'),
    ({'num_feat': '64'}, "num_feat: expected an integer of at least 1, got '64'"),
    ({'num_step': 0}, 'num_step: expected an integer of at least 1, got 0'),
    ({'num_steps': 2}, "'num_steps' is not an option of type: DPDNN.* .did you mean 'num_step'"),
])
@pytest.mark.parametrize('arch', ['DPDNN', 'DPDNNVar', 'DPDNNTwo'])
def test_bad_options(arch, changes, message):
    with pytest.raises(UserError, match=message):
        build_network({'type': arch, 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, **changes})
