import copy
import logging
import shutil
from collections import OrderedDict

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.models import build_model
from basicsr.utils import tensor2img
from basicsr.utils.registry import LOSS_REGISTRY
from conftest import TINY, model_options
from torch import nn
from torch.utils.data import DataLoader, Dataset

from udl_plugin.archs import EDSRTwo, EDSRVar
from udl_plugin.archs.wrapping import base_state_dict
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.errors import UserError
from udl_plugin.inference.visualize import OWNERS, expected_error_picture
from udl_plugin.metrics.uncertainty_metrics import calculate_map_ause, calculate_map_calibration

pytestmark = pytest.mark.usefixtures('seed')


def save_step1(folder, ema=False, **changes):
    path = folder / 'step1.pth'
    content = {'params': EDSRVar(**{**TINY, **changes}).state_dict()}
    if ema:
        content['params_ema'] = EDSRVar(**{**TINY, **changes}).state_dict()
    torch.save(content, path)
    return str(path)


def step2_options(folder, ema=False, **train):
    opt = model_options(2, folder, **train)
    opt['path']['pretrain_network_g'] = save_step1(folder, ema)
    return opt


def iterate(model, count=3):
    for number in range(1, count + 1):
        model.feed_data({'lq': torch.rand(2, 3, 8, 8), 'gt': torch.rand(2, 3, 16, 16)})
        model.optimize_parameters(number)
    return model


def snapshot(net):
    return copy.deepcopy(net.state_dict())


def same(one, other, prefix=''):
    return all(torch.equal(value, other[name]) for name, value in one.items() if name.startswith(prefix))


def test_step_1_trains_everything(tmp_path):
    model = build_model(model_options(1, tmp_path))
    before = snapshot(model.net_g)
    iterate(model)
    assert not any(torch.equal(value, before[name]) for name, value in model.net_g.state_dict().items())
    assert np.isfinite(model.log_dict['l_pix'])


def test_step_2_trains_one_branch_and_not_the_other(tmp_path):
    model = build_model(step2_options(tmp_path))
    before = snapshot(model.net_g)
    iterate(model)
    after = model.net_g.state_dict()
    assert same(before, after, 'var_net.')
    assert not any(torch.equal(value, after[name]) for name, value in before.items() if name.startswith('sr_net.'))


def test_step_2_loss_is_the_weighted_l1(tmp_path):
    """The loss of an iteration, computed by hand from the networks."""
    model = build_model(step2_options(tmp_path))
    lq, gt = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        sr, s = model.net_g.sr_net(lq), model.net_g.var_net.log_var(lq)
        smallest = s.flatten(2).min(dim=2).values[..., None, None]
        expected = ((s - smallest + 1) * (gt - sr).abs() * 255).mean()
    model.feed_data({'lq': lq, 'gt': gt})
    model.optimize_parameters(1)
    assert model.log_dict['l_pix'] == pytest.approx(float(expected), rel=1e-5)


class OwnLoss(nn.Module):
    """As a user writes it, for plain training."""

    def __init__(self, power=2.0):
        super().__init__()
        self.power = power

    def forward(self, sr, gt):
        return ((sr - gt).abs()**self.power).mean()


class OwnMapLoss(OwnLoss):
    """One that weights by the uncertainty, or trains it."""

    required_outputs = ('log_var',)

    def forward(self, sr, gt, log_var):
        return (torch.exp(-log_var) * (sr - gt).abs()**self.power + log_var).mean()


@pytest.fixture
def own_losses(monkeypatch):
    for cls in (OwnLoss, OwnMapLoss):
        monkeypatch.setitem(LOSS_REGISTRY._obj_map, cls.__name__, cls)


