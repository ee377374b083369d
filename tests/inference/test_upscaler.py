"""Images of all kinds through a network, whole and in tiles."""
import math

import numpy as np
import pytest
import torch
from basicsr.utils import img2tensor, tensor2img
from basicsr.utils.color_util import bgr2ycbcr
from conftest import TINY, lively

from udl_plugin.archs.build import build_network
from udl_plugin.archs.dpdnn_arch import DPDNN, DPDNNVar, dpdnn_receptive_radius
from udl_plugin.archs.edsr_arch import EDSRVar, edsr_receptive_radius
from udl_plugin.checkpoints.network_file import NetworkFile
from udl_plugin.errors import UserError
from udl_plugin.inference.upscaler import Upscaler

EDSR = {'type': 'EDSR', **TINY}
pytestmark = pytest.mark.usefixtures('seed')


def model_of(section):
    return NetworkFile(build_network(section).state_dict(), section)


def image(height, width, channels=3, dtype=np.uint8):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def plain_run(model, img):
    """As BasicSR does it: BGR uint8 to BGR uint8."""
    with torch.no_grad():
        return tensor2img(model.build()(img2tensor(img / 255.)[None]))


@pytest.mark.parametrize('section', [EDSR, {'type': 'EDSRTwo', **TINY, 'upscale': 3},
                                     {'type': 'DPDNN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_step': 1}],
                         ids=lambda section: section['type'])
def test_as_basicsr(section):
    model, img = model_of(section), image(9, 14)
    found = Upscaler(model)(img)
    assert found.image.dtype == np.uint8
    assert np.abs(found.image.astype(int) - plain_run(model, img)).max() <= 1  # a half may be rounded either way
    assert (found.image == plain_run(model, img)).mean() > 0.999
    assert found.log_var is None


def test_map():
    model, img = model_of({'type': 'EDSRTwo', **TINY}), image(9, 14)
    found = Upscaler(model, uncertainty=True)(img)
    with torch.no_grad():
        _, log_var = model.build()(img2tensor(img / 255.)[None], return_log_var=True)
    assert found.log_var.dtype == np.float32
    np.testing.assert_allclose(found.log_var, log_var[0].numpy(), atol=1e-5)
    assert np.array_equal(found.image, Upscaler(model)(img).image)


def test_sixteen_bits():
    model, img = model_of(EDSR), image(9, 14, dtype=np.uint16)
    found = Upscaler(model)(img)
    assert found.image.dtype == np.uint16
    with torch.no_grad():
        sr = model.build()(img2tensor(img / 65535.)[None])[0].numpy().transpose(1, 2, 0)[:, :, ::-1]
    assert np.abs(found.image - sr.clip(0, 1) * 65535).max() <= 0.51
    assert len(np.unique(found.image)) > 256


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_grey_and_alpha(dtype):
    model = model_of(EDSR)
    grey, colour = image(8, 8, 1, dtype), image(8, 8, 4, dtype)
    found = Upscaler(model)(grey).image
    assert found.shape == (16, 16)
    assert found.dtype == dtype
    three = Upscaler(model)(np.repeat(grey[:, :, None], 3, axis=2)).image
    assert np.abs(found - three.astype(float).mean(axis=2)).max() <= 1
    found = Upscaler(model)(colour).image
    assert found.shape == (16, 16, 4)
    assert np.array_equal(found[:, :, :3], Upscaler(model)(colour[:, :, :3]).image)
    colour[:, :, 3] = 77
    assert (Upscaler(model)(colour).image[:, :, 3] == 77).all()
    colour[:, :, :3] = grey[:, :, None]
    found = Upscaler(model)(colour).image  # grey with alpha stays grey
    assert (found[:, :, :1] == found[:, :, 1:3]).all()
    assert (found[:, :, 3] == 77).all()


