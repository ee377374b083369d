"""Networks and losses under mmengine: the same results as in BasicSR, and interchangeable checkpoints."""
import inspect
import itertools
import math
import re
import sys
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY
from conftest import ROOT, TINY, model_options, random_images, write_images
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch.utils.data import Dataset

import udl_plugin.integrations.mmengine as integration
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.checkpoints.safe_load import load_tensors_only
from udl_plugin.checkpoints.state_dict import read_state_dict, save_checkpoint
from udl_plugin.errors import UserError
from udl_plugin.inference.visualize import expected_error_picture
from udl_plugin.integrations.mmengine.hooks import (
    NetworkCheckpointHook,
    UncertaintyVisualizationHook,
    keep_foreign_best,
)
from udl_plugin.integrations.mmengine.model import UDLRestorer
from udl_plugin.plugin import REGISTERED
from udl_plugin.prepare.uncertainty_maps import prepare_uncertainty

pytestmark = pytest.mark.usefixtures('seed')
ITERATIONS = 10
EMA = [{'type': 'EMAHook', 'ema_type': 'ExponentialMovingAverage', 'momentum': 0.1}]
numbers = itertools.count()


class Batches(Dataset):
    """Fixed pairs."""

    def __len__(self):
        return 2 * ITERATIONS

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        lq = torch.rand(3, 8, 8, generator=generator)
        gt = torch.nn.functional.interpolate(lq[None], scale_factor=2, mode='bilinear')[0]
        gt += 0.1 * torch.rand(gt.shape, generator=generator)
        return {'inputs': lq, 'data_samples': {'gt': gt.clamp(0, 1)}}


@HOOKS.register_module()
class Losses(Hook):
    def __init__(self, seen):
        self.seen = seen

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append(float(outputs['loss'].detach()))


def make_runner(folder, network='EDSRVar', loss='ESU', load_from=None, hooks=(), **options):
    """mmengine's Runner with the network, loss and schedule of `model_options`."""
    return Runner(**{
        'model': {'type': 'UDLRestorer', 'generator': {'type': network, **TINY}, 'pixel_loss': {'type': loss}},
        'work_dir': str(folder / 'work'), 'default_scope': 'mmengine', 'load_from': load_from and str(load_from),
        'train_dataloader': {'dataset': Batches(), 'batch_size': 2, 'collate_fn': {'type': 'default_collate'},
                             'sampler': {'type': 'DefaultSampler', 'shuffle': False}},
        'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': ITERATIONS},
        'optim_wrapper': {'optimizer': {'type': 'Adam', 'lr': 1e-2}},
        'param_scheduler': {'type': 'MultiStepLR', 'by_epoch': False, 'milestones': [5], 'gamma': 0.5},
        'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': ITERATIONS}},
        'custom_hooks': [{'type': 'NetworkCheckpointHook'}, *hooks], 'cfg': Config(), 'log_level': 'WARNING',
        'experiment_name': str(next(numbers)), **options})


def get_hook(runner, cls):
    hook, = (hook for hook in runner.hooks if isinstance(hook, cls))
    return hook


def make_basicsr_model(folder, step, load_from=None, **train):
    opt = model_options(step, folder, **train)
    opt['path'].update(pretrain_network_g=load_from and str(load_from))
    return build_model(opt)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope='module')