@pytest.mark.usefixtures('own_losses')
@pytest.mark.parametrize('step', [1, 2])
@pytest.mark.parametrize('cls', [OwnLoss, OwnMapLoss])
@pytest.mark.parametrize('trains_log_var', [None, True, False])
def test_own_loss(tmp_path, monkeypatch, step, cls, trains_log_var):
    """Gets the outputs that it declares; need not declare more, nor have our options."""
    if trains_log_var is not None:
        monkeypatch.setattr(cls, 'trains_log_var', trains_log_var, raising=False)
    opt = {1: model_options, 2: lambda _, folder, **train: step2_options(folder, **train)}[step](
        step, tmp_path, pixel_opt={'type': cls.__name__, 'power': 3.0})
    if cls is OwnMapLoss and trains_log_var is (step == 2):
        with pytest.raises(UserError, match='pixel_opt: OwnMapLoss (trains the|weights by a trained) log-variance'):
            build_model(opt)
        return
    model = build_model(opt)
    lq, gt = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        sr, s = model.net_g(lq, return_log_var=True)
        expected = (sr - gt).abs()**3 if cls is OwnLoss else torch.exp(-s) * (sr - gt).abs()**3 + s
    model.feed_data({'lq': lq, 'gt': gt})
    model.optimize_parameters(1)
    assert model.log_dict['l_pix'] == pytest.approx(float(expected.mean()), rel=1e-5)
    model.save(epoch=0, current_iter=1)
    assert 'uncertainty_loss' not in torch.load(tmp_path / 'net_g_1.pth', weights_only=True)  # its unit is not known


@pytest.mark.usefixtures('own_losses')
def test_own_loss_that_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(OwnMapLoss, 'required_outputs', ('logvar',))
    with pytest.raises(UserError, match=r"OwnMapLoss: required_outputs has 'logvar'; write a tuple of log_var"):
        build_model(model_options(1, tmp_path, pixel_opt={'type': 'OwnMapLoss'}))
    monkeypatch.setattr(OwnLoss, 'forward', lambda self, sr, gt: sr - gt)
    model = build_model(model_options(1, tmp_path, pixel_opt={'type': 'OwnLoss'}))
    with pytest.raises(UserError, match=r'pixel_opt: type: OwnLoss returns a tensor of shape \(2, 3, 16, 16\), not'):
        iterate(model, 1)
    monkeypatch.setitem(LOSS_REGISTRY._obj_map, 'OwnClass', type('OwnClass', (), {}))
    with pytest.raises(UserError, match='train.pixel_opt: type: OwnClass: must be a class of torch.nn.Module'):
        build_model(model_options(1, tmp_path, pixel_opt={'type': 'OwnClass'}))


@pytest.mark.usefixtures('own_losses')
def test_criterion_in_a_training(tmp_path):
    """A loss of each pixel, weighted; computed by hand from the networks."""
    model = build_model(step2_options(tmp_path, pixel_opt={'type': 'UDL', 'criterion': {
        'type': 'CharbonnierLoss', 'reduction': 'none', 'eps': 1.0}}))
    lq, gt = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        sr, s = model.net_g.sr_net(lq), model.net_g.var_net.log_var(lq)
        expected = (s - s.amin((2, 3), keepdim=True) + 1) * ((255 * (gt - sr))**2 + 1).sqrt()
    model.feed_data({'lq': lq, 'gt': gt})
    model.optimize_parameters(1)
    assert model.log_dict['l_pix'] == pytest.approx(float(expected.mean()), rel=1e-5)


def test_saved_network_is_a_plain_edsr(tmp_path):
    model = iterate(build_model(step2_options(tmp_path)))
    model.save(epoch=0, current_iter=3)
    saved = torch.load(tmp_path / 'net_g_3.pth', weights_only=True)
    plain = EDSR(**TINY)
    plain.load_state_dict(base_state_dict(saved['params']), strict=True)
    x = torch.rand(1, 3, 9, 7)
    assert torch.equal(plain(x), model.net_g(x))


@pytest.mark.parametrize('ema', [False, True])
def test_checkpoint_records_its_network(tmp_path, ema):
    opt = step2_options(tmp_path, ema, **({'ema_decay': 0.9} if ema else {}))
    opt['network_g'] = OrderedDict(opt['network_g'], rgb_mean=(0, 0, 0))  # as BasicSR's yml loader returns it
    model = iterate(build_model(opt))
    model.save(epoch=0, current_iter=-1)
    saved = torch.load(tmp_path / 'net_g_latest.pth', weights_only=True)
    assert saved['network_g'] == {'type': 'EDSRTwo', **TINY, 'rgb_mean': [0, 0, 0]}
    assert saved.keys() == {'network_g', 'params', *['params_ema'] * ema}
    for key in saved.keys() - {'network_g'}:
        assert saved[key]._metadata['']['network_g'] == saved['network_g']
    nets = {'params': model.net_g, 'params_ema': getattr(model, 'net_g_ema', None)}
    for key in saved.keys() - {'network_g'}:
        assert same(nets[key].state_dict(), saved[key])
    found = load_network_file(tmp_path / 'net_g_latest.pth')
    assert found.network_g == saved['network_g']


