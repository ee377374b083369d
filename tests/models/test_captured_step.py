"""The step that a GPU runs without waiting for Python: what it asks for, what it skips, and the same as a CUDA graph.

On the CPU, a fused Adam takes the way of a GPU, and a stand-in records the step. With a GPU, the real ones run too.
"""
import math

import pytest
import torch
from basicsr.models import build_model
from basicsr.utils import get_root_logger
from conftest import model_options
from torch.utils._python_dispatch import TorchDispatchMode

from udl_plugin.archs import EDSRVar
from udl_plugin.errors import UserError
from udl_plugin.models.captured_step import EAGER_STEPS, CapturedStep, why_not_captured

pytestmark = pytest.mark.usefixtures('seed')
ADAM = {'type': 'Adam', 'lr': 2 ** -7, 'fused': True}  # a float32 too, as graphs keep the learning rate
ONE_RUN = {'pixel_opt': {'type': 'JointUDL', 'warmup': 2, 'beta_start': 0.5, 'beta_end': 1.5}}
L1 = {'pixel_opt': {'type': 'L1Loss'}}
NETWORKS = {'plain': (1, L1), 'step 1': (1, {}), 'step 2': (2, {}), 'one run': (1, ONE_RUN)}
CHANGES = {'float32': {}, 'bf16': {'amp': 'bf16', 'channels_last': True}, 'fp16': {'amp': 'fp16'},
           'accumulate': {'accumulate': 2}, 'EMA': {'ema_decay': 0.75}, 'grad_clip': {'grad_clip': 0.5}}
ALL = {'accumulate': 2, 'ema_decay': 0.75, 'grad_clip': 0.5, 'channels_last': True}
NAN = torch.full((4, 3, 8, 8), math.nan)


def build(folder, network='step 2', on_gpu=False, **train):
    step, loss = NETWORKS[network]
    opt = model_options(step, folder, **{**loss, 'optim_g': dict(ADAM), **train})
    opt['network_g']['detach_features'] = network == 'one run'
    if step == 2:
        del opt['network_g']['detach_features']
        torch.manual_seed(7)
        opt['path']['pretrain_network_g'] = str(folder / 'step1.pth')
        torch.save({'params': EDSRVar(3, 3, num_feat=8, num_block=2, upscale=2).state_dict()}, folder / 'step1.pth')
    if network == 'plain':
        opt['network_g'] = {**opt['network_g'], 'type': 'EDSR'}
        del opt['network_g']['detach_features']
    opt['num_gpu'] = int(on_gpu)
    torch.manual_seed(0)
    return build_model(opt)


def iterate(model, first=1, last=None, **changes):
    for number in range(first, (last or first) + 1):
        generator = torch.Generator().manual_seed(number)
        batch = {'lq': torch.rand(4, 3, 8, 8, generator=generator),
                 'gt': torch.rand(4, 3, 16, 16, generator=generator), 'lq_path': [f'{number}.png'], **changes}
        model.update_learning_rate(number)
        model.feed_data(batch)
        model.optimize_parameters(number)
    return model


def tensors_of(model):
    """All that a step may change, by name."""
    found = {f'net.{name}': value for name, value in model.net_g.state_dict().items()}
    if model.ema_decay > 0:
        found.update({f'ema.{name}': value for name, value in model.net_g_ema.state_dict().items()})
    for number, state in model.optimizer_g.state_dict()['state'].items():
        found.update({f'adam.{number}.{name}': torch.as_tensor(value) for name, value in state.items()})
    return {name: value.clone() for name, value in found.items()}


def assert_same(model, expected):
    found = tensors_of(model)
    assert found.keys() == expected.keys()
    different = [name for name, value in found.items() if not torch.equal(value, expected[name])]
    assert not different


# ---- no host synchronization


