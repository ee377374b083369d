"""Images of every kind through a network, at once and in tiles."""
import math

import numpy as np
import pytest
import torch
from basicsr.utils import img2tensor, tensor2img
from basicsr.utils.color_util import rgb2ycbcr
from conftest import TINY, lively
from PIL import Image

from udl_plugin.archs.build import build_network
from udl_plugin.archs.dpdnn_arch import DPDNN, DPDNNVar, dpdnn_receptive_radius
from udl_plugin.archs.edsr_arch import EDSRVar, edsr_receptive_radius
from udl_plugin.checkpoints.network_file import NetworkFile
from udl_plugin.errors import UserError
from udl_plugin.inference.upscaler import Upscaler

EDSR = {'type': 'EDSR', **TINY}
pytestmark = pytest.mark.usefixtures('seed')


def new_file(config):
    return NetworkFile(build_network(config).state_dict(), config)


def image(height, width, channels=3, dtype=np.uint8):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def to_tensor(img, levels=255.):
    """RGB array to `(1, 3, H, W)` in [0, 1]."""
    return img2tensor(img / levels, bgr2rgb=False)[None]


def run_basicsr(file, img):
    """As BasicSR does it: RGB uint8 to RGB uint8."""
    with torch.no_grad():
        return tensor2img(file.build()(to_tensor(img)), rgb2bgr=False)


@pytest.mark.parametrize('config', [EDSR, {'type': 'EDSRTwo', **TINY, 'upscale': 3},
                                     {'type': 'DPDNN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_step': 1}],
                         ids=lambda config: config['type'])
def test_as_basicsr(config):
    file, img = new_file(config), image(9, 14)
    found, expected = Upscaler(file).upscale(img), run_basicsr(file, img)
    assert found.image.dtype == np.uint8
    assert np.abs(found.image.astype(int) - expected).max() <= 1  # a half may be rounded either way
    assert (found.image == expected).mean() > 0.999
    assert found.log_var is found.expected_error is None


def test_map():
    file, img = new_file({'type': 'EDSRTwo', **TINY}), image(9, 14)
    found = Upscaler(file, uncertainty=True).upscale(img)
    with torch.no_grad():
        _, log_var = file.build()(to_tensor(img), return_log_var=True)
    assert found.log_var.dtype == np.float32
    np.testing.assert_allclose(found.log_var, log_var[0].numpy(), atol=1e-5)
    assert np.array_equal(found.image, Upscaler(file).upscale(img).image)


def test_sixteen_bits():
    file, img = new_file(EDSR), image(9, 14, dtype=np.uint16)
    found = Upscaler(file).upscale(img)
    assert found.image.dtype == np.uint16
    with torch.no_grad():
        sr = file.build()(to_tensor(img, 65535.))[0].numpy().transpose(1, 2, 0)
    assert np.abs(found.image - sr.clip(0, 1) * 65535).max() <= 0.51
    assert len(np.unique(found.image)) > 256


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_grey_and_alpha(dtype):
    file = new_file(EDSR)
    grey, colour = image(8, 8, 1, dtype), image(8, 8, 4, dtype)
    found = Upscaler(file).upscale(grey).image
    assert found.shape == (16, 16)
    assert found.dtype == dtype
    three = Upscaler(file).upscale(np.repeat(grey[:, :, None], 3, axis=2)).image
    assert np.abs(found - three.astype(float).mean(axis=2)).max() <= 1
    found = Upscaler(file).upscale(colour).image
    assert found.shape == (16, 16, 4)
    assert np.array_equal(found[:, :, :3], Upscaler(file).upscale(colour[:, :, :3]).image)
    colour[:, :, 3] = 77
    assert (Upscaler(file).upscale(colour).image[:, :, 3] == 77).all()
    colour[:, :, :3] = grey[:, :, None]
    found = Upscaler(file).upscale(colour).image  # grey with alpha stays grey
    assert (found[:, :, :1] == found[:, :, 1:3]).all()
    assert (found[:, :, 3] == 77).all()