def test_validation_pads_to_the_required_multiple(tmp_path):
    """SwinIR requires multiples of its window; BasicSR has a separate model for it."""
    backbone = {'type': 'SwinIR', 'img_size': 8, 'window_size': 8, 'depths': [2], 'embed_dim': 12, 'num_heads': [2],
                'upscale': 2, 'upsampler': 'pixelshuffledirect'}
    opt = model_options(1, tmp_path)
    opt['network_g'] = {'type': 'WithVariance', 'backbone': backbone}
    for save_uncertainty in (False, True):
        opt['val']['save_uncertainty'] = save_uncertainty
        model = build_model(copy.deepcopy(opt))
        lq = torch.rand(1, 3, 13, 18)
        model.feed_data({'lq': lq})
        model.test()
        assert model.output.shape == (1, 3, 26, 36)
        assert torch.equal(model.lq, lq)
        filled = nn.functional.pad(lq, (0, 6, 0, 3), mode='replicate')
        with torch.no_grad():
            assert torch.equal(model.output, model.net_g.eval()(filled)[:, :, :26, :36])


@pytest.mark.parametrize('save_uncertainty', [False, True])
def test_validation_in_tiles(tmp_path, save_uncertainty):
    """Gives image and map of the full image."""
    opt = step2_options(tmp_path)
    opt['val']['save_uncertainty'] = save_uncertainty
    whole = build_model(copy.deepcopy(opt))
    opt['val']['tile'] = 64
    tiled, sizes = build_model(opt), []
    tiled.net_g.load_state_dict(whole.net_g.state_dict())
    tiled.net_g.register_forward_pre_hook(lambda _, args: sizes.append(max(args[0].shape[2:])))
    lq = torch.rand(1, 3, 75, 101)
    for model in (whole, tiled):
        model.feed_data({'lq': lq})
        model.test()
    assert len(sizes) > 1
    assert max(sizes) <= 64
    assert torch.equal(tiled.lq, lq)
    torch.testing.assert_close(tiled.output, whole.output)
    if save_uncertainty:
        torch.testing.assert_close(tiled.log_var, whole.log_var)
    else:
        assert tiled.log_var is None


def test_ema_of_parameters_missing_in_the_checkpoint(tmp_path):
    """It starts where the network does, not with random numbers of its own."""
    plain = EDSR(**TINY).state_dict()
    torch.save({'params': plain}, tmp_path / 'plain.pth')
    opt = model_options(1, tmp_path, ema_decay=0.9)
    opt['path'].update(pretrain_network_g=str(tmp_path / 'plain.pth'), strict_load_g=False)
    model = build_model(opt)
    assert same(model.net_g.state_dict(), model.net_g_ema.state_dict())
    assert all(torch.equal(value, model.net_g.state_dict()[name]) for name, value in plain.items())


def test_checkpoint_records_the_loss_of_the_variance_head(tmp_path):
    """That of step 1, also in step 2 and after a resume; nothing if step 1's checkpoint does not say."""
    model = build_model(model_options(1, tmp_path, pixel_opt={'type': 'EU'}))
    model.save(0, 1)
    assert torch.load(tmp_path / 'net_g_1.pth')['uncertainty_loss'] == 'EU'
    for iteration in (2, 3):
        opt = model_options(2, tmp_path)
        opt['path']['pretrain_network_g'] = str(tmp_path / f'net_g_{iteration - 1}.pth')
        build_model(opt).save(0, iteration)
        assert torch.load(tmp_path / f'net_g_{iteration}.pth')['uncertainty_loss'] == 'EU'
    build_model(step2_options(tmp_path)).save(0, 4)
    build_model(model_options(1, tmp_path, pixel_opt={'type': 'ESU', 'img_range': 1})).save(0, 5)  # of another unit
    for iteration in (4, 5):
        assert 'uncertainty_loss' not in torch.load(tmp_path / f'net_g_{iteration}.pth')


