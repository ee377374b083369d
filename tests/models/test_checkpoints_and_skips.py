"""What a training of days meets: values that are not finite, checkpoints that pile up, and the best of them."""
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
from udl_plugin.models.validation import map_spread
from udl_plugin.training import rng_state

pytestmark = pytest.mark.usefixtures('seed', 'heard')


@pytest.fixture
def heard(monkeypatch):
    """Lets caplog see BasicSR's logger."""
    monkeypatch.setattr(get_root_logger(), 'propagate', True)


def position(number):
    """What the training loop adds to a state."""
    rng = rng_state.to_tensors(rng_state.capture())
    return {'places': {'epoch': 0, 'seen': 2 * number, 'images': 20, 'batch_size': 2, 'begun': rng, 'loaders': [None]},
            'random': rng}


def validate(model, number):
    """As the training loop does."""
    model.validation(DataLoader(Pairs()), number, None, save_img=False)
    model.mark_validated(number, rng_state.to_tensors(rng_state.capture()))


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
                     'lq_path': [f'{number}_a', f'{number}_b']})
    model.optimize_parameters(number)


def weights(model):
    return [value.clone() for value in model.net_g.state_dict().values()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other))


NAN = torch.full((2, 3, 8, 8), math.nan)


@pytest.mark.parametrize('loss', ['ESU', 'L1Loss'])
def test_nonfinite_step_is_skipped(tmp_path, loss, caplog):
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
    assert 'Skipped iteration 2: loss or gradients not finite: ' in caplog.text
    assert '1 in a row, 1 in all. Its images: 2_a, 2_b.' in caplog.text
    assert "{'l_pix': nan}. pred has 1536 non-finite of 1536 values." in caplog.text
    assert ('log_var has' in caplog.text) == (loss == 'ESU')
    step(model, 3)
    assert not equal(weights(model), before)
    step(model, 4, NAN)
    assert '1 in a row, 2 in all' in caplog.text


def test_the_tensor_that_is_not_finite_is_named(tmp_path, caplog):
    model = build_model(model_options(1, tmp_path))
    batch = {'lq': torch.rand(2, 3, 8, 8), 'gt': torch.rand(2, 3, 16, 16)}
    batch['gt'][0, 0, 0, 0] = math.inf
    model.feed_data(batch)
    model.optimize_parameters(1)
    assert "{'l_pix': inf}. target has 1 non-finite of 1536 values. 1 in a row" in caplog.text


def test_nonfinite_gradients_count_too(tmp_path, caplog):
    """Where the loss itself is finite."""
    model = build_model(model_options(1, tmp_path, pixel_opt={'type': 'L1Loss'}))
    weight = next(model.net_g.parameters())
    handle = weight.register_hook(lambda gradient: gradient * math.inf)
    before = weights(model)
    step(model, 1)
    assert equal(weights(model), before)
    assert 'Skipped iteration 1' in caplog.text
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
        model.save(0, number)  # the weights of iteration 3
    message = (r"3 iterations in a row .* the last one 6\. Its batch is in '(.*not_finite_6_0\.pth)' \(.*\)\. "
               'The checkpoints are from before')
    with pytest.raises(FloatingPointError, match=message):
        step(model, 6, NAN)
    content = torch.load(tmp_path / 'net_g_5.pth', weights_only=True)
    assert equal(good, content['params'].values())
    assert torch.load(tmp_path / '5.state', weights_only=True)['skips_in_row'] == 2
    assert not (tmp_path / 'net_g_6.pth').exists()
    batch = torch.load(tmp_path / 'not_finite_6_0.pth', weights_only=True)
    assert batch['paths'] == ['6_a', '6_b']
    assert batch['lq'].isnan().all() and batch['gt'].shape == (2, 3, 16, 16)


def test_too_many_before_the_first_checkpoint(tmp_path):
    model = build_model(model_options(1, tmp_path, max_skips=1))
    with pytest.raises(FloatingPointError, match=r'\(torch.load returns lq, gt and paths\)\. Try a lower lr'):
        step(model, 1, NAN)


def test_running_statistics_are_restored(tmp_path):
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


@pytest.mark.parametrize(('changes', 'message'), [
    ({}, ''), ({'total_iter': 16, 'scheduler': {**COSINE, 'periods': [16]}}, 'Following the yml from iteration 4: lr '),
    ({'scheduler': STEPS}, 'Following the yml from iteration 4: lr 0.001 ('),
    ({'scheduler': {**STEPS, 'milestones': [6]}}, 'lr 0.01 ('),
    ({'optim_g': {'type': 'Adam', 'lr': 1e-3, 'betas': [0.5, 0.9], 'weight_decay': 0.1}},
     'betas [0.5, 0.9] (the state has [0.9, 0.999]), weight_decay 0.1 (the state has 0).'),
    ({'warmup_iter': 6}, 'lr ')])
def test_resume_follows_the_schedule_of_the_yml(tmp_path, changes, message, caplog):
    """As if it had said so from the beginning; BasicSR continues with the state's, whatever the yml says."""
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
    assert message in caplog.text
    assert ('Following the yml' in caplog.text) == bool(message)
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
        with pytest.raises(UserError, match='The training state of iteration 1 is of another network or'):
            build_model(model_options(1, tmp_path)).resume_training(state)


def saved(folder):
    return sorted(path.name for path in folder.iterdir())