class Forbid(TorchDispatchMode):
    """Lets no operation through that asks a device for values, or copies from one to another."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        assert not name.startswith(('aten::_local_scalar_dense', 'aten::is_nonzero', 'aten::nonzero', 'aten::equal',
                                    'aten::item', 'aten::unique')), f'{name} waits for the device'
        result = function(*args, **(kwargs or {}))
        if 'copy' in name and torch.is_tensor(args[0]):
            sources = [part.device.type for part in args if torch.is_tensor(part)]
            assert {*sources, result.device.type} == {result.device.type}, f'{name} copies between devices'
        return result


def test_forbid_sees_what_it_forbids():
    for ask in (bool, float, torch.nonzero, lambda tensor: torch.equal(tensor, tensor)):
        with Forbid(), pytest.raises(AssertionError, match='waits for the device'):
            ask(torch.ones(()))


DEVICES = [False, pytest.param(True, marks=pytest.mark.gpu)]


@pytest.mark.parametrize('on_gpu', DEVICES)
@pytest.mark.parametrize('change', [*CHANGES, 'perceptual', 'cached maps'])
@pytest.mark.parametrize('network', NETWORKS)
def test_step_does_not_wait_for_the_device(tmp_path, network, change, on_gpu):
    model = build(tmp_path, network, on_gpu, **CHANGES.get(change, {}), cuda_graph=False)
    if change == 'perceptual':  # a stub, as VGG's weights are a download
        model.cri_perceptual = lambda x, gt: ((x - gt).square().mean(), None)
    cached = {'log_var': torch.rand(4, 3, 16, 16)} if change == 'cached maps' else {}
    iterate(model, **cached)
    model.feed_data({'lq': torch.rand(4, 3, 8, 8), 'gt': torch.rand(4, 3, 16, 16), **cached})
    with Forbid():
        model.optimize_parameters(2)
    assert math.isfinite(model.log_dict['l_pix'])


# ---- a step that is skipped on the device


@pytest.mark.parametrize('on_gpu', DEVICES)
@pytest.mark.parametrize('amp', [None, 'bf16', 'fp16'])
def test_skipped_step_changes_nothing(tmp_path, amp, on_gpu, monkeypatch, caplog):
    monkeypatch.setattr(get_root_logger(), 'propagate', True)
    model = build(tmp_path, 'step 1', on_gpu, ema_decay=0.75, grad_clip=1, amp=amp)
    if amp == 'fp16':  # a scale at which nothing overflows
        model.scaler = model.train_step.scaler = torch.amp.GradScaler(model.device.type, init_scale=4.)
    model.net_g.add_module('norm', torch.nn.BatchNorm2d(3, affine=False).to(model.device))
    model.net_g.register_forward_pre_hook(lambda net, args: (net.norm(args[0]), *args[1:]))
    iterate(model, 1, 2)
    before = tensors_of(model)
    iterate(model, 3, 4, lq=NAN)
    assert_same(model, before)
    assert model.guard.skips == 0, 'nobody asked yet'
    iterate(model, 5)
    name = 'net.conv_first.weight'
    assert not torch.equal(tensors_of(model)[name], before[name])
    model.save(0, 5)
    assert (model.guard.skips, model.guard.skips_in_row) == (2, 0)
    for number in (3, 4):
        assert f'Skipped iteration {number}: loss or gradients not finite' in caplog.text
        assert f'{number - 2} in all. Its images: {number}.png' in caplog.text
    assert torch.load(tmp_path / '5.state', weights_only=True)['skips'] == 2


def test_too_many_skips_end_the_training_when_it_logs(tmp_path):
    model = build(tmp_path, 'step 1', max_skips=3, cuda_graph=False)
    model.guard.check_freq = 5
    iterate(model, 1, 2)
    iterate(model, 3, 4, lq=NAN)
    with pytest.raises(FloatingPointError, match="3 iterations in a row .* one 5. Its batch is in '.*_5_0.pth'"):
        iterate(model, 5, lq=NAN)


def test_after_a_skip_each_iteration_is_checked(tmp_path):
    """So that the batch is at hand in the end."""
    model = build(tmp_path, 'step 1', max_skips=3)
    model.guard.check_freq = 5
    iterate(model, 1, 4)
    iterate(model, 5, 6, lq=NAN)
    assert model.guard.skips == 2
    with pytest.raises(FloatingPointError, match='the last one 7. Its batch'):
        iterate(model, 7, lq=NAN)


def test_skips_are_found_after_100_iterations_at_the_latest(tmp_path):
    model = build(tmp_path, 'step 1', max_skips=200)
    model.guard.check_freq = 10 ** 6
    iterate(model, 1, 99, lq=NAN)
    assert model.guard.skips == 0
    iterate(model, 100, lq=NAN)
    assert model.guard.skips == 100


# ---- as a CUDA graph


class Repeat:
    """A stand-in for a graph: captures by running nothing, and replays by running the function on the same tensors."""

    def __init__(self):
        self.eager = self.captured = 0

    def run(self, function):
        self.eager += 1
        return function(), None

    def capture(self, function):
        self.captured += 1
        holder = {}

        def replay():
            groups = self.step.step.optimizer.param_groups
            own = [group['lr'] for group in groups]
            for group, rate in zip(groups, self.step.rates):
                group['lr'] = float(rate)  # a fused Adam of the CPU reads no tensor
            holder['result'] = self.step.result = function()
            for group, rate in zip(groups, own):
                group['lr'] = rate

        return None, replay


def record(model):
    recorder = Repeat()
    model.run_step = recorder.step = CapturedStep(model.train_step, recorder=recorder)
    return recorder


@pytest.mark.parametrize('change', [*CHANGES.values(), ALL], ids=[*CHANGES, 'all'])
@pytest.mark.parametrize('network', NETWORKS)
def test_what_is_captured_is_the_step(tmp_path, network, change):
    """Bit for bit, with a schedule of the learning rate and of the loss."""
    expected = iterate(build(tmp_path, network, **change), 1, 9)
    model = build(tmp_path, network, **change)
    recorder = record(model)
    iterate(model, 1, 9)
    assert (recorder.eager, recorder.captured) == (EAGER_STEPS, 1)
    assert_same(model, tensors_of(expected))
    assert model.log_dict == expected.log_dict
    assert model.optimizer_g.param_groups[0]['lr'] == 2 ** -8
    assert model.optimizer_g.param_groups[0]['capturable'] is False
    model.save(0, 9)  # as from any training
    state = torch.load(tmp_path / '9.state', weights_only=True)
    assert state['optimizers'][0]['param_groups'][0]['lr'] == 2 ** -8


def test_batch_of_another_shape_runs_without_the_graph(tmp_path):
    expected, model = build(tmp_path), build(tmp_path)
    recorder = record(model)
    for one in (expected, model):
        iterate(one, 1, 5)
        iterate(one, 6, lq=torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1)),
                gt=torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(2)))
        iterate(one, 7, 8)
    assert (recorder.eager, recorder.captured) == (EAGER_STEPS + 1, 1)
    assert_same(model, tensors_of(expected))


def test_resume_with_a_graph(tmp_path):
    """Also of a state that was written without one."""
    expected = iterate(build(tmp_path), 1, 5)
    expected.save(0, 5)
    model = build(tmp_path)
    model.load_network(model.net_g, str(tmp_path / 'net_g_5.pth'))
    model.resume_training(torch.load(tmp_path / '5.state', weights_only=True))
    record(model)
    for one in (expected, model):
        iterate(one, 6, 10)
    assert_same(model, tensors_of(expected))


@pytest.mark.parametrize('on_gpu', DEVICES)
@pytest.mark.parametrize('fused', [False, True])
def test_state_of_another_adam_and_memory_format(tmp_path, fused, on_gpu, caplog, monkeypatch):
    """As of BasicSR, from the CPU; the averages get the layout of the weights, which a fused Adam relies on."""
    monkeypatch.setattr(get_root_logger(), 'propagate', True)
    old = iterate(build(tmp_path, 'step 1', optim_g={**ADAM, 'fused': not fused}), 1, 3)
    old.save(0, 3)
    model = build(tmp_path, 'step 1', on_gpu, optim_g={**ADAM, 'fused': fused}, channels_last=True)
    model.load_network(model.net_g, str(tmp_path / 'net_g_3.pth'))
    model.resume_training(torch.load(tmp_path / '3.state', weights_only=True))
    assert 'Following the yml' not in caplog.text
    for parameter, state in model.optimizer_g.state.items():
        assert state['exp_avg'].stride() == state['exp_avg_sq'].stride() == parameter.stride()
        assert state['step'].device == (parameter.device if fused else torch.device('cpu'))
    iterate(old, 4, 6)
    iterate(model, 4, 6)
    for name, value in old.net_g.state_dict().items():
        torch.testing.assert_close(model.net_g.state_dict()[name].cpu(), value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('is_required', [False, True])
def test_step_that_cannot_be_captured(tmp_path, is_required, monkeypatch, caplog):
    monkeypatch.setattr(get_root_logger(), 'propagate', True)

    class Fails(Repeat):
        def capture(self, function):
            raise RuntimeError('CUDA error: operation not permitted when stream is capturing\nand more lines')

    expected = iterate(build(tmp_path), 1, 6)
    model = build(tmp_path)
    model.run_step = CapturedStep(model.train_step, is_required, Fails())
    iterate(model, 1, 3)
    if is_required:
        with pytest.raises(UserError, match='cuda_graph: true: the step cannot be captured: CUDA error: operation'):
            iterate(model, 4)
    else:
        iterate(model, 4, 6)
        assert_same(model, tensors_of(expected))
        lines = {record.created: record.message for record in caplog.records if record.levelname == 'WARNING'}
        assert list(lines.values()) == [
            'Training without a CUDA graph: CUDA error: operation not permitted when stream is capturing.']
    assert model.optimizer_g.param_groups[0]['lr'] in (2 ** -7, 2 ** -8)


def test_step_that_waits_is_not_captured(tmp_path):
    class Waits(Repeat):
        def run(self, function):
            return function(), 'mynet.py:7'

        def capture(self, function):
            pytest.fail('it was captured')

    model = build(tmp_path)
    model.run_step = CapturedStep(model.train_step, False, Waits())
    assert_same(iterate(model, 1, 6), tensors_of(iterate(build(tmp_path), 1, 6)))
    model.run_step = CapturedStep(model.train_step, True, Waits())
    iterate(model, 7, 9)
    with pytest.raises(UserError, match=r'cannot be captured: mynet.py:7 waits for the GPU, as \.item\(\) and if'):
        iterate(model, 10)


def test_graph_is_not_the_default_of_losses_that_are_not_known(tmp_path, monkeypatch):
    monkeypatch.setattr('udl_plugin.models.udl_model.why_not_captured', lambda *_: None)
    monkeypatch.setattr('udl_plugin.models.captured_step.CudaRecorder', Repeat)
    model = build(tmp_path)
    assert isinstance(model._build_step(None), CapturedStep)
    assert isinstance(model._build_step('auto'), CapturedStep)
    assert model._build_step(False) is model.train_step

    class Own(type(model)):
        def compute_losses(self, **batch):
            return {}

    model.__class__ = Own
    assert model._build_step('auto') is model.train_step
    assert isinstance(model._build_step(True), CapturedStep)


def test_loss_that_keeps_numbers_is_not_captured(tmp_path):
    opt = {'num_gpu': 1, 'dist': False}
    model = build(tmp_path, 'one run')
    assert why_not_captured(model.train_step, opt, model.cri_pix, None) is None
    model.cri_pix.progress_in_tensors = False
    assert 'JointUDL has set_progress' in why_not_captured(model.train_step, opt, model.cri_pix, None)
    model = build(tmp_path, optim_g={'type': 'Adam', 'lr': 1e-4})
    assert 'requires a fused optimizer' in why_not_captured(model.train_step, opt, model.cri_pix, None)
    assert 'requires num_gpu: 1' in why_not_captured(model.train_step, {'num_gpu': 2, 'dist': False})
    assert 'and one process' in why_not_captured(model.train_step, {'num_gpu': 1, 'dist': True})


def test_where_a_graph_is_possible(tmp_path):
    assert build(tmp_path).run_step.__class__.__name__ == 'TrainStep', 'no GPU is asked for'
    with pytest.raises(UserError, match=r'train.cuda_graph: true: requires num_gpu: 1, and one process\. Write auto'):
        build(tmp_path, cuda_graph=True)


@pytest.mark.gpu
@pytest.mark.parametrize('change', [*CHANGES.values(), ALL, {**ALL, 'compile': True}],
                         ids=[*CHANGES, 'all', 'compiled'])
@pytest.mark.parametrize('network', NETWORKS)
def test_graph_equals_eager_on_a_gpu(tmp_path, network, change):
    """Over 50 iterations, with a step that is skipped in between."""
    torch._dynamo.reset()
    tolerance = 5e-4 if 'amp' in change else 1e-5  # the weights move by up to 5e-3
    change = {**change, 'total_iter': 50, 'optim_g': {'type': 'Adam', 'lr': 1e-4}}
    eager, graph = (build(tmp_path, network, True, cuda_graph=mode, **change) for mode in (False, True))
    for one in (eager, graph):
        iterate(one, 1, 20)
        iterate(one, 21, lq=NAN)
        iterate(one, 22, 50)
    assert graph.run_step.batch, 'it was captured'
    found = tensors_of(graph)
    for name, value in tensors_of(eager).items():
        if name.startswith(('net.', 'ema.')):
            torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=name)
    for one in (eager, graph):
        one.save(0, 50)
        assert one.guard.skips == 1


@pytest.mark.gpu
def test_capturing_leaves_random_numbers_alone(tmp_path):
    model = iterate(build(tmp_path, on_gpu=True), 1, 3)
    before = torch.cuda.get_rng_state()
    iterate(model, 4, 6)
    assert model.run_step.batch
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.gpu
def test_loss_that_asks_for_a_value_trains_without_a_graph(tmp_path):
    model = build(tmp_path, 'plain', on_gpu=True)
    own = model.cri_pix.forward
    model.cri_pix.forward = lambda pred, target: own(pred, target) * (1 if pred.isfinite().all() else 2)
    iterate(model, 1, 6)
    assert not model.run_step.batch
    assert math.isfinite(model.log_dict['l_pix'])