def test_full_disk_does_not_end_the_training(tmp_path, monkeypatch, caplog):
    model = build_model(model_options(1, tmp_path))
    (tmp_path / 'net_g_latest.pth').write_bytes(b'the one before')
    monkeypatch.setattr(logging.getLogger('basicsr'), 'propagate', True)

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', full)
    model.save_network(model.net_g, 'net_g', -1)
    assert "net_g_latest.pth' cannot be written: [Errno 28] No space left" in caplog.text
    assert (tmp_path / 'net_g_latest.pth').read_bytes() == b'the one before'
    assert [path.name for path in tmp_path.iterdir()] == ['net_g_latest.pth']


@pytest.mark.parametrize('step', [1, 2])
def test_no_warnings(tmp_path, step, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('basicsr'), 'propagate', True)
    build_model(model_options(1, tmp_path) if step == 1 else step2_options(tmp_path))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize('step', [1, 2])
def test_ema(tmp_path, step):
    """The average follows the trained tensors by BasicSR's rule and keeps the frozen ones."""
    model = build_model(model_options(1, tmp_path, ema_decay=0.5) if step == 1 else
                        step2_options(tmp_path, ema_decay=0.5))
    expected = snapshot(model.net_g_ema)
    for _ in range(3):
        iterate(model, 1)
        for name, value in model.net_g.state_dict().items():
            if not name.startswith('var_net.'):
                expected[name] = 0.5 * expected[name] + 0.5 * value
    ema = model.net_g_ema.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(ema[name], value)
    assert same(expected, ema, 'var_net.')
    assert same(model.net_g.state_dict(), ema, 'var_net.')


@pytest.mark.parametrize('key', ['params', 'params_ema', None])
def test_step_2_loads_the_selected_weights(tmp_path, key):
    """By default the moving average."""
    opt = step2_options(tmp_path, ema=True, ema_decay=0.9)
    if key:
        opt['path']['param_key_g'] = key
    model = build_model(opt)
    wanted = torch.load(opt['path']['pretrain_network_g'])[key or 'params_ema']
    assert same({f'var_net.{name}': value for name, value in wanted.items()}, model.net_g.state_dict())
    assert same(model.net_g.state_dict(), model.net_g_ema.state_dict(), 'var_net.')


def test_step_2_continues_from_step_2(tmp_path):
    model = iterate(build_model(step2_options(tmp_path)))
    model.save(epoch=0, current_iter=3)
    opt = model_options(2, tmp_path)
    opt['path']['pretrain_network_g'] = str(tmp_path / 'net_g_3.pth')
    assert same(model.net_g.state_dict(), build_model(opt).net_g.state_dict())


def test_other_losses(tmp_path):
    """A pixel loss of BasicSR alone, and a perceptual loss next to UDL (a stub: VGG's weights are a download)."""
    opt = step2_options(tmp_path)
    opt['train']['pixel_opt'] = {'type': 'L1Loss'}
    model = build_model(opt)
    model.cri_perceptual = lambda x, gt: ((x - gt).abs().mean(), None)
    model.feed_data({'lq': torch.rand(1, 3, 8, 8), 'gt': torch.rand(1, 3, 16, 16)})
    model.optimize_parameters(1)
    assert model.log_dict['l_pix'] == pytest.approx(model.log_dict['l_percep'])
    assert 'l_style' not in model.log_dict
    model = build_model(step2_options(tmp_path))
    model.cri_perceptual = lambda x, gt: ((x - gt).pow(2).mean(), x.mean())
    assert list(iterate(model, 1).log_dict) == ['l_pix', 'l_percep', 'l_style']


@pytest.mark.parametrize('step', [1, 2])
def test_srmodel_accepts_the_networks(tmp_path, step):
    opt = model_options(1, tmp_path) if step == 1 else step2_options(tmp_path)
    opt.update(model_type='SRModel')
    opt['train'].update(pixel_opt={'type': 'L1Loss'}, ema_decay=0.9)
    model = build_model(opt)
    before = snapshot(model.net_g)
    iterate(model)
    model.test()
    assert model.output.shape == (2, 3, 16, 16)
    assert same(before, model.net_g.state_dict(), 'var_net.')
    assert same(before, model.net_g_ema.state_dict(), 'var_net.')


