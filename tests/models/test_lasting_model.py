"""What a training of days meets: numbers that are none, checkpoints that pile up, and the best of them."""
import copy
import math

import numpy as np
import pytest
import torch
from basicsr.models import build_model
from basicsr.utils import get_root_logger
from conftest import model_options
from torch.utils.data import DataLoader, Dataset

from udl_plugin.errors import UserError
from udl_plugin.models.udl_model import map_spread
from udl_plugin.training import rng_state
from udl_plugin.training.resumable_loader import LoaderState

pytestmark = pytest.mark.usefixtures('seed', 'heard')


@pytest.fixture
def heard(monkeypatch):
    """What BasicSR's logger says can be asserted on."""
    monkeypatch.setattr(get_root_logger(), 'propagate', True)


class Note:
    """As a batch of udl-train has it."""

    def __init__(self, number):
        self.place = LoaderState(0, 2 * number, 20, 2, rng_state.capture(), (None,))


class Pairs(Dataset):
    opt = {'name': 'Set1'}  # noqa: RUF012

    def __len__(self):
        return 1

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {'lq': torch.rand(3, 8, 8, generator=generator), 'gt': torch.rand(3, 16, 16, generator=generator),
                'lq_path': 'bird.png'}


def step(model, number, lq=None, warmup_iter=-1):
    generator = torch.Generator().manual_seed(number)
    given = torch.rand(2, 3, 8, 8, generator=generator)
    model.update_learning_rate(number, warmup_iter)
    model.feed_data({'lq': given if lq is None else lq, 'gt': torch.rand(2, 3, 16, 16, generator=generator),
                     'lq_path': [f'{number}_a', f'{number}_b'], 'note': Note(number)})
    model.optimize_parameters(number)


def weights(model):
    return [value.clone() for value in model.net_g.state_dict().values()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other))


NAN = torch.full((2, 3, 8, 8), math.nan)


@pytest.mark.parametrize('loss', ['ESU', 'L1Loss'])  # ours, which raises; and one of BasicSR's
def test_what_is_no_number_is_skipped(tmp_path, loss, caplog):
    model = build_model(model_options(1, tmp_path, pixel_opt={'type': loss}, ema_decay=0.9))
    step(model, 1)
    before, average = weights(model), [value.clone() for value in model.net_g_ema.state_dict().values()]
    state = {key: {name: torch.clone(torch.as_tensor(value)) for name, value in part.items()}
             for key, part in model.optimizer_g.state_dict()['state'].items()}
    step(model, 2, NAN)
    assert equal(weights(model), before)
    assert equal(model.net_g_ema.state_dict().values(), average)
    for key, part in model.optimizer_g.state_dict()['state'].items():
        assert all(torch.equal(torch.as_tensor(part[name]), value) for name, value in state[key].items())
    assert 'Iteration 2 is skipped: loss or gradients not finite: ' in caplog.text
    assert '1 in a row, 1 in all. Its images: 2_a, 2_b.' in caplog.text
    assert ('ESU is not finite. pred has' in caplog.text) == (loss == 'ESU')
    step(model, 3)
    assert not equal(weights(model), before)
    step(model, 4, NAN)
    assert '1 in a row, 2 in all' in caplog.text


def test_gradients_count_too(tmp_path, caplog):
    """Where the loss itself is a number."""
    model = build_model(model_options(1, tmp_path, pixel_opt={'type': 'L1Loss'}))
    weight = next(model.net_g.parameters())
    handle = weight.register_hook(lambda gradient: gradient * math.inf)
    before = weights(model)
    step(model, 1)
    assert equal(weights(model), before)
    assert 'Iteration 1 is skipped' in caplog.text
    handle.remove()
    step(model, 2)
    assert not equal(weights(model), before)


def test_too_many_in_a_row_end_the_training(tmp_path):
    model = build_model(model_options(1, tmp_path, max_skips=3))
    step(model, 1)
    model.save(0, 1)
    step(model, 2, NAN)
    step(model, 3)
    good = weights(model)
    for number in (4, 5):
        step(model, number, NAN)
        model.save(0, number)  # weights of before
    message = r"3 iterations in a row .* the last one 6\. Its batch is in '(.*not_finite_6_0\.pth)'"
    with pytest.raises(FloatingPointError, match=message):
        step(model, 6, NAN)
    content = torch.load(tmp_path / 'net_g_5.pth', weights_only=True)
    assert equal(good, content['params'].values())
    assert torch.load(tmp_path / '5.state', weights_only=True)['skips_in_row'] == 2
    assert not (tmp_path / 'net_g_6.pth').exists()
    batch = torch.load(tmp_path / 'not_finite_6_0.pth', weights_only=True)
    assert batch['paths'] == ['6_a', '6_b']
    assert batch['lq'].isnan().all() and batch['gt'].shape == (2, 3, 16, 16)


