"""What TensorBoard gets from a training: scalars of the last batch, and pictures of errors from each validation."""
import io

import cv2
import numpy as np
import pytest
import torch
from basicsr.models import build_model
from basicsr.utils import get_root_logger, tensor2img
from basicsr.utils.registry import LOSS_REGISTRY
from conftest import TINY, model_options
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from udl_plugin.archs import EDSRVar
from udl_plugin.inference.visualize import absolute_error, comparison_picture, heat_map, round_limit
from udl_plugin.losses import ESU
from udl_plugin.losses.build import build_loss
from udl_plugin.losses.uncertainty_loss import explain_loss
from udl_plugin.metrics.uncertainty_metrics import expected_error
from udl_plugin.models.udl_model import UDLModel
from udl_plugin.models.validation import map_spread

pytestmark = pytest.mark.usefixtures('seed')
LOSSES = {'L1': {'type': 'L1Loss'}, 'step 1': {'type': 'ESU'}, 'step 2': {'type': 'UDL', 'scaling': 'sqrt'},
          'one run': {'type': 'JointUDL', 'warmup': 1}, 'gradient': {'type': 'UDL', 'source': 'gradient'},
          'own error': {'type': 'JointUDL', 'warmup': 0, 'source': 'error'}}
MAP = {'map/mean', 'map/spread', 'map/at_bound'}
WEIGHT = {'weight/min', 'weight/max'}


def options(folder, stage, **train):
    opt = model_options(2 if stage == 'step 2' else 1, folder, pixel_opt=dict(LOSSES[stage]), **train)
    if stage in ('L1', 'gradient'):
        opt['network_g']['type'] = 'EDSR'
    if stage in ('one run', 'own error'):
        opt['network_g']['detach_features'] = True
    if stage == 'step 2':
        opt['path']['pretrain_network_g'] = str(folder / 'step1.pth')
        torch.save({'params': EDSRVar(**TINY).state_dict()}, folder / 'step1.pth')
    return opt


def step(model, number=1, count=2):
    generator = torch.Generator().manual_seed(number)
    batch = {'lq': torch.rand(count, 3, 8, 8, generator=generator),
             'gt': torch.rand(count, 3, 16, 16, generator=generator)}
    model.feed_data(batch)
    model.optimize_parameters(number)
    return batch


# ---- scalars


@pytest.mark.parametrize('stage', LOSSES)
def test_scalars_of_a_batch(tmp_path, stage):
    """Computed by hand from the network as it was before the iteration."""
    model = build_model(options(tmp_path, stage))
    step(model, 1)
    before = {name: value.clone() for name, value in model.net_g.state_dict().items()}
    batch = step(model, 2)
    found = model.get_current_log()
    model.net_g.load_state_dict(before)
    with torch.no_grad():
        output = model.net_g(batch['lq'], **({} if stage in ('L1', 'gradient') else {'return_log_var': True}))
    sr, s = output if isinstance(output, tuple) else (output, None)
    error = 255 * (batch['gt'] - sr).abs()
    expected = {'error/mean': error.mean()}
    if s is not None and stage != 'gradient':
        low, high = np.percentile(s.flatten(2).numpy(), [5, 95], axis=2)
        expected.update({'map/mean': s.mean(), 'map/spread': (high - low).max(),
                         'map/at_bound': (s < -0.99).sum() / s.numel()})
    if stage in ('step 2', 'one run', 'gradient', 'own error'):
        source = error if stage == 'own error' else s
        if stage == 'gradient':
            source = torch.hypot(*torch.gradient(255 * batch['gt'], dim=(-2, -1)))
        u = source - source.amin((2, 3), keepdim=True)
        weight = 1 + (u.sqrt() if stage == 'step 2' else u)
        expected.update({'weight/min': weight.min(), 'weight/max': weight.max()})
    assert found.keys() == expected.keys() | {'l_pix'}
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    assert found['l_pix'] == model.log_dict['l_pix']


def test_share_of_the_map_at_its_bound(tmp_path):
    model = build_model(options(tmp_path, 'step 1'))
    step(model)
    model.loss_inputs['log_var'] = torch.tensor([-1., -0.995, -0.98, 2.]).view(1, 1, 2, 2)
    assert model.get_current_log()['map/at_bound'] == 0.5


def test_scalars_of_the_last_part_of_a_batch(tmp_path):
    model = build_model(options(tmp_path, 'step 2', accumulate=2))
    step(model)
    expected = model.get_current_log()
    whole = build_model(options(tmp_path, 'step 2'))
    assert expected.keys() == {'l_pix', 'error/mean'} | MAP | WEIGHT
    assert expected['map/spread'] == map_spread(model.loss_inputs['log_var'])
    assert model.loss_inputs['log_var'].shape[0] == 1
    step(whole)
    assert whole.loss_inputs['log_var'].shape[0] == 2