class OnePair(Dataset):
    opt = {'name': 'Set1'}  # noqa: RUF012

    def __len__(self):
        return 1

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(0)
        return {'lq': torch.rand(3, 8, 8, generator=generator), 'gt': torch.rand(3, 16, 16, generator=generator),
                'lq_path': 'somewhere/bird.png'}


@pytest.mark.parametrize(('is_train', 'suffix', 'folder', 'stem'), [
    (True, None, 'bird', 'bird_7'), (False, None, 'Set1', 'bird_test'), (False, 'x', 'Set1', 'bird_x')])
@pytest.mark.parametrize('step', [1, 2])
def test_validation_saves_the_map_next_to_the_image(tmp_path, step, is_train, suffix, folder, stem):
    opt = step2_options(tmp_path)
    if step == 1:
        opt = model_options(1, tmp_path)
        opt['path']['pretrain_network_g'] = save_step1(tmp_path)
    opt['is_train'] = is_train
    opt['val'].update(save_uncertainty=True, save_img=True, suffix=suffix)
    model = build_model(opt)
    model.validation(DataLoader(OnePair()), 7, None, save_img=True)
    folder = tmp_path / 'visualization' / folder
    assert {path.name for path in folder.iterdir()} == \
        {f'{stem}{end}' for end in ('.png', '_expected_error.png', '_expected_error.npy', '_log_var.npy')}
    log_var = np.load(folder / f'{stem}_log_var.npy')
    with torch.no_grad():
        expected = model.net_g.eval()(OnePair()[0]['lq'][None], return_log_var=True)[1][0].numpy()
    np.testing.assert_allclose(log_var, expected, atol=1e-6)
    error = np.load(folder / f'{stem}_expected_error.npy')
    np.testing.assert_allclose(error, 2 * np.exp(log_var).transpose(1, 2, 0), rtol=1e-6)  # of ESU
    picture = cv2.imread(str(folder / f'{stem}_expected_error.png'))
    np.testing.assert_array_equal(picture, expected_error_picture(log_var, owner=OWNERS[f'step {step}']))


@pytest.mark.parametrize('step', [1, 2])
def test_validation_rates_the_map(tmp_path, step):
    opt = step2_options(tmp_path) if step == 2 else model_options(1, tmp_path)
    opt['val']['metrics'] = {'ause': {'type': 'calculate_map_ause', 'crop_border': 2, 'better': 'lower'},
                             'calibration': {'type': 'calculate_map_calibration', 'crop_border': 2, 'loss': 'EU'}}
    before = copy.deepcopy(opt['val'])
    model = build_model(opt)
    model.validation(DataLoader(OnePair()), 7, None, save_img=False)
    pair = OnePair()[0]
    with torch.no_grad():
        sr, log_var = model.net_g.eval()(pair['lq'][None], return_log_var=True)
    images = tensor2img([sr]), tensor2img([pair['gt'][None]]), log_var[0].numpy()
    assert model.metric_results['ause'] == pytest.approx(calculate_map_ause(*images, 2), abs=1e-6)
    assert model.metric_results['calibration'] == pytest.approx(calculate_map_calibration(*images, 2, 'EU'), abs=1e-6)
    assert not (tmp_path / 'visualization').exists()
    assert opt['val'] == before


def test_pictures_with_fixed_limits(tmp_path):
    opt = step2_options(tmp_path)
    opt['val'].update(save_uncertainty=True, uncertainty_limits=[0, 5], uncertainty_colormap='authors')
    model = build_model(opt)
    model.validation(DataLoader(OnePair()), 7, None, save_img=False)
    log_var = np.load(tmp_path / 'visualization/bird/bird_7_log_var.npy')
    picture = cv2.imread(str(tmp_path / 'visualization/bird/bird_7_expected_error.png'))
    owner = OWNERS['step 2']
    np.testing.assert_array_equal(picture, expected_error_picture(log_var, 'ESU', 1, (0, 5), 'authors', owner))
    assert (picture != expected_error_picture(log_var, colormap='authors', owner=owner)).any()