def test_running_statistics_are_those_of_before(tmp_path):
    model = build_model(model_options(1, tmp_path))
    norm = torch.nn.BatchNorm2d(3)
    model.net_g.backbone.add_module('norm', norm)
    model.net_g.backbone.conv_first.register_forward_pre_hook(lambda module, args: (norm(args[0]),))
    step(model, 1)
    before = [buffer.clone() for buffer in norm.buffers()]
    step(model, 2, NAN)
    assert equal(before, norm.buffers())
    step(model, 3)
    assert not equal(before, norm.buffers())
    assert norm.running_mean.isfinite().all()


COSINE = {'type': 'CosineAnnealingRestartLR', 'periods': [8], 'restart_weights': [1], 'eta_min': 1e-6}
STEPS = {'type': 'MultiStepLR', 'milestones': [2, 6], 'gamma': 0.1}


@pytest.mark.parametrize(('changes', 'told'), [
    ({}, ''), ({'total_iter': 16, 'scheduler': {**COSINE, 'periods': [16]}}, 'As the yml has it, at iteration 4: lr '),
    ({'scheduler': STEPS}, 'As the yml has it, at iteration 4: lr 0.001 ('),
    ({'scheduler': {**STEPS, 'milestones': [6]}}, 'lr 0.01 ('),
    ({'optim_g': {'type': 'Adam', 'lr': 1e-3, 'betas': [0.5, 0.9], 'weight_decay': 0.1}},
     'betas [0.5, 0.9] (the state has [0.9, 0.999]), weight_decay 0.1 (the state has 0).'),
    ({'warmup_iter': 6}, 'lr ')])
def test_schedule_is_that_of_the_yml(tmp_path, changes, told, caplog):
    """As if it had been so from the beginning; upstream goes on with the state's, whatever the yml says."""
    def build(**changes):
        return build_model(model_options(1, tmp_path, **copy.deepcopy({'total_iter': 8, 'scheduler': COSINE,
                                                                       **changes})))

    models = [build(), build(**changes)]
    for number in range(1, 5):
        for model in models:
            step(model, number, warmup_iter=model.opt['train'].get('warmup_iter', -1))
    models[0].save(0, 4)
    other = build(**changes)
    caplog.clear()
    other.resume_training(torch.load(tmp_path / '4.state', weights_only=True))
    assert told in caplog.text
    assert ('As the yml has it' in caplog.text) == bool(told)
    for number in range(5, 9):
        for model in (models[1], other):
            step(model, number, warmup_iter=model.opt['train'].get('warmup_iter', -1))
            group, wanted = other.optimizer_g.param_groups[0], models[1].optimizer_g.param_groups[0]
        assert {**group, 'params': 0} == {**wanted, 'params': 0}


def test_state_that_does_not_fit(tmp_path):
    model = build_model(model_options(1, tmp_path))
    for harm in ({'optimizers': [{}]}, {'schedulers': [5]}, {'optimizers': []}):
        step(model, 1)
        model.save(0, 1)
        state = {**torch.load(tmp_path / '1.state', weights_only=True), **harm}
        with pytest.raises(UserError, match='The training state of iteration 1 does not fit this training'):
            build_model(model_options(1, tmp_path)).resume_training(state)


def saved(folder):
    return sorted(path.name for path in folder.iterdir())


def test_last_ones_are_kept(tmp_path):
    opt = model_options(1, tmp_path)
    opt['logger'] = {'save_keep': 2}
    model = build_model(opt)
    (tmp_path / 'net_g_9.pth').write_bytes(b'of a run that went further')
    (tmp_path / '9.state').write_bytes(b'as well')
    for number in range(1, 6):
        step(model, number)
        model.save(0, number)
    model.save(-1, -1)
    assert saved(tmp_path) == ['4.state', '5.state', '9.state', 'net_g_4.pth', 'net_g_5.pth', 'net_g_9.pth',
                               'net_g_latest.pth']


