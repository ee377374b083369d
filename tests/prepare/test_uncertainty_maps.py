import copy

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.utils import bgr2ycbcr
from conftest import ROOT, TINY, random_images, write_images

from udl_plugin.archs import DPDNNVar, EDSRTwo, EDSRVar, WithVariance
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.data.lmdb_io import open_lmdb, read_meta_info
from udl_plugin.data.map_format import dequantize, read_metadata
from udl_plugin.errors import UserError
from udl_plugin.prepare.uncertainty_maps import prepare_uncertainty

pytestmark = pytest.mark.usefixtures('seed')


def training_set(folder, gt):
    """HR and LR LMDB of images; LR images are every second pixel."""
    write_images(folder / 'hr.lmdb', gt)
    write_images(folder / 'lr.lmdb', {name: np.ascontiguousarray(img[::2, ::2]) for name, img in gt.items()})
    return folder / 'hr.lmdb', folder / 'lr.lmdb'


def checkpoint(folder, net, network_g, key='params'):
    path = folder / 'net.pth'
    save_checkpoint(path, {key: net.state_dict()}, network_g)
    return path


def read_maps(path):
    limits = read_metadata(path)['limits']
    with open_lmdb(path) as env, env.begin() as txn:
        return {key.decode(): dequantize(cv2.imdecode(np.frombuffer(data, np.uint8), -1), limits[key.decode()])
                for key, data in txn.cursor()}


def log_var_of(net, img):
    lq = torch.from_numpy(img[::2, ::2, ::-1].copy()).float().permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        return net(lq, return_log_var=True)[1][0].numpy()


@pytest.mark.parametrize(('step', 'batch', 'compress'), [(1, None, True), (1, 2, False), (2, None, False),
                                                         (2, 2, True)])
def test_maps_are_those_of_the_network(tmp_path, step, batch, compress):
    """For images of several sizes and any batch size."""
    gt = {**random_images(3, 24, 16), 'wide': random_images(1, 12, 40)['image_0'],
          'ä %': random_images(1, 24, 16)['image_0']}
    net = (EDSRVar if step == 1 else EDSRTwo)(**TINY).eval()
    path = checkpoint(tmp_path, net, {'type': f'EDSR{"Var" if step == 1 else "Two"}', **TINY})
    hr, lr = training_set(tmp_path, gt)
    made = prepare_uncertainty(path, hr, lr, tmp_path / 'maps.lmdb', batch=batch, compress=compress)
    assert made.images == 5
    assert made.pixels == 4 * 24 * 16 + 12 * 40
    assert made.size == sum(file.stat().st_size for file in (tmp_path / 'maps.lmdb').iterdir())
    shapes = read_meta_info(tmp_path / 'maps.lmdb')
    assert shapes == read_meta_info(hr)
    maps = read_maps(tmp_path / 'maps.lmdb')
    assert maps.keys() == shapes.keys()
    for name, key in zip(gt, shapes):
        expected = log_var_of(net, gt[name])
        assert np.abs(maps[key] - expected).max() <= (expected.max() - expected.min()) / 510 + 1e-4
    assert read_metadata(tmp_path / 'maps.lmdb')['model'] == str(path)


def test_one_channel(tmp_path):
    options = {'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_step': 1, 'upscale': 2}
    net = DPDNNVar(**options).eval()
    hr, lr = training_set(tmp_path, random_images(1, 32))
    prepare_uncertainty(checkpoint(tmp_path, net, {'type': 'DPDNNVar', **options}), hr, lr, tmp_path / 'maps.lmdb')
    img = random_images(1, 32)['image_0'][::2, ::2].astype(np.float32) / 255
    with torch.no_grad():
        expected = net.log_var(torch.from_numpy(bgr2ycbcr(img, y_only=True))[None, None])[0].numpy()
    got = read_maps(tmp_path / 'maps.lmdb')['image_0']
    assert got.shape == expected.shape == (1, 32, 32)
    assert np.abs(got - expected).max() <= (expected.max() - expected.min()) / 510 + 1e-4


def test_images_are_padded_to_the_multiple_of_the_network(tmp_path):
    backbone = {'type': 'SwinIR', 'img_size': 8, 'window_size': 8, 'depths': [2], 'embed_dim': 12, 'num_heads': [2],
                'upscale': 2, 'upsampler': 'pixelshuffledirect'}
    hr, lr = training_set(tmp_path, random_images(1, 20, 36))
    path = checkpoint(tmp_path, WithVariance(backbone), {'type': 'WithVariance', 'backbone': backbone})
    prepare_uncertainty(path, hr, lr, tmp_path / 'maps.lmdb')
    assert read_meta_info(tmp_path / 'maps.lmdb') == {'image_0': (20, 36, 3)}