def test_step_2_weighted_by_the_error_of_the_frozen_network(tmp_path):
    model = build_model(step2_options(tmp_path, pixel_opt={'type': 'UDL', 'source': 'error'}))
    iterate(model, 2)  # the two branches differ now
    model.feed_data({'lq': torch.rand(2, 3, 8, 8), 'gt': torch.rand(2, 3, 16, 16)})
    loss = model.compute_losses(model.lq, model.gt)['l_pix'].item()
    with torch.no_grad():
        sr, frozen_sr = model.net_g.sr_net(model.lq), model.net_g.var_net(model.lq)
    error = 255 * (model.gt - frozen_sr).abs()
    expected = ((error - error.amin((2, 3), keepdim=True) + 1) * 255 * (model.gt - sr).abs()).mean()
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_validation_gives_the_same_image_with_and_without_map(tmp_path):
    opt = step2_options(tmp_path)
    plain = build_model(opt)
    opt['val']['save_uncertainty'] = True
    mapped = build_model(opt)
    for model in (plain, mapped):
        model.validation(DataLoader(OnePair()), 1, None, save_img=False)
        assert model.net_g.training
    assert plain.metric_results == mapped.metric_results


def test_test_alone_saves_nothing(tmp_path):
    opt = step2_options(tmp_path)
    opt['val']['save_uncertainty'] = True
    model = build_model(opt)
    model.validation(DataLoader(OnePair()), 7, None, save_img=False)
    shutil.rmtree(tmp_path / 'visualization')
    pair = OnePair()[0]
    model.feed_data({'lq': pair['lq'][None], 'gt': pair['gt'][None]})
    model.test()
    assert not (tmp_path / 'visualization').exists()


def test_validation_on_several_gpus_does_not_split_its_one_image(tmp_path):
    """DataParallel hands the keyword argument to every GPU and the image to the first: the others fail."""
    opt = step2_options(tmp_path)
    opt['val']['save_uncertainty'] = True
    model = build_model(opt)
    model.net_g = torch.nn.DataParallel(model.net_g)
    model.net_g.forward = lambda *args, **kwargs: pytest.fail('validation went through DataParallel')
    model.validation(DataLoader(OnePair()), 7, None, save_img=False)


def test_validation_runs_the_ema(tmp_path):
    opt = step2_options(tmp_path, ema_decay=0.9)
    opt['val']['save_uncertainty'] = True
    model = iterate(build_model(opt))
    pair = OnePair()[0]
    model.feed_data({'lq': pair['lq'][None], 'gt': pair['gt'][None]})
    model.test()
    assert torch.equal(model.output, model.net_g_ema(model.lq))
    assert not torch.equal(model.output, model.net_g(model.lq))


def test_validation_without_map_never_runs_the_frozen_branch(tmp_path):
    model = build_model(step2_options(tmp_path))
    model.net_g.var_net.backbone.conv_first.register_forward_hook(lambda *_: pytest.fail('var_net ran'))
    model.validation(DataLoader(OnePair()), 1, None, save_img=False)


def refused(opt, *parts):
    with pytest.raises(UserError) as caught:
        build_model(opt)
    for part in parts:
        assert part in str(caught.value)


def test_step_2_without_step_1(tmp_path):
    refused(model_options(2, tmp_path), 'path.pretrain_network_g', 'is missing', 'step 1')


def test_step_2_with_missing_file(tmp_path):
    opt = model_options(2, tmp_path)
    opt['path']['pretrain_network_g'] = str(tmp_path / 'nowhere.pth')
    refused(opt, 'path.pretrain_network_g', 'nowhere.pth', 'there is no file')


@pytest.mark.parametrize(('changes', 'part'), [
    ({'num_feat': 16}, 'num_feat: 16 (network_g: 8)'),
    ({'num_block': 3}, 'num_block: 3 (network_g: 2)'),
    ({'upscale': 4}, 'upscale: 4 (network_g: 2)'),
    ({'upscale': 3}, 'upscale: 3 (network_g: 2)'),
])
def test_step_2_with_step_1_of_another_size(tmp_path, changes, part):
    opt = model_options(2, tmp_path)
    opt['path'].update(pretrain_network_g=save_step1(tmp_path, **changes), strict_load_g=False)
    refused(opt, 'path.pretrain_network_g', 'step1.pth', part)