def test_weight_of_one_during_warmup(tmp_path):
    model = build_model(options(tmp_path, 'one run'))
    step(model, 1)
    log = model.get_current_log()
    assert (log['weight/min'], log['weight/max']) == (1, 1)


def test_looking_changes_nothing(tmp_path):
    """Neither the training nor the random numbers; and nothing is computed unless someone looks."""
    results = []
    for looks in (False, True):
        torch.manual_seed(0)
        model = build_model(options(tmp_path, 'one run'))
        with pytest.MonkeyPatch.context() as patch:
            if not looks:
                patch.setattr('udl_plugin.models.udl_model.get_training_scalars', lambda *_: pytest.fail('computed'))
            for number in (1, 2, 3):
                step(model, number)
                if looks:
                    model.get_current_log()
        results.append(([*model.net_g.state_dict().values()], torch.get_rng_state()))
    assert all(map(torch.equal, results[0][0], results[1][0]))
    assert torch.equal(results[0][1], results[1][1])


def test_model_that_runs_the_network_itself(tmp_path, monkeypatch):
    """Its loss has inputs that we do not know."""
    monkeypatch.setattr(UDLModel, 'compute_losses',
                        lambda self, lq, gt: {'l_pix': (self.trained_net(lq) - gt).abs().mean()})
    model = build_model(options(tmp_path, 'step 1'))
    step(model)
    assert model.get_current_log().keys() == {'l_pix'}


@pytest.mark.gpu
def test_scalars_of_a_captured_step(tmp_path):
    logs = []
    for cuda_graph in (False, True):
        torch.manual_seed(0)
        model = build_model({**options(tmp_path, 'step 2', cuda_graph=cuda_graph), 'num_gpu': 1})
        for number in range(1, 9):
            step(model, number)
        assert bool(getattr(model.run_step, 'batch', {})) == cuda_graph, 'it was captured'
        logs.append(model.get_current_log())
    assert logs[0] == pytest.approx(logs[1], rel=1e-2)


# ---- pictures


class Pairs(Dataset):
    """Random images, the later ones larger, in the way of a validation set."""

    def __init__(self, sizes=((20, 30), (24, 24)), channels=3):
        self.opt, self.sizes, self.channels = {'name': 'Set1'}, sizes, channels

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        height, width = self.sizes[index]
        generator = torch.Generator().manual_seed(index)
        return {'lq': torch.rand(self.channels, height // 2, width // 2, generator=generator),
                'gt': torch.rand(self.channels, height, width, generator=generator), 'lq_path': f'x/image{index}.png'}


def validate(model, folder, number=7, pairs=None):
    with SummaryWriter(folder) as writer:
        model.validation(DataLoader(pairs or Pairs()), number, writer, save_img=False)


def read_events(folder):
    events = EventAccumulator(str(folder), size_guidance={'images': 0, 'scalars': 0})
    events.Reload()
    return events


def read_pictures(folder):
    """Step and picture, uint8 `(H, W, 3)`, BGR, by tag."""
    events = read_events(folder)
    return {tag: [(event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))[:, :, ::-1])
                  for event in events.Images(tag)] for tag in events.Tags()['images']}


def panel(picture, number, height, width):
    """The n-th panel of a contact sheet: labels are 30 pixels high, margins 8."""
    left = 8 + number * (width + 8)
    return picture[38:38 + height, left:left + width]


def run_network(model, pair):
    with torch.no_grad():
        output = model.net_g.eval()(pair['lq'][None], return_log_var=True)
    model.net_g.train()
    return tensor2img([output[0]]), tensor2img([pair['gt'][None]]), output[1][0].numpy()


@pytest.mark.parametrize('stage', ['step 1', 'step 2', 'one run'])
def test_pictures_of_a_validation(tmp_path, stage):
    model = build_model(options(tmp_path, stage))
    validate(model, tmp_path / 'tb')
    pictures = read_pictures(tmp_path / 'tb')
    assert list(pictures) == ['images/Set1/image0', 'images/Set1/image1']
    for number, (height, width) in enumerate(Pairs().sizes):
        (iteration, picture), = pictures[f'images/Set1/image{number}']
        assert iteration == 7
        sr, gt, log_var = run_network(model, Pairs()[number])
        error = absolute_error(sr, gt)
        limit = round_limit(error)
        expected = heat_map(expected_error(log_var, 'ESU').mean(axis=0), (0, limit))
        for place, part in enumerate((sr, gt, expected, heat_map(error, (0, limit)))):
            np.testing.assert_array_equal(panel(picture, place, height, width), part, err_msg=f'panel {place}')
        owner = "step 1's SR image" if stage == 'step 2' else 'the SR image'
        np.testing.assert_array_equal(
            picture, comparison_picture(sr, gt, limit, expected_error(log_var, 'ESU').mean(axis=0), owner))
    assert read_events(tmp_path / 'tb').Scalars('metrics/Set1/psnr')[0].step == 7