def test_network_of_one_channel():
    """It sees luma as BasicSR's `color: y` gives it; colours are bicubic."""
    model = model_of({'type': 'DPDNNVar', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_step': 1, 'upscale': 2})
    img = image(10, 12)
    found = Upscaler(model, uncertainty=True)(img)
    assert found.log_var.shape == (1, 20, 24)
    y = torch.from_numpy(bgr2ycbcr((img / 255.).astype(np.float32), y_only=True))[None, None].float()
    with torch.no_grad():
        expected = model.build()(y)[0, 0].numpy()
    smooth = np.full((10, 12, 3), (40, 90, 160), np.uint8)
    with torch.no_grad():
        flat = Upscaler(model)(smooth).image
    assert np.abs(flat[4:-4, 4:-4].astype(int) - (40, 90, 160)).max() < 20
    inside = (found.image > 0).all(axis=2) & (found.image < 255).all(axis=2)
    luma = bgr2ycbcr((found.image / 255.).astype(np.float32), y_only=True)
    assert np.abs(luma - expected)[inside].max() < 2 / 255
    assert Upscaler(model)(image(10, 12, 1)).image.shape == (20, 24)


def test_self_ensemble():
    """The mean over the flips and turns, each undone."""
    model, img = model_of({'type': 'EDSRVar', **TINY}), image(7, 10)
    found = Upscaler(model, self_ensemble=True, uncertainty=True)(img)
    net, x = model.build(), img2tensor(img / 255.)[None]
    outputs = []
    with torch.no_grad():
        for turns in range(4):
            for flip in (False, True):
                turned = torch.rot90(x, turns, (2, 3))
                pair = torch.cat(net(turned.flip(3) if flip else turned, return_log_var=True), 1)
                outputs.append(torch.rot90(pair.flip(3) if flip else pair, -turns, (2, 3)))
    mean = torch.stack(outputs).mean(0)[0]
    np.testing.assert_allclose(found.log_var, mean[3:].numpy(), atol=1e-5)
    assert np.abs(found.image.astype(int) - tensor2img(mean[:3])).max() <= 1
    turned = Upscaler(model, self_ensemble=True)(np.rot90(img).copy()).image
    assert np.abs(np.rot90(turned, -1).astype(int) - found.image).max() <= 1


# ---- tiles

def seen_from(net, size, scale, place, with_map):
    """How far, in LR pixels, a pixel's influence reaches in the image and the map: NaN spreads to all that sees it."""
    x = torch.zeros(1, 3, size, size)
    x[..., place, place] = float('nan')
    with torch.no_grad():
        outputs = net(x, return_log_var=True) if with_map else (net(x),)
    reach = 0
    for out in outputs:
        lines = torch.isnan(out)[0].any(0).any(0).nonzero().flatten()
        assert lines.min() > 0
        assert lines.max() < scale * size - 1  # the image was large enough
        reach = max(reach, place - lines.min().item() // scale, lines.max().item() // scale - place)
    return reach


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('blocks', [1, 6])
def test_reach_of_edsr(scale, blocks):
    net = EDSRVar(3, 3, num_feat=1, num_block=blocks, upscale=scale)
    found = seen_from(net, 64, scale, 32, with_map=True)
    assert found <= edsr_receptive_radius({'num_block': blocks}) <= found + 1


@pytest.mark.parametrize(('scale', 'steps', 'size'), [(2, 1, 192), (3, 1, 144), (4, 1, 112), (4, 2, 192)])
def test_reach_of_dpdnn(scale, steps, size):
    """The worst of the places on its grid of 16."""
    net = DPDNNVar(3, 3, num_feat=1, num_step=steps, upscale=scale)
    found = max(seen_from(net, size, scale, size // 2 + place, with_map=True)
                for place in range(16 // math.gcd(16, scale)))
    assert found <= dpdnn_receptive_radius({'num_step': steps, 'upscale': scale}) <= found + 12


def differences(section, tile, size=(150, 170), **options):
    """The largest difference of tiles from the whole, in the image and in the map; and the upscaler."""
    model, img = model_of(section), image(*size, dtype=np.uint16)
    whole = Upscaler(model, uncertainty=True, **options)(img)
    upscaler = Upscaler(model, tile=tile, uncertainty=True, **options)
    parts = upscaler(img)
    assert parts.image.shape == whole.image.shape
    return (np.abs(parts.image.astype(int) - whole.image).max() / 65535, np.abs(parts.log_var - whole.log_var).max(),
            upscaler)


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('tile', [64, 100, 128])
def test_tiles_that_reach_far_enough_are_exact(scale, tile):
    of_image, of_map, upscaler = differences({'type': 'EDSRVar', **TINY, 'upscale': scale}, tile)
    assert upscaler.margin >= upscaler.reach == 8
    assert of_image < 1e-4
    assert of_map < 1e-4


def test_tiles_with_self_ensemble():
    of_image, of_map, _ = differences({'type': 'EDSRVar', **TINY}, 64, size=(70, 90), self_ensemble=True)
    assert of_image < 1e-4
    assert of_map < 1e-4


def test_tiles_of_dpdnn_keep_its_grid(monkeypatch):
    """With the margin as wide as it sees; tiles that begin elsewhere than at multiples of 16 would differ, at x3."""
    section = {'type': 'DPDNNVar', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_step': 1, 'upscale': 3,
               'img_range': 1.}
    net = build_network(section)
    lively(net.backbone)
    monkeypatch.setattr('test_upscale.model_of', lambda section: NetworkFile(net.state_dict(), section))
    of_image, of_map, upscaler = differences(section, 264, size=(270, 300))
    assert upscaler.margin >= upscaler.reach
    assert (264 - 2 * upscaler.margin) % 16 == 8  # what is left between the margins is cut to a multiple
    assert of_image < 1e-4
    assert of_map < 1e-4


def test_tiles_too_small_for_what_is_seen_differ_little():
    section = {'type': 'EDSRVar', **TINY, 'num_block': 16, 'res_scale': 0.1}
    of_image, of_map, upscaler = differences(section, 64)
    assert upscaler.margin == 16 < upscaler.reach
    assert of_image < 1e-3
    assert of_map < 1e-2


def test_network_never_sees_more_than_a_tile(monkeypatch):
    sizes = []
    upscaler = Upscaler(model_of(EDSR), tile=80)
    upscaler.net.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[2:]))
    upscaler(image(200, 90))
    assert len(sizes) > 1
    assert max(max(size) for size in sizes) <= 80


def test_progress():
    seen = []

    def track(pieces, number):
        assert number == len(list(pieces))
        for piece in pieces:
            seen.append(piece)
            yield piece

    Upscaler(model_of(EDSR), tile=64)(image(100, 100), track)
    assert len(seen) > 1


@pytest.mark.parametrize('size', [(7, 9), (16, 5)])
def test_networks_that_want_multiples(size):
    swinir = {'type': 'SwinIR', 'img_size': 8, 'window_size': 8, 'depths': [2], 'embed_dim': 12, 'num_heads': [2],
              'upscale': 2, 'upsampler': 'pixelshuffledirect'}
    rrdbnet = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4,
               'scale': 2}
    for section in (swinir, rrdbnet):
        upscaler = Upscaler(model_of(section))
        assert upscaler(image(*size)).image.shape == (2 * size[0], 2 * size[1], 3)
        assert upscaler.reach is None


def test_sizes_are_filled_up_with_the_border():
    """Not with black: an even image stays even."""
    rrdbnet = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4,
               'scale': 2}
    model = model_of(rrdbnet)
    small, large = (np.full((size, size, 3), 200, np.uint8) for size in (33, 34))
    found = Upscaler(model)(small).image
    assert np.array_equal(found, Upscaler(model)(large).image[:66, :66])


def test_swinir_says_its_channels_and_scale_itself():
    section = {'type': 'SwinIR', 'img_size': 8, 'window_size': 8, 'depths': [2], 'embed_dim': 12, 'num_heads': [2],
               'upsampler': 'pixelshuffledirect', 'in_chans': 1}
    upscaler = Upscaler(model_of(section))
    assert (upscaler.channels, upscaler.upscale) == (1, 2)  # its default


def test_network_that_makes_no_numbers():
    model = model_of(EDSR)
    model.network_g = {**EDSR, 'rgb_mean': [float('nan')] * 3}
    with pytest.raises(UserError, match='no finite numbers'):
        Upscaler(model)(image(4, 4))


def test_network_that_cannot_run():
    upscaler = Upscaler(model_of(EDSR))
    upscaler.net = torch.nn.Conv2d(7, 3, 3)
    with pytest.raises(UserError, match='the network cannot run on it'):
        upscaler(image(9, 9))


def test_bad_input():
    with pytest.raises(UserError, match='--tile 63 is too small; take 64'):
        Upscaler(model_of(EDSR), tile=63)
    with pytest.raises(UserError, match='without a variance head'):
        Upscaler(model_of(EDSR), uncertainty=True)
    for img in (np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.int32)):
        with pytest.raises(UserError, match='8 or 16 bit'):
            Upscaler(model_of(EDSR))(img)


def test_out_of_memory(monkeypatch):
    upscaler = Upscaler(model_of(EDSR))

    def full(_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(upscaler, 'net', full)
    with pytest.raises(UserError, match='not enough memory.*--tile 256'):
        upscaler(image(4, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
def test_on_a_gpu():
    for section in ({'type': 'EDSRTwo', **TINY}, {'type': 'DPDNNTwo', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4}):
        model, img = model_of(section), image(70, 90)
        on_cpu, on_gpu = (Upscaler(model, device, uncertainty=True)(img) for device in ('cpu', 'cuda'))
        assert np.abs(on_cpu.image.astype(int) - on_gpu.image).max() <= 1
        np.testing.assert_allclose(on_cpu.log_var, on_gpu.log_var, atol=1e-2)


def test_plain_dpdnn_is_the_class_of_ours():
    assert type(Upscaler(model_of({'type': 'DPDNN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4})).net) is DPDNN