def test_network_of_one_channel():
    """It is given the luma, as with BasicSR's `color: y`; colours are bicubic."""
    file = new_file({'type': 'DPDNNVar', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_step': 1, 'upscale': 2})
    img = image(10, 12)
    found = Upscaler(file, uncertainty=True).upscale(img)
    assert found.log_var.shape == (1, 20, 24)
    y = torch.from_numpy(rgb2ycbcr((img / 255.).astype(np.float32), y_only=True))[None, None].float()
    with torch.no_grad():
        expected = file.build()(y)[0, 0].numpy()
    smooth = np.full((10, 12, 3), (40, 90, 160), np.uint8)
    with torch.no_grad():
        flat = Upscaler(file).upscale(smooth).image
    assert np.abs(flat[4:-4, 4:-4].astype(int) - (40, 90, 160)).max() < 20
    inside = (found.image > 0).all(axis=2) & (found.image < 255).all(axis=2)
    luma = rgb2ycbcr((found.image / 255.).astype(np.float32), y_only=True)
    assert np.abs(luma - expected)[inside].max() < 2 / 255
    assert Upscaler(file).upscale(image(10, 12, 1)).image.shape == (20, 24)


def test_self_ensemble():
    """The mean over flips and rotations, each undone."""
    file, img = new_file({'type': 'EDSRVar', **TINY}), image(7, 10)
    found = Upscaler(file, self_ensemble=True, uncertainty=True).upscale(img)
    net, x = file.build(), to_tensor(img)
    outputs = []
    with torch.no_grad():
        for turns in range(4):
            for flip in (False, True):
                turned = torch.rot90(x, turns, (2, 3))
                pair = torch.cat(net(turned.flip(3) if flip else turned, return_log_var=True), 1)
                outputs.append(torch.rot90(pair.flip(3) if flip else pair, -turns, (2, 3)))
    mean = torch.stack(outputs).mean(0)[0]
    np.testing.assert_allclose(found.log_var, mean[3:].numpy(), atol=1e-5)
    assert np.abs(found.image.astype(int) - tensor2img(mean[:3], rgb2bgr=False)).max() <= 1
    turned = Upscaler(file, self_ensemble=True).upscale(np.rot90(img).copy()).image
    assert np.abs(np.rot90(turned, -1).astype(int) - found.image).max() <= 1


# ---- tiles

def measure_radius(net, size, scale, position):
    """How far, in LR pixels, one pixel influences the image and the map: NaN spreads to everything that depends on it.
    """
    x = torch.zeros(1, 3, size, size)
    x[..., position, position] = float('nan')
    with torch.no_grad():
        outputs = net(x, return_log_var=True)
    radius = 0
    for out in outputs:
        lines = torch.isnan(out)[0].any(0).any(0).nonzero().flatten()
        assert lines.min() > 0
        assert lines.max() < scale * size - 1  # the image was large enough
        radius = max(radius, position - lines.min().item() // scale, lines.max().item() // scale - position)
    return radius


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('blocks', [1, 6])
def test_receptive_radius_of_edsr(scale, blocks):
    net = EDSRVar(3, 3, num_feat=1, num_block=blocks, upscale=scale)
    found = measure_radius(net, 64, scale, 32)
    assert found <= edsr_receptive_radius({'num_block': blocks}) <= found + 1


@pytest.mark.parametrize(('scale', 'steps', 'size'), [(2, 1, 192), (3, 1, 144), (4, 1, 112), (4, 2, 192)])
def test_receptive_radius_of_dpdnn(scale, steps, size):
    """At the worst position on its grid of 16 pixels."""
    net = DPDNNVar(3, 3, num_feat=1, num_step=steps, upscale=scale)
    found = max(measure_radius(net, size, scale, size // 2 + offset) for offset in range(16 // math.gcd(16, scale)))
    assert found <= dpdnn_receptive_radius({'num_step': steps, 'upscale': scale}) <= found + 12


def differences(config, tile, size=(150, 170), file=None, **options):
    """The largest difference between tiles and the full image, in the image and in the map; and the upscaler."""
    file, img = file or new_file(config), image(*size, dtype=np.uint16)
    full = Upscaler(file, uncertainty=True, **options).upscale(img)
    upscaler = Upscaler(file, tile=tile, uncertainty=True, **options)
    parts = upscaler.upscale(img)
    assert parts.image.shape == full.image.shape
    return (np.abs(parts.image.astype(int) - full.image).max() / 65535, np.abs(parts.log_var - full.log_var).max(),
            upscaler)


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('tile', [64, 100, 128])
def test_tiles_with_enough_overlap_are_exact(scale, tile):
    of_image, of_map, upscaler = differences({'type': 'EDSRVar', **TINY, 'upscale': scale}, tile)
    assert upscaler.overlap >= upscaler.receptive_radius == 8
    assert of_image < 1e-4
    assert of_map < 1e-4


def test_tiles_with_self_ensemble():
    of_image, of_map, _ = differences({'type': 'EDSRVar', **TINY}, 64, size=(70, 90), self_ensemble=True)
    assert of_image < 1e-4
    assert of_map < 1e-4


def test_tiles_of_dpdnn_keep_its_grid():
    """At x3, tiles that start elsewhere than at multiples of 16 would differ."""
    config = {'type': 'DPDNNVar', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_step': 1, 'upscale': 3,
              'img_range': 1.}
    net = build_network(config)
    lively(net.backbone)
    of_image, of_map, upscaler = differences(config, 264, size=(270, 300), file=NetworkFile(net.state_dict(), config))
    assert upscaler.overlap >= upscaler.receptive_radius
    assert (264 - 2 * upscaler.overlap) % 16 == 8  # the step is rounded down to a multiple of 16
    assert of_image < 1e-4
    assert of_map < 1e-4


def test_tiles_with_less_overlap_differ_little():
    config = {'type': 'EDSRVar', **TINY, 'num_block': 16, 'res_scale': 0.1}
    of_image, of_map, upscaler = differences(config, 64)
    assert upscaler.overlap == 16 < upscaler.receptive_radius
    assert of_image < 1e-3
    assert of_map < 1e-2


def test_input_of_the_network_is_at_most_a_tile(monkeypatch):
    sizes = []
    upscaler = Upscaler(new_file(EDSR), tile=80)
    upscaler.net.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[2:]))
    upscaler.upscale(image(200, 90))
    assert len(sizes) > 1
    assert max(max(size) for size in sizes) <= 80


def test_progress():
    seen = []

    def progress(tiles, number):
        assert number == len(list(tiles))
        for tile in tiles:
            seen.append(tile)
            yield tile

    Upscaler(new_file(EDSR), tile=64).upscale(image(100, 100), progress)
    assert len(seen) > 1


@pytest.mark.parametrize('size', [(7, 9), (16, 5)])
def test_networks_that_require_a_multiple(size):
    swinir = {'type': 'SwinIR', 'img_size': 8, 'window_size': 8, 'depths': [2], 'embed_dim': 12, 'num_heads': [2],
              'upscale': 2, 'upsampler': 'pixelshuffledirect'}
    rrdbnet = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4,
               'scale': 2}
    for config in (swinir, rrdbnet):
        upscaler = Upscaler(new_file(config))
        assert upscaler.upscale(image(*size)).image.shape == (2 * size[0], 2 * size[1], 3)
        assert upscaler.receptive_radius is None


def test_padding_repeats_the_border():
    """With black, a constant image would not stay constant."""
    rrdbnet = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4,
               'scale': 2}
    file = new_file(rrdbnet)
    small, large = (np.full((size, size, 3), 200, np.uint8) for size in (33, 34))
    found = Upscaler(file).upscale(small).image
    assert np.array_equal(found, Upscaler(file).upscale(large).image[:66, :66])


def test_channels_and_scale_of_swinir():
    config = {'type': 'SwinIR', 'img_size': 8, 'window_size': 8, 'depths': [2], 'embed_dim': 12, 'num_heads': [2],
               'upsampler': 'pixelshuffledirect', 'in_chans': 1}
    upscaler = Upscaler(new_file(config))
    assert (upscaler.channels, upscaler.scale) == (1, 2)  # its default


def test_network_with_non_finite_output():
    file = new_file(EDSR)
    file.network_g = {**EDSR, 'rgb_mean': [float('nan')] * 3}
    with pytest.raises(UserError, match='values that are not finite'):
        Upscaler(file).upscale(image(4, 4))


def test_bad_input():
    with pytest.raises(UserError, match='tile 63 is too small; use 64 or more'):
        Upscaler(new_file(EDSR), tile=63)
    with pytest.raises(UserError, match='without a variance head'):
        Upscaler(new_file(EDSR), uncertainty=True)
    for img in (np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.int32),
                np.zeros((0, 4, 3), np.uint8), Image.new('F', (4, 4))):
        with pytest.raises(UserError, match='8 or 16 bits'):
            Upscaler(new_file(EDSR)).upscale(img)
    for img in (torch.zeros(4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), torch.zeros(3, 4, 4).byte()):
        with pytest.raises(UserError, match='expected a float tensor'):
            Upscaler(new_file(EDSR)).upscale(img)
    for value in (1.5, -0.1, float('nan')):
        with pytest.raises(UserError, match=r'expected a tensor in \[0, 1\]'):
            Upscaler(new_file(EDSR)).upscale(torch.full((3, 4, 4), value))
    with pytest.raises(UserError, match='expected a path, a PIL image, an array or a tensor, not list'):
        Upscaler(new_file(EDSR)).upscale([1])