def test_latest_checkpoints_are_kept(tmp_path):
    opt = model_options(1, tmp_path)
    opt['logger'] = {'save_keep': 2}
    model = build_model(opt)
    (tmp_path / 'net_g_9.pth').write_bytes(b'of a training that got further')
    (tmp_path / '9.state').write_bytes(b'too')
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


@pytest.fixture
def saved_once(tmp_path):
    """A model that keeps one checkpoint, and has written that of iteration 1."""
    opt = model_options(1, tmp_path)
    opt['logger'] = {'save_keep': 1}
    model = build_model(opt)
    step(model, 1)
    model.save(0, 1)
    return model


def full(*_):
    """In place of a function that writes."""
    raise OSError(28, 'No space left on device')


def test_no_state_without_its_network(tmp_path, monkeypatch, saved_once):
    """If the disk is too full for the network, its smaller state is not written either, and the older pair stays."""
    model = saved_once
    step(model, 2)
    with monkeypatch.context() as for_networks:
        for_networks.setattr('udl_plugin.models.checkpoint_manager.save_checkpoint', full)
        model.save(0, 2)
    assert saved(tmp_path) == ['1.state', 'net_g_1.pth']
    step(model, 3)
    model.save(0, 3)
    assert saved(tmp_path) == ['3.state', 'net_g_3.pth']


def test_nothing_is_removed_when_nothing_can_be_written(tmp_path, monkeypatch, saved_once):
    model = saved_once
    monkeypatch.setattr('udl_plugin.utils.atomic_io.os.fsync', full)
    step(model, 2)
    model.save(0, 2)
    assert saved(tmp_path) == ['1.state', 'net_g_1.pth']
    with pytest.raises(UserError, match=r'net_g_latest\.pth could not be written.*--auto_resume continues'):
        model.save(-1, -1)


class Score:
    """In place of PSNR: given values, one for each validation."""

    def __init__(self, monkeypatch, values):
        values = iter(values)
        monkeypatch.setattr('udl_plugin.models.validation.calculate_metric', lambda *_: np.float64(next(values)))


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
    assert content.keys() == {'params', 'params_ema', 'network_g', 'uncertainty_loss'}


def test_last_validation_names_its_iteration(tmp_path):
    """BasicSR's is one or two too high."""
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
        model.save(0, number, position(number))
        before = torch.load(tmp_path / f'{number}.state', weights_only=True)
        assert before['validated'] is False
        torch.rand(3)  # as DataLoader draws for its seeds
        validate(model, number)
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
    """The interruption prevented it."""
    opt = model_options(1, tmp_path)
    opt['datasets'] = {'val': {'name': 'Set1'}}
    model = build_model(opt)
    Score(monkeypatch, [1])
    step(model, 10)
    model.save(3, 10, position(10))
    state = torch.load(tmp_path / '10.state', weights_only=True)

    other = build_model(opt)
    other.resume_training(state)
    assert other.saved_iter == 10
    torch.rand(3)
    validate(other, 10)
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
    model.save(3, 10, position(10))
    state = torch.load(tmp_path / '10.state', weights_only=True)
    (tmp_path / '10.state').unlink()
    other = build_model(opt)
    other.resume_training(state)
    assert other.saved_iter is None
    validate(other, 10)
    assert saved(tmp_path) == ['net_g_10.pth']


@pytest.mark.parametrize(('img_range', 'collapsed'), [(1, True), (255, False)])
def test_collapsed_map_is_reported_at_validation(tmp_path, caplog, img_range, collapsed):
    model = build_model(model_options(1, tmp_path, pixel_opt={'type': 'ESU', 'img_range': img_range}))
    for number in range(1, 31):
        step(model, number)
    model.validation(DataLoader(Pairs()), 30, None, save_img=False)
    assert ('The uncertainty map has collapsed: log_var is -1.000 ± 0.000 within an image.' in caplog.text) == collapsed
    assert ('train step 1 with img_range: 255' in caplog.text) == collapsed


def test_spread():
    log_var = torch.zeros(2, 3, 10, 10)
    assert map_spread(log_var) == 0
    log_var[0, 0, 0, :4] = 99  # a few pixels are no map
    assert map_spread(log_var) == 0
    log_var[1, 2] = torch.linspace(0, 1, 100).view(10, 10)
    assert map_spread(log_var) == pytest.approx(0.9)


@pytest.mark.parametrize('amp', [None, 'bf16', 'fp16'])
def test_grad_clip(tmp_path, amp):
    """The norm of all gradients, after AMP's scale is taken out, is limited and logged as it was before."""
    model = build_model(model_options(1, tmp_path, grad_clip=0.5, amp=amp))
    applied = []
    update = model.optimizer_g.step

    def record(*args, **kwargs):
        gradients = [parameter.grad for parameter in model.net_g.parameters()]
        applied.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        return update(*args, **kwargs)

    if amp == 'fp16':  # a scale at which nothing overflows
        model.scaler = model.train_step.scaler = torch.amp.GradScaler('cpu', init_scale=1.)
    model.optimizer_g.step = record
    step(model, 1)
    norm = model.log_dict['grad_norm']
    assert norm > 1
    assert applied == [pytest.approx(0.5, rel=1e-4)]
    model.train_step.grad_clip = 2 * norm
    step(model, 1)
    assert applied[1] == pytest.approx(model.log_dict['grad_norm'], rel=1e-4)


def test_no_grad_clip_by_default(tmp_path):
    model = build_model(model_options(1, tmp_path))
    step(model, 1)
    assert 'grad_norm' not in model.log_dict