def test_step_2_with_a_network_without_variance(tmp_path):
    torch.save({'params': EDSR(**TINY).state_dict()}, tmp_path / 'edsr.pth')
    opt = model_options(2, tmp_path)
    opt['path']['pretrain_network_g'] = str(tmp_path / 'edsr.pth')
    refused(opt, 'edsr.pth', 'no variance head', 'step 1')


def test_step_1_may_start_from_plain_edsr_if_asked(tmp_path):
    torch.save({'params': EDSR(**TINY).state_dict()}, tmp_path / 'edsr.pth')
    opt = model_options(1, tmp_path)
    opt['path']['pretrain_network_g'] = str(tmp_path / 'edsr.pth')
    refused(opt, 'edsr.pth', 'missing: 6', 'strict_load_g: false')
    opt['path']['strict_load_g'] = False
    model = build_model(opt)
    assert same(torch.load(tmp_path / 'edsr.pth')['params'], model.net_g.state_dict())


def test_strict_load_false_loads_what_fits_but_requires_something(tmp_path):
    opt = model_options(1, tmp_path)
    opt['path'].update(pretrain_network_g=save_step1(tmp_path, upscale=4), strict_load_g=False)
    model, given = build_model(opt), torch.load(tmp_path / 'step1.pth')['params']
    loaded = model.net_g.state_dict()
    assert all(torch.equal(given[name], value) for name, value in loaded.items() if name in given)
    torch.save({'params': EDSRTwo(**TINY).state_dict()}, tmp_path / 'step2.pth')
    opt['path']['pretrain_network_g'] = str(tmp_path / 'step2.pth')
    refused(opt, 'step2.pth', 'of step 2', 'EDSRTwo', 'udl-convert')


def test_state_dict_without_key(tmp_path):
    opt = model_options(2, tmp_path, ema_decay=0.9)
    torch.save(EDSRVar(**TINY).state_dict(), tmp_path / 'raw.pth')
    opt['path'].update(pretrain_network_g=str(tmp_path / 'raw.pth'), param_key_g=None)
    model = build_model(opt)
    assert same(model.net_g.state_dict(), model.net_g_ema.state_dict())


def test_test_without_checkpoint(tmp_path):
    opt = model_options(1, tmp_path)
    opt['is_train'] = False
    refused(opt, 'path.pretrain_network_g', 'is missing')


@pytest.mark.parametrize(('step', 'loss', 'network'), [(2, 'ESU', 'EDSRTwo'), (1, 'UDL', 'EDSRVar')])
def test_loss_of_the_other_step(tmp_path, step, loss, network):
    opt = model_options(1, tmp_path) if step == 1 else step2_options(tmp_path)
    opt['train']['pixel_opt'] = {'type': loss}
    refused(opt, f'pixel_opt: {loss}', network, 'EDSRVar with ESU')


def test_network_without_log_var(tmp_path):
    opt = model_options(1, tmp_path)
    opt['network_g']['type'] = 'EDSR'
    refused(opt, 'pixel_opt: ESU', 'EDSR does not provide', 'EDSRVar')
    opt['train']['pixel_opt'] = {'type': 'L1Loss'}
    opt['val']['save_uncertainty'] = True
    refused(opt, 'save_uncertainty', 'EDSR')


def test_misspelt_option(tmp_path):
    opt = model_options(1, tmp_path)
    opt['val']['save_uncertanty'] = True
    refused(opt, 'val.save_uncertanty', "did you mean 'save_uncertainty'")
    opt = model_options(1, tmp_path)
    opt['train']['pixel_opt']['img_rnage'] = 1
    refused(opt, 'train.pixel_opt.img_rnage', 'type: ESU', "did you mean 'img_range'")


def test_frozen_branch_of_random_networks_differs(tmp_path):
    """Guards the tests above: two fresh networks are not equal by accident."""
    assert not same(EDSRTwo(**TINY).state_dict(), EDSRTwo(**TINY).state_dict())


@pytest.mark.gpu
@pytest.mark.parametrize('step', [1, 2])
def test_on_a_gpu(tmp_path, step):
    opt = model_options(1, tmp_path) if step == 1 else step2_options(tmp_path)
    opt['num_gpu'] = 1
    model = iterate(build_model(opt))
    assert next(model.net_g.parameters()).is_cuda
    assert all(tensor.is_cuda for tensor in model.net_g.buffers())