def step1(tmp_path_factory):
    """A step-1 checkpoint of BasicSR."""
    folder = tmp_path_factory.mktemp('step1')
    make_basicsr_model(folder, 1).save(epoch=-1, current_iter=-1)
    return folder / 'net_g_latest.pth'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A runner that trained step 1; its checkpoint is in `.path`, one without a training state in `.best`."""
    folder = tmp_path_factory.mktemp('trained')
    runner = make_runner(folder)
    runner.train()
    runner.path, runner.best = folder / f'work/iter_{ITERATIONS}.pth', folder / 'best.pth'
    runner.save_checkpoint(str(folder), 'best.pth', save_optimizer=False)
    return runner


@pytest.fixture(scope='module')
def averaged(tmp_path_factory):
    """The same with a moving average of the weights."""
    folder = tmp_path_factory.mktemp('averaged')
    runner = make_runner(folder, hooks=EMA)
    runner.train()
    runner.path = folder / f'work/iter_{ITERATIONS}.pth'
    return runner


def test_networks_and_losses_are_those_of_basicsr():
    for registry, names in ((ARCH_REGISTRY, REGISTERED['ARCH_REGISTRY']), (LOSS_REGISTRY, REGISTERED['LOSS_REGISTRY'])):
        for name in names:
            assert MODELS.get(name) is registry.get(name)


def test_loss_that_is_not_finite_ends_the_training(tmp_path, step1):
    class Broken(Batches):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return {**item, 'inputs': item['inputs'] * (math.nan if index == 4 else 1)}

    runner = make_runner(tmp_path, 'EDSRVar', 'ESU', step1)
    runner._train_dataloader['dataset'] = Broken()
    with pytest.raises(UserError, match='iteration 3: the loss is nan. All checkpoints are from before'):
        runner.train()
    assert not list(tmp_path.rglob('iter_3.pth'))


def test_images_that_only_udl_model_cuts(demo_data):
    root = demo_data / 'demo_train'
    options = {'type': 'PairedImageCachedDataset', 'io_backend': {'type': 'lmdb'}, 'gt_size': 12, 'use_hflip': True,
               'use_rot': True, 'dataroot_gt': f'{root}_HR_sub.lmdb', 'dataroot_lq': f'{root}_LR_bicubic_X2_sub.lmdb'}
    with pytest.raises(UserError, match='cache: device is for UDLModel, which cuts the patches; write host'):
        integration.BasicSRDataset('train', 2, options)
    item = integration.BasicSRDataset('train', 2, {**options, 'cache': 'host'})[0]
    assert item['inputs'].shape == (3, 6, 6)


def test_import_path_of_earlier_versions():
    Config.fromstring("custom_imports = dict(imports=['udl_plugin.mm'], allow_failed_imports=False)", '.py')
    shim = sys.modules['udl_plugin.mm']
    assert all(getattr(shim, name) is getattr(integration, name) for name in integration.__all__)


@pytest.mark.parametrize(('step', 'network', 'loss'), [
    (1, 'EDSRVar', {'type': 'ESU'}), (2, 'EDSRTwo', {'type': 'UDL'}),
    (1, 'EDSRVar', {'type': 'JointUDL', 'warmup': 3}), (1, 'EDSRVar', {'type': 'JointUDL', 'warmup': 0, 'beta_start': 0,
                                                                       'beta_end': 2})], ids=str)
def test_same_losses_and_weights_as_basicsr(tmp_path, step1, step, network, loss):
    model, expected = make_basicsr_model(tmp_path, step, step1, pixel_opt=loss), []
    for number in range(1, ITERATIONS + 1):
        model.update_learning_rate(number)
        pairs = [Batches()[2 * number - 2], Batches()[2 * number - 1]]
        model.feed_data({'lq': torch.stack([pair['inputs'] for pair in pairs]),
                         'gt': torch.stack([pair['data_samples']['gt'] for pair in pairs])})
        model.optimize_parameters(number)
        expected.append(float(model.log_dict['l_pix']))

    losses = []
    runner = make_runner(tmp_path, network, loss['type'], step1, [{'type': 'Losses', 'seen': losses}], model={
        'type': 'UDLRestorer', 'generator': {'type': network, **TINY}, 'pixel_loss': loss})
    runner.train()
    assert loss['type'] == 'JointUDL' or expected[0] > 1.03 * expected[-1]
    assert len(losses) == ITERATIONS
    assert all(math.isclose(one, other, rel_tol=1e-5) for one, other in zip(losses, expected)), (losses, expected)
    weights = runner.model.generator.state_dict()
    for name, value in model.net_g.state_dict().items():
        assert torch.allclose(weights[name], value, atol=1e-5), name


def test_teacher(step1):
    """Gives the weights, and is in no state dict."""
    model = UDLRestorer({'type': 'EDSR', **TINY}, {'type': 'UDL', 'source': 'teacher_error'}, teacher={'path': step1})
    pair = Batches()[0]
    lq, gt = pair['inputs'][None], pair['data_samples']['gt'][None]
    with torch.no_grad():
        error = 255 * (gt - load_network_file(step1).base().build()(lq)).abs()
        expected = ((error - error.amin((2, 3), keepdim=True) + 1) * 255 * (gt - model(lq)).abs()).mean()
    torch.testing.assert_close(model(lq, {'gt': gt}, mode='loss')['loss_pix'].detach(), expected)
    assert {name.split('.')[0] for name in model.state_dict()} == {'generator'}
    with pytest.raises(UserError, match='pixel_loss: UDL requires teacher_sr, .* mmengine: teacher of the model'):
        UDLRestorer({'type': 'EDSR', **TINY}, {'type': 'UDL', 'source': 'teacher_residual'})


def test_accumulated_batches(tmp_path, trained):
    """The changes that docs/scaling.md lists give the same training with batches of half the size."""
    states = []
    for count in (1, 2):
        runner = make_runner(
            tmp_path, load_from=trained.path,
            train_cfg={'type': 'IterBasedTrainLoop', 'max_iters': count * ITERATIONS},
            optim_wrapper={'optimizer': {'type': 'Adam', 'lr': 1e-2}, 'accumulative_counts': count},
            param_scheduler={'type': 'MultiStepLR', 'by_epoch': False, 'milestones': [count * 5], 'gamma': 0.5})
        runner._train_dataloader['batch_size'] = 2 // count
        runner.train()
        states.append(runner.model.state_dict())
    for name, value in states[0].items():
        assert torch.allclose(states[1][name], value, atol=1e-4), name


@pytest.mark.parametrize('step', [1, 2])
@pytest.mark.parametrize('hooks', [[], EMA], ids=['weights', 'average'])
def test_from_basicsr_and_back(tmp_path, step1, step, hooks):
    """BasicSR -> mmengine -> BasicSR changes no bit of a checkpoint."""
    network, loss, path = *(('EDSRVar', 'ESU'), ('EDSRTwo', 'UDL'))[step - 1], step1
    model = make_basicsr_model(tmp_path, step, step1)
    if step == 2:
        torch.nn.init.normal_(model.net_g.sr_net.conv_last.weight)  # the branches must differ
        model.save(epoch=-1, current_iter=-1)
        path = tmp_path / 'net_g_latest.pth'
    runner = make_runner(tmp_path, network, loss, path, hooks)
    runner.call_hook('before_run')
    runner.load_or_resume()
    runner.optim_wrapper = None
    runner.save_checkpoint(str(tmp_path), 'mm.pth', save_optimizer=False, save_param_scheduler=False)
    for key in ('params', 'params_ema')[:1 + len(hooks)]:
        assert_equal(read_state_dict(path)[0], read_state_dict(tmp_path / 'mm.pth', key)[0])
    file = load_network_file(tmp_path / 'mm.pth')
    assert len(file.notes) == len(hooks)  # which weights are used
    assert file.network_g == {'type': network, **TINY}
    assert_equal(model.net_g.state_dict(), make_basicsr_model(tmp_path, step, tmp_path / 'mm.pth').net_g.state_dict())


def test_step_2_of_basicsr_starts_from_step_1_of_mmengine(tmp_path, trained):
    net = make_basicsr_model(tmp_path, 2, trained.path).net_g
    assert_equal(net.state_dict(), net.expand(trained.model.generator.state_dict()))


def test_checkpoints_record_the_loss_of_the_variance_head(tmp_path, trained):
    runner = make_runner(tmp_path, 'EDSRTwo', 'UDL', trained.path)
    runner.call_hook('before_run')
    runner.load_or_resume()
    runner.optim_wrapper = None
    runner.save_checkpoint(str(tmp_path), 'step2.pth', save_optimizer=False, save_param_scheduler=False)
    for path in (trained.path, tmp_path / 'step2.pth'):
        assert load_tensors_only(path)['uncertainty_loss'] == 'ESU'


@pytest.mark.parametrize(('trains', 'param_key', 'expected'), [
    (True, None, 'params_ema'), (False, None, 'params_ema'), (False, 'params', 'params'), (True, 'params', 'params')])
def test_weights_and_moving_average(tmp_path, averaged, trains, param_key, expected):
    """mmengine saves the moving average in the place of the weights."""
    weights = averaged.model.generator.state_dict()
    state_dicts = {key: read_state_dict(averaged.path, key)[0] for key in ('params', 'params_ema')}
    assert_equal(state_dicts['params'], weights)
    assert not all(torch.equal(state_dicts['params_ema'][name], weights[name]) for name in weights)

    runner = make_runner(tmp_path, load_from=averaged.path, hooks=EMA)
    get_hook(runner, NetworkCheckpointHook).param_key = param_key
    if trains:
        assert runner.train_loop  # is built by the first access
    runner.call_hook('before_run')
    runner.load_or_resume()
    for model in (runner.model, get_hook(runner, EMAHook).ema_model.module):
        assert_equal(model.generator.state_dict(), state_dicts[expected])


def test_resume_of_an_average_requires_the_hook(tmp_path, averaged):
    with pytest.raises(UserError, match='Resume it with EMAHook in custom_hooks'):
        make_runner(tmp_path, load_from=averaged.path, resume=True).train()
    runner = make_runner(tmp_path, load_from=averaged.path, hooks=EMA, resume=True)
    runner.train()
    assert runner.iter == ITERATIONS


@pytest.mark.parametrize('folder', ['work', 'elsewhere'])
def test_best_checkpoints_of_other_runs_are_kept(tmp_path, folder):
    """mmengine deletes the one that a checkpoint names when it finds a better one."""
    info = {'best_ckpt': str(tmp_path / folder / 'best_x.pth'), 'best_score': 3.}
    hub = {'runtime_info': info, 'resumed_keys': dict.fromkeys(info, True)}
    keep_foreign_best(SimpleNamespace(work_dir=str(tmp_path / 'work')), {'message_hub': hub})
    assert ('best_ckpt' in info) == (folder == 'work')
    assert hub['resumed_keys'].keys() == info.keys()


@pytest.fixture
def maps(tmp_path):
    """Options of a dataset with cached maps of the network in 1.pth; another one is in 2.pth."""
    gt = write_images(tmp_path / 'gt.lmdb', random_images(2, 48))
    lq = write_images(tmp_path / 'lq.lmdb', random_images(2, 24))
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_checkpoint(tmp_path / f'{seed}.pth', {'params': ARCH_REGISTRY.get('EDSRVar')(**TINY).state_dict()},
                        {'type': 'EDSRVar', **TINY})
    prepare_uncertainty(tmp_path / '1.pth', gt, lq, tmp_path / 'maps.lmdb')
    dataset = {'name': 'x', 'type': 'PairedImageUncertaintyDataset', 'dataroot_gt': str(gt), 'dataroot_lq': str(lq),
               'dataroot_uncertainty': str(tmp_path / 'maps.lmdb'), 'io_backend': {'type': 'lmdb'}, 'gt_size': 16,
               'use_hflip': True, 'use_rot': True}
    return {'type': 'ConcatDataset', 'datasets': [
        {'type': 'BasicSRDataset', 'phase': 'train', 'scale': 2, 'dataset': dataset}]}


@pytest.mark.parametrize(('network', 'loss', 'seed', 'message'), [
    ('EDSRTwo', 'UDL', 2, r"maps\.lmdb' are not of the generator's frozen network, but of .*1\.pth"),
    ('EDSRVar', 'ESU', 1, r"ESU does not weight by the maps in '.*maps\.lmdb'"),
    ('EDSRVar', 'JointUDL', 1, r"JointUDL does not weight by the maps in '.*maps\.lmdb'"), ('EDSRTwo', 'UDL', 1, None)])
def test_cached_maps(tmp_path, maps, network, loss, seed, message):
    runner = make_runner(tmp_path, network, loss, tmp_path / f'{seed}.pth')
    runner._train_dataloader.update(dataset=maps, sampler={'type': 'InfiniteSampler'})  # no pause between epochs
    if message:
        with pytest.raises(UserError, match=message):
            runner.train()
    else:
        with patch.object(runner.model.generator.var_net, 'forward', side_effect=AssertionError('not needed')):
            runner.train()
        assert runner.iter == ITERATIONS
        sample = runner.train_dataloader.dataset[0]
        assert sample['data_samples'].keys() == {'gt', 'log_var'}, 'torch.compile would recompile for every path'


def test_checkpoint_of_another_network(tmp_path, step1):
    """mmengine alone would load nothing and train on."""
    runner = make_runner(tmp_path, load_from=step1)
    runner.model = UDLRestorer({'type': 'EDSRVar', **TINY, 'num_block': 3})
    with pytest.raises(UserError, match=r"latest\.pth' does not fit generator: EDSRVar: it has num_block: 2"):
        runner.load_or_resume()


def test_checkpoint_that_contradicts_the_generator(tmp_path, trained):
    """Weights of the right shapes, of another function."""
    runner = make_runner(tmp_path, load_from=trained.path)
    runner.model = UDLRestorer({'type': 'EDSRVar', **TINY, 'res_scale': 0.1})
    with pytest.raises(UserError, match=r'was trained with network_g.res_scale: 1.*, generator has 0\.1'):
        runner.load_or_resume()


def test_resume_of_what_cannot_be_resumed(tmp_path, step1, trained):
    """mmengine alone would continue with fresh weights, or a fresh optimizer."""
    other = torch.load(trained.path, weights_only=False)
    other['state_dict'].pop('generator.conv_first.weight')
    torch.save(other, tmp_path / 'other.pth')
    for path, message in ((step1, 'holds no training state of mmengine'),
                          (trained.best, 'holds no training state of mmengine'),
                          (tmp_path / 'other.pth', 'is of another network than generator')):
        with pytest.raises(UserError, match=f"{path.name}' {message}"):
            make_runner(tmp_path, load_from=path, resume=True).train()
    with pytest.raises(UserError, match='of another network than generator and cannot be resumed: EDSRTwo'):
        make_runner(tmp_path, 'EDSRTwo', 'UDL', trained.path, resume=True).train()


def test_step_2_requires_step_1(tmp_path):
    for options in ({}, {'resume': True}):
        with pytest.raises(UserError, match=r'load_from: is missing\. EDSRTwo starts from a checkpoint of step 1'):
            make_runner(tmp_path, 'EDSRTwo', 'UDL', **options).train()


def test_training_requires_a_loss(tmp_path):
    runner = make_runner(tmp_path)
    runner.model = UDLRestorer({'type': 'EDSRVar', **TINY})
    with pytest.raises(UserError, match=r'model\.pixel_loss: is missing'):
        runner.train()


def test_resume_follows_the_schedule_of_the_config(tmp_path, trained):
    """mmengine alone would keep the learning rate constant after the end of the old schedule."""
    (tmp_path / 'best_x.pth').touch()
    content = load_tensors_only(trained.path)
    content['message_hub']['runtime_info'].update(best_ckpt=str(tmp_path / 'best_x.pth'), best_score=3.)
    torch.save(content, tmp_path / 'x.pth')
    runner = make_runner(
        tmp_path, load_from=tmp_path / 'x.pth', resume=True,
        train_cfg={'type': 'IterBasedTrainLoop', 'max_iters': 2 * ITERATIONS},
        param_scheduler={'type': 'MultiStepLR', 'by_epoch': False, 'milestones': [5, 15], 'gamma': 0.1})
    runner._train_dataloader.update(sampler={'type': 'InfiniteSampler'})  # no pause between epochs
    runner.train()
    assert runner.iter == 2 * ITERATIONS
    assert runner.optim_wrapper.param_groups[0]['lr'] == pytest.approx(1e-2 * 0.5 * 0.1), 'what is past stays'
    assert 'best_ckpt' not in runner.message_hub.runtime_info, "another run's"


@pytest.mark.parametrize(('generator', 'pixel_loss', 'message'), [
    ({'type': 'EDSRVarr'}, {'type': 'ESU'}, "there is no 'EDSRVarr'"),
    ({'type': 'EDSRVar', **TINY, 'num_foot': 3}, {'type': 'ESU'}, 'num_foot'),
    ({'type': 'EDSRVar', **TINY}, {'type': 'ESUU'}, "pixel_loss: type: there is no 'ESUU'"),
    ({'type': 'EDSRVar', **TINY}, {'type': 'ESU', 'weight': 1}, "pixel_loss: 'weight' is not an option"),
    ({'type': 'EDSR', **TINY}, {'type': 'L1Loss', 'weight': 1}, "pixel_loss: 'weight' is not an option"),
    ({'type': 'EDSRTwo', **TINY}, {'type': 'ESU'}, 'pixel_loss: ESU trains the log-variance,.* generator: EDSRTwo'),
    ({'type': 'EDSR', **TINY}, {'type': 'UDL'}, r'pixel_loss: UDL \w+ log_var,.* generator: EDSR'),
])
def test_wrong_networks_and_losses(generator, pixel_loss, message):
    with pytest.raises(UserError, match=message):
        UDLRestorer(generator, pixel_loss)


def test_modes():
    model = UDLRestorer({'type': 'EDSRTwo', **TINY}, {'type': 'UDL'}).eval()
    lq, gt = torch.rand(2, 3, 8, 6), torch.rand(2, 3, 16, 12)
    sr = model(lq)
    assert sr.shape == gt.shape
    loss = model(lq, {'gt': gt}, 'loss')
    assert loss.keys() == {'loss_pix'}
    with_maps = model(lq, {'gt': gt, 'log_var': torch.zeros(gt.shape)}, 'loss')
    assert with_maps['loss_pix'] != loss['loss_pix'], 'cached maps are used'
    one, two = model(lq, {'gt': gt, 'lq_path': ['a', 'b']}, 'predict')
    assert one.keys() == {'gt', 'lq_path', 'sr'}
    assert two['lq_path'] == 'b'
    assert torch.equal(two['sr'], sr[1])
    model.predict_log_var = True
    assert model(lq, None, 'predict')[1]['log_var'].shape == (3, 16, 12)
    with pytest.raises(ValueError, match="mode is 'tensor', 'loss' or 'predict', not 'x'"):
        model(lq, None, 'x')


def test_compiled_model_has_the_same_losses_and_does_not_recompile():
    losses = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        model = UDLRestorer({'type': 'EDSRVar', **TINY}, {'type': 'ESU'})
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
        step = torch.compile(model.train_step, backend='eager') if compiled else model.train_step
        losses[compiled] = []
        for number in range(4):
            data = {'inputs': torch.rand(1, 3, 4, 4), 'data_samples': {'gt': torch.rand(1, 3, 8, 8)}}
            with torch._dynamo.config.patch(error_on_recompile=number > 1):
                losses[compiled].append(float(step(data, wrapper)['loss'].detach()))
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


def test_pictures_of_uncertainty():
    """Every `interval`-th validated image and every tested one, drawn within the limits."""
    model = UDLRestorer({'type': 'EDSRVar', **TINY}, {'type': 'ESU'})
    drawn = []
    runner = SimpleNamespace(model=model, iter=7, visualizer=SimpleNamespace(
        add_image=lambda name, image, step: drawn.append((name, image, step))))
    hook = UncertaintyVisualizationHook(limits=(0, 9), interval=2)
    hook.before_run(runner)
    for number in range(3):
        outputs = model.eval()(torch.rand(1, 3, 4, 6), {'set': ['Set5'], 'lq_path': [f'a/{number}.png']}, 'predict')
        hook.after_val_iter(runner, number, None, outputs)
    hook.after_test_iter(runner, 1, None, outputs)
    assert [(name, step) for name, _, step in drawn] == [
        ('Set5_0_expected_error', 7), ('Set5_2_expected_error', 7), ('Set5_2_expected_error', 0)]
    expected = expected_error_picture(outputs[0]['log_var'].numpy(), 'ESU', limits=(0, 9))
    assert (drawn[-1][1] == expected[..., ::-1]).all()
    runner.model = UDLRestorer({'type': 'EDSR', **TINY})
    with pytest.raises(UserError, match=r'EDSR provides no log_var\. Remove UncertaintyVisualizationHook'):
        hook.before_run(runner)


@pytest.mark.parametrize(('limits', 'interval'), [((4, -1), 1), (None, 0)])
def test_wrong_options_of_the_visualization(limits, interval):
    with pytest.raises(UserError, match='UncertaintyVisualizationHook: limits must be .* and interval at least 1'):
        UncertaintyVisualizationHook(limits, interval)


def test_wrong_option_of_a_metric():
    with pytest.raises(UserError, match="SSIM: convert_to is 'Y' or None, not 'y'"):
        integration.SSIM(2, convert_to='y')


def test_networks_that_require_multiples_of_a_size():
    swin = {'type': 'SwinIR', 'upscale': 2, 'img_size': 16, 'window_size': 8, 'depths': [1], 'embed_dim': 8,
            'num_heads': [1], 'mlp_ratio': 1, 'upsampler': 'pixelshuffle'}
    model = UDLRestorer({'type': 'WithVariance', 'backbone': swin}).eval()
    model.predict_log_var = True
    sample, = model(torch.rand(1, 3, 9, 11), None, 'predict')
    assert sample['sr'].shape == sample['log_var'].shape == (3, 18, 22)


def test_names():
    """docs/reference/names.md lists what is registered, and its options."""
    page = (ROOT / 'docs/reference/names.md').read_text()
    for name in integration.__all__:
        row = re.search(rf'^\| `{name}` \| mmengine: .*\| (.*) \|$', page, re.MULTILINE)
        parameters = inspect.signature(getattr(integration, name).__init__).parameters
        assert re.findall(r'`(\w+)`', row[1]) == [
            key for key, parameter in parameters.items()
            if key != 'self' and parameter.kind is not parameter.VAR_KEYWORD]
    assert set(integration.__all__) == {'PSNR', 'SSIM', 'BasicSRDataset', 'NetworkCheckpointHook',
                                        'ResumableFSDPStrategy', 'UDLRestorer', 'UncertaintyVisualizationHook'}