def test_out_of_memory(monkeypatch):
    upscaler = Upscaler(new_file(EDSR))

    def full(_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(upscaler, 'net', full)
    with pytest.raises(UserError, match='memory does not suffice.*--tile 256'):
        upscaler.upscale(image(4, 4))


def limit_memory(monkeypatch, upscaler, limit):
    """Images of more LR pixels fail as on a GPU whose memory they would fill. Returns the sizes that were tried."""
    sizes = []

    def check(_, args):
        sizes.append(args[0].shape[2:])
        if math.prod(sizes[-1]) > limit:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 1 bytes.')

    upscaler.net.register_forward_pre_hook(check)
    monkeypatch.setattr('udl_plugin.inference.upscaler.available_memory', lambda: None)
    return sizes


def test_tiles_are_used_where_memory_is_short(monkeypatch):
    upscaler, img = Upscaler(new_file(EDSR)), image(150, 300)
    expected = upscaler.upscale(img).image
    sizes = limit_memory(monkeypatch, upscaler, 128 ** 2)
    assert np.abs(upscaler.upscale(img).image.astype(int) - expected).max() <= 1
    assert sizes[0] == (150, 300)
    assert sizes[1][1] > 128  # of a tile of 256
    assert max(max(size) for size in sizes[2:]) == 128
    assert upscaler.notes == ['memory is short; using tiles of 128 x 128 pixels, as --tile 128 does.']
    upscaler.upscale(img)  # it does not try the full image again
    assert sizes.count((150, 300)) == 1


def test_tiles_are_used_where_memory_is_short_by_an_estimate(monkeypatch):
    upscaler, img = Upscaler(new_file({**EDSR, 'num_block': 60})), image(70, 300)
    sizes = limit_memory(monkeypatch, upscaler, math.inf)
    monkeypatch.setattr('udl_plugin.inference.upscaler.available_memory', lambda: 130 ** 2 * upscaler._memory_per_pixel)
    upscaler.upscale(img)
    assert max(size[1] for size in sizes[1:]) == 128  # the first one is the probe's
    assert len(upscaler.notes) == 1
    assert upscaler.notes[0].startswith('memory is short; using tiles of 128 x 128 pixels, as --tile 128')


def test_tiles_that_do_not_suffice(monkeypatch):
    upscaler = Upscaler(new_file(EDSR), tile=256)
    limit_memory(monkeypatch, upscaler, 70 ** 2)
    with pytest.raises(UserError, match='memory does not suffice for tiles of 256 pixels; use smaller ones'):
        upscaler.upscale(image(300, 300))
    upscaler = Upscaler(new_file(EDSR))
    limit_memory(monkeypatch, upscaler, 30 ** 2)
    with pytest.raises(UserError, match='memory does not suffice for tiles of 64'):
        upscaler.upscale(image(300, 300))


@pytest.mark.gpu
def test_on_a_gpu():
    for config in ({'type': 'EDSRTwo', **TINY}, {'type': 'DPDNNTwo', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4}):
        file, img = new_file(config), image(70, 90)
        on_cpu, on_gpu = (Upscaler(file, device, uncertainty=True).upscale(img) for device in ('cpu', 'cuda'))
        assert np.abs(on_cpu.image.astype(int) - on_gpu.image).max() <= 1
        np.testing.assert_allclose(on_cpu.log_var, on_gpu.log_var, atol=1e-2)


def test_base_network_of_dpdnn():
    assert type(Upscaler(new_file({'type': 'DPDNN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4})).net) is DPDNN