def check_raises(tmp_path, match, net=None, network_g=None, gt=None, out='maps.lmdb', **changes):
    hr, lr = training_set(tmp_path, gt or random_images(2, 16))
    path = checkpoint(tmp_path, net or EDSRVar(**TINY), network_g or {'type': 'EDSRVar', **TINY})
    with pytest.raises(UserError, match=match):
        prepare_uncertainty(**{'model': path, 'hr': hr, 'lr': lr, 'out': tmp_path / out, **changes})
    assert not (tmp_path / 'maps.lmdb').exists()
    assert not (tmp_path / '.unfinished').exists()


def test_base_network_raises(tmp_path):
    check_raises(tmp_path, 'holds a base network without a variance head', EDSR(**TINY), {'type': 'EDSR', **TINY})


def test_other_scale_raises(tmp_path):
    options = {**TINY, 'upscale': 4}
    check_raises(tmp_path, 'do not fit this network: image_0: HR is 16 x 16 and LR 8 x 8, not a scale of 4',
            EDSRVar(**options), {'type': 'EDSRVar', **options})


def test_maps_that_are_not_finite_raise(tmp_path):
    net = EDSRVar(**TINY)
    with torch.no_grad():
        net.var_conv[4].weight.fill_(1e38)
    check_raises(tmp_path, 'NaN or infinite values', net)


@pytest.mark.parametrize(('out', 'match'), [('maps', "'.*maps' does not end in .lmdb"),
                                            ('hr.lmdb', 'would be written, but holds input images')])
def test_bad_paths_raise(tmp_path, out, match):
    check_raises(tmp_path, match, out=out)


def test_existing_maps_are_replaced_with_force_only(tmp_path):
    hr, lr = training_set(tmp_path, random_images(2, 16))
    path, out = checkpoint(tmp_path, EDSRVar(**TINY), {'type': 'EDSRVar', **TINY}), tmp_path / 'maps.lmdb'
    prepare_uncertainty(path, hr, lr, out)
    before = (out / 'data.mdb').read_bytes()
    checkpoint(tmp_path, EDSRVar(**TINY), {'type': 'EDSRVar', **TINY})
    with pytest.raises(UserError, match='exists already'):
        prepare_uncertainty(path, hr, lr, out)
    assert (out / 'data.mdb').read_bytes() == before
    prepare_uncertainty(path, hr, lr, out, force=True)
    assert (out / 'data.mdb').read_bytes() != before


def test_moving_average_unless_the_weights_are_asked_for(tmp_path):
    hr, lr = training_set(tmp_path, random_images(1, 16))
    nets = {key: EDSRVar(**TINY).eval() for key in ('params', 'params_ema')}
    path = tmp_path / 'net.pth'
    save_checkpoint(path, {key: copy.deepcopy(net.state_dict()) for key, net in nets.items()},
                    {'type': 'EDSRVar', **TINY})
    for key, net in nets.items():
        stats = prepare_uncertainty(path, hr, lr, tmp_path / f'{key}.lmdb', param_key=None if 'ema' in key else key)
        assert read_metadata(tmp_path / f'{key}.lmdb')['param_key'] == key
        assert [note.split(': ')[1] for note in stats.notes] == ['using params_ema, the moving average; --param-key '
                                                                 'params selects the other.'] * ('ema' in key)
        expected = log_var_of(net, random_images(1, 16)['image_0'])
        got = read_maps(tmp_path / f'{key}.lmdb')['image_0']
        assert np.abs(got - expected).max() <= (expected.max() - expected.min()) / 510 + 1e-4


def test_comparison_with_online_maps(tmp_path, monkeypatch):
    """scripts/compare_maps.py: 8-bit maps differ by a quarter of a level on average, maps of patches at the border."""
    monkeypatch.syspath_prepend(ROOT / 'scripts')
    from compare_maps import compare
    hr, lr = training_set(tmp_path, random_images(2, 64))
    path = checkpoint(tmp_path, EDSRVar(**TINY), {'type': 'EDSRVar', **TINY})
    prepare_uncertainty(path, hr, lr, tmp_path / 'maps.lmdb')
    table = compare(path, lr, tmp_path / 'maps.lmdb', 20, 10)
    lines = [line.split('|') for line in table.splitlines() if line.startswith('|')]
    rows = {cells[1].strip(): cells[2:-1] for cells in lines}
    least, greatest = read_metadata(tmp_path / 'maps.lmdb')['limits']['image_0']
    everywhere, at_border, inside = (float(cell) for cell in rows['8 bit'][:3])
    assert everywhere == pytest.approx((greatest - least) / 255 / 4, abs=2e-3)
    everywhere, at_border, inside = (float(cell) for cell in rows['cut from the whole'][:3])
    assert inside < everywhere < at_border
    assert float(rows['flipped and turned'][2]) > 0.01