def test_nothing_is_removed_while_iterations_are_skipped(tmp_path):
    """The older weights may be the last good ones."""
    opt = model_options(1, tmp_path)
    opt['logger'] = {'save_keep': 1}
    model = build_model(opt)
    for number, nan in ((1, ()), (2, (NAN,)), (3, (NAN,))):
        step(model, number, *nan)
        model.save(0, number)
    assert saved(tmp_path) == ['1.state', '2.state', '3.state', *(f'net_g_{number}.pth' for number in (1, 2, 3))]
    step(model, 4)
    model.save(0, 4)
    assert saved(tmp_path) == ['4.state', 'net_g_4.pth']


def test_state_needs_its_network(tmp_path, monkeypatch):
    """Where there was no room for it, the state that fits is not written, and the older pair stays."""
    opt = model_options(1, tmp_path)
    opt['logger'] = {'save_keep': 1}
    model = build_model(opt)
    step(model, 1)
    model.save(0, 1)

    def full(*_):
        raise OSError(28, 'No space left on device')

    step(model, 2)
    with monkeypatch.context() as for_networks:
        for_networks.setattr('udl_plugin.models.lasting_model.write_checkpoint', full)
        model.save(0, 2)
    assert saved(tmp_path) == ['1.state', 'net_g_1.pth']
    step(model, 3)
    model.save(0, 3)
    assert saved(tmp_path) == ['3.state', 'net_g_3.pth']


def test_nothing_is_removed_when_nothing_can_be_written(tmp_path, monkeypatch):
    opt = model_options(1, tmp_path)
    opt['logger'] = {'save_keep': 1}
    model = build_model(opt)
    step(model, 1)
    model.save(0, 1)

    def full(file):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('udl_plugin.utils.atomic_io.os.fsync', full)
    step(model, 2)
    model.save(0, 2)
    assert saved(tmp_path) == ['1.state', 'net_g_1.pth']
    with pytest.raises(UserError, match=r'net_g_latest\.pth could not be written.*--auto_resume goes on'):
        model.save(-1, -1)


class Score:
    """In place of PSNR: the numbers that it is given, one a validation."""

    def __init__(self, monkeypatch, values):
        values = iter(values)
        monkeypatch.setattr('basicsr.models.sr_model.calculate_metric', lambda *_: np.float64(next(values)))


@pytest.mark.parametrize(('better', 'values', 'best'), [('higher', [1, 3, 2], 2), ('lower', [5, 7, 4], 3)])
@pytest.mark.parametrize('save_best', ['psnr', 'Set1/psnr'])
def test_best_network(tmp_path, monkeypatch, better, values, best, save_best):
    opt = model_options(1, tmp_path, ema_decay=0.9)
    opt['datasets'] = {'val': {'name': 'Set1'}, 'val_2': {'name': 'Set2'}}
    opt['val']['metrics']['psnr']['better'] = better
    opt['val']['save_best'] = save_best
    model, seen = build_model(opt), {}
    Score(monkeypatch, values)
    for number in (1, 2, 3):
        step(model, number)
        seen[number] = weights(model)
        model.validation(DataLoader(Pairs()), number, None, save_img=False)
    content = torch.load(tmp_path / 'net_g_best.pth', weights_only=True)
    assert equal(content['params'].values(), seen[best])
    assert content.keys() == {'params', 'params_ema', 'network_g'}


def test_last_validation_says_its_iteration(tmp_path):
    """Upstream's is one or two too high."""
    opt = model_options(1, tmp_path)
    opt['datasets'] = {'val': {'name': 'Set1'}}
    model = build_model(opt)
    model.validation(DataLoader(Pairs()), 12, None, save_img=False)
    assert model.best_metric_results['Set1']['psnr']['iter'] == 10 == opt['train']['total_iter']