def test_pictures_without_a_variance_head(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(get_root_logger(), 'warning', warnings.append)
    model = build_model(options(tmp_path, 'L1'))
    validate(model, tmp_path / 'tb')
    assert warnings == [], 'there is no map whose loss is not recorded'
    (_, picture), = read_pictures(tmp_path / 'tb')['images/Set1/image0']
    pair = Pairs()[0]
    with torch.no_grad():
        sr, gt = tensor2img([model.net_g(pair['lq'][None])]), tensor2img([pair['gt'][None]])
    error = absolute_error(sr, gt)
    np.testing.assert_array_equal(panel(picture, 2, 20, 30), heat_map(error, (0, round_limit(error))))
    np.testing.assert_array_equal(picture, comparison_picture(sr, gt, round_limit(error)))


def test_map_of_an_unknown_unit_is_not_drawn_as_an_error(tmp_path, monkeypatch):
    class Own(ESU):
        pass

    monkeypatch.setitem(LOSS_REGISTRY._obj_map, 'Own', Own)
    opt = options(tmp_path, 'step 1')
    for loss, known in (({'type': 'Own'}, False), ({'type': 'ESU', 'img_range': 1.}, False), ({'type': 'EU'}, True)):
        opt['train'] = {**model_options(1, tmp_path)['train'], 'pixel_opt': loss}
        model = build_model(opt)
        assert model.map_loss == ('EU' if known else None)
        sr, gt, log_var = run_network(model, Pairs()[0])
        validate(model, tmp_path / str(loss))
        (_, picture), = read_pictures(tmp_path / str(loss))['images/Set1/image0']
        expected = expected_error(log_var, 'EU').mean(axis=0) if known else None
        limit = round_limit(absolute_error(sr, gt))
        np.testing.assert_array_equal(picture, comparison_picture(sr, gt, limit, expected))


@pytest.mark.parametrize('count', [0, 1, 5])
def test_number_of_pictures(tmp_path, count):
    """The network gives its map for these images only."""
    opt = options(tmp_path, 'step 2')
    opt['logger'] = {'log_images': count}
    model, calls = build_model(opt), []
    model.net_g.var_net.backbone.conv_first.register_forward_hook(lambda *_: calls.append(1))
    validate(model, tmp_path / 'tb')
    assert len(read_pictures(tmp_path / 'tb')) == len(calls) == min(count, 2)
    assert model.gets_map is False


def test_default_number_of_pictures(tmp_path):
    validate(build_model(options(tmp_path, 'L1')), tmp_path / 'tb', pairs=Pairs(((8, 8),) * 6))
    assert list(read_pictures(tmp_path / 'tb')) == [f'images/Set1/image{number}' for number in range(4)]


def test_no_writer_no_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr('udl_plugin.models.validation.draw_errors', lambda *_: pytest.fail('drawn'))
    model = build_model(options(tmp_path, 'step 1'))
    model.validation(DataLoader(Pairs()), 7, None, save_img=False)


def test_results_are_those_without_pictures(tmp_path):
    results = []
    for count in (0, 4):
        torch.manual_seed(0)
        opt = options(tmp_path, 'step 1')
        opt['logger'] = {'log_images': count}
        model = build_model(opt)
        step(model, 1)
        validate(model, tmp_path / str(count))
        step(model, 2)
        results.append((model.metric_results, [*model.net_g.state_dict().values()]))
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1], results[1][1]))


def test_limit_stays_that_of_the_first_validation(tmp_path):
    """Also over a resume."""
    opt = options(tmp_path, 'step 1')
    model = build_model(opt)
    validate(model, tmp_path / 'tb', 1)
    first = dict(model.error_limits)
    assert first.keys() == {'images/Set1/image0', 'images/Set1/image1'}
    with torch.no_grad():  # a worse network
        model.net_g.state_dict()['conv_last.bias'] += 500
    step(model)
    model.save(0, 1)
    validate(model, tmp_path / 'tb', 2)
    assert model.error_limits == first
    sr, gt, _ = run_network(model, Pairs()[0])
    assert round_limit(absolute_error(sr, gt)) != first['images/Set1/image0']
    other = build_model(opt)
    other.load_network(other.net_g, str(tmp_path / 'net_g_1.pth'))
    other.resume_training(torch.load(tmp_path / '1.state', weights_only=True))
    validate(other, tmp_path / 'tb', 3)
    pictures = [picture for _, picture in read_pictures(tmp_path / 'tb')['images/Set1/image0']]
    expected = heat_map(absolute_error(sr, gt), (0, first['images/Set1/image0']))
    for picture in pictures[1:]:
        np.testing.assert_array_equal(panel(picture, 3, 20, 30), expected)
    np.testing.assert_array_equal(pictures[1], pictures[2])