def test_state_knows_of_its_validation(tmp_path, monkeypatch):
    opt = model_options(1, tmp_path)
    opt['datasets'] = {'val': {'name': 'Set1'}}
    model = build_model(opt)
    Score(monkeypatch, [1, 2])
    for number in (1, 2):
        step(model, number)
        model.save(0, number)
        before = torch.load(tmp_path / f'{number}.state', weights_only=True)
        assert before['validated'] is False
        torch.rand(3)  # as DataLoader draws for its seeds
        model.validation(DataLoader(Pairs()), number, None, save_img=False)
        after = torch.load(tmp_path / f'{number}.state', weights_only=True)
        assert after['validated'] is True
        assert after['best_metric_results'] == {'Set1': {'psnr': {'better': 'higher', 'val': number, 'iter': number}}}
        assert not torch.equal(after['random'][0]['torch'], before['random'][0]['torch'])
        assert torch.equal(after['random'][0]['torch'], torch.get_rng_state())
        assert after['places'][0]['seen'] == 2 * number

    other = build_model(opt)
    other.resume_training(after)
    assert other.best_metric_results == after['best_metric_results']
    opt['val']['metrics']['ssim'] = opt['val']['metrics']['psnr']
    other = build_model({**opt, 'train': model_options(1, tmp_path)['train']})
    other.resume_training(after)
    assert other.best_metric_results == {}, 'of other metrics'


def test_validation_of_a_resumed_state(tmp_path, monkeypatch):
    """That the interruption took away: also the last one, behind which there is no iteration any more."""
    opt = model_options(1, tmp_path)
    opt['datasets'] = {'val': {'name': 'Set1'}}
    model = build_model(opt)
    Score(monkeypatch, [1])
    step(model, 10)
    model.save(3, 10)
    state = torch.load(tmp_path / '10.state', weights_only=True)

    other = build_model(opt)
    other.resume_training(state)
    torch.rand(3)
    other.validation(DataLoader(Pairs()), 11, None, save_img=False)  # upstream's count
    after = torch.load(tmp_path / '10.state', weights_only=True)
    assert after['validated'] is True
    assert after['best_metric_results']['Set1']['psnr'] == {'better': 'higher', 'val': 1, 'iter': 10}
    assert (after['epoch'], after['places'][0]['seen']) == (3, state['places'][0]['seen'])
    assert torch.equal(after['random'][0]['torch'], torch.get_rng_state())
    assert saved(tmp_path) == ['10.state', 'net_g_10.pth']


def test_state_of_another_experiment_is_not_written(tmp_path, monkeypatch):
    opt = model_options(1, tmp_path)
    opt['datasets'] = {'val': {'name': 'Set1'}}
    model = build_model(opt)
    Score(monkeypatch, [1])
    step(model, 10)
    model.save(3, 10)
    state = torch.load(tmp_path / '10.state', weights_only=True)
    (tmp_path / '10.state').unlink()
    other = build_model(opt)
    other.resume_training(state)
    other.validation(DataLoader(Pairs()), 11, None, save_img=False)
    assert saved(tmp_path) == ['net_g_10.pth']


def test_what_was_reached_is_saved_once(tmp_path):
    model = build_model(model_options(1, tmp_path))
    assert model.save_reached() is None
    for number in (1, 2):
        step(model, number)
    assert model.save_reached() == 2
    time = (tmp_path / '2.state').stat().st_mtime_ns
    assert model.save_reached() == 2
    assert (tmp_path / '2.state').stat().st_mtime_ns == time
    model.update_learning_rate(3)  # and in the middle of the next one something breaks
    assert model.save_reached() == 2
    assert saved(tmp_path) == ['2.state', 'net_g_2.pth']
    model.holds = False
    step(model, 3, NAN)
    assert model.save_reached() == 3, 'skipped, with the weights of before'


@pytest.mark.parametrize(('img_range', 'flat'), [(1, True), (255, False)])
def test_flat_log_variance_is_reported_with_the_first_validation(tmp_path, caplog, img_range, flat):
    model = build_model(model_options(1, tmp_path, pixel_opt={'type': 'ESU', 'img_range': img_range}))
    for number in range(1, 31):
        step(model, number)
    model.validation(DataLoader(Pairs()), 30, None, save_img=False)
    assert ('The log-variance is nearly one value (-1.000 ± 0.000 in an image)' in caplog.text) == flat
    assert ('train step 1 with img_range: 255' in caplog.text) == flat


def test_spread():
    log_var = torch.zeros(2, 3, 10, 10)
    assert map_spread(log_var) == 0
    log_var[0, 0, 0, :4] = 99  # a few pixels are no map
    assert map_spread(log_var) == 0
    log_var[1, 2] = torch.linspace(0, 1, 100).view(10, 10)
    assert map_spread(log_var) == pytest.approx(0.9)