def test_limits_of_the_validation_of_a_saved_state(tmp_path):
    """The state is saved before the validation, and written again after it."""
    model = build_model(options(tmp_path, 'step 1'))
    step(model)
    model.save(0, 1, {'places': {}, 'random': {}})
    validate(model, tmp_path / 'tb', 1)
    model.mark_validated(1, {})
    assert torch.load(tmp_path / '1.state', weights_only=True)['error_limits'] == model.error_limits


def test_centre_of_large_images():
    generator = np.random.default_rng(0)
    sr, gt = generator.integers(0, 256, (2, 600, 516, 3), dtype=np.uint8)
    expected = generator.uniform(0, 100, (600, 516))
    picture = comparison_picture(sr, gt, 50, expected)
    parts = (sr, gt, heat_map(expected, (0, 50)), heat_map(absolute_error(sr, gt), (0, 50)))
    for number, part in enumerate(parts):
        np.testing.assert_array_equal(panel(picture, number, 512, 512), part[44:556, 2:514])
    centre = comparison_picture(sr[44:556, 2:514], gt[44:556, 2:514], 50, expected[44:556, 2:514])
    assert centre.shape == picture.shape
    assert (centre[8:38] != picture[8:38]).any(), 'the labels say that it is a part'
    np.testing.assert_array_equal(centre[38:], picture[38:])


def test_grey_images():
    sr, gt = np.random.default_rng(0).integers(0, 256, (2, 40, 40), dtype=np.uint8)
    picture = comparison_picture(sr, gt, 50)
    np.testing.assert_array_equal(panel(picture, 0, 40, 40), cv2.merge([sr, sr, sr]))
    np.testing.assert_array_equal(panel(picture, 2, 40, 40), heat_map(absolute_error(sr, gt), (0, 50)))


# ---- the log


@pytest.mark.parametrize(('loss', 'parts'), [
    ({'type': 'ESU'}, ['the mean of exp(-s) |e| + 2 s (e: error of a pixel in [0, 255]; s: log of the scale of e, from '
                       'the variance head).', 'A negative loss is no error', 'docs/loss.md']),
    ({'type': 'EU', 'loss_weight': 0.5}, ['l_pix is 0.5 times the mean of exp(-s) |e| + s (', 'negative', 'docs/']),
    ({'type': 'GaussianNLL'}, ['(exp(-s) e^2 + s) / 2 (', 'negative', 'docs/']),
    ({'type': 'UDL'}, ["the mean of w |e| (e: error of a pixel in [0, 255]; w = 1 + s - min(s); s: log of the scale of "
                       "e, from step 1).", 'docs/']),
    ({'type': 'UDL', 'source': 'gradient', 'scaling': 'log', 'offset': 0.5},
     ['w = 0.5 + scaling log of gradient - min(gradient)).', 'docs/']),
    ({'type': 'UDL', 'scaling': 'none', 'criterion': {'type': 'CharbonnierLoss', 'reduction': 'none'}},
     ['of w CharbonnierLoss (', 'docs/']),
    ({'type': 'JointUDL'}, ['w |e| + exp(-s) |e| + 2 s (e: error of a pixel in [0, 255]; w = 1 + s - min(s) (1 in the '
                            'first 500 iterations); s: log', 'negative', 'docs/']),
    ({'type': 'JointUDL', 'beta_start': 0, 'beta_end': 2, 'warmup': 0},
     ['w = exp((beta - 1) s), beta from 0 to 2; s', 'negative', 'docs/']),
    ({'type': 'L1Loss'}, []),
])
def test_explanation_of_the_loss(loss, parts):
    lines = explain_loss(build_loss(loss))
    assert len(lines) == len(parts) <= 3
    for line, part in zip(lines, parts):
        assert part in line


def test_explanation_is_logged_once(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(get_root_logger(), 'info', lines.append)
    model = build_model(options(tmp_path, 'step 1'))
    step(model)
    validate(model, tmp_path / 'tb')
    assert len([line for line in lines if line in explain_loss(model.cri_pix)]) == 3
