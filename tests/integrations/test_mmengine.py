"""One definition of networks and losses, two hosts: the same figures, and checkpoints of either."""
import inspect
import math
import re
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
from mmengine.runner import Runner as Host
from torch.utils.data import Dataset

import udl_plugin.integrations.mmengine
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.checkpoints.safe_load import load_tensors_only
from udl_plugin.checkpoints.state_dict import read_state_dict, save_checkpoint
from udl_plugin.errors import UserError
from udl_plugin.inference.visualize import uncertainty_picture
from udl_plugin.integrations.mmengine.hooks import NetworkCheckpointHook, UncertaintyVisualizationHook
from udl_plugin.integrations.mmengine.model import UDLRestorer
from udl_plugin.plugin import REGISTERED
from udl_plugin.prepare.uncertainty_maps import prepare_uncertainty

pytestmark = pytest.mark.usefixtures('seed')
ITERATIONS = 20


def test_one_definition():
    for registry, names in ((ARCH_REGISTRY, REGISTERED['ARCH_REGISTRY']), (LOSS_REGISTRY, REGISTERED['LOSS_REGISTRY'])):
        for name in names:
            assert MODELS.get(name) is registry.get(name)


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


def host(folder, network, loss, start=None, hooks=(), **options):
    """mmengine's Runner, with the network, loss and schedule of `model_options`."""
    return Host(**{
        'model': {'type': 'UDLRestorer', 'generator': {'type': network, **TINY}, 'pixel_loss': {'type': loss}},
        'work_dir': str(folder / 'work'), 'default_scope': 'mmengine', 'load_from': start,
        'train_dataloader': {'dataset': Batches(), 'batch_size': 2, 'collate_fn': {'type': 'default_collate'},
                             'sampler': {'type': 'DefaultSampler', 'shuffle': False}},
        'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': ITERATIONS},
        'optim_wrapper': {'optimizer': {'type': 'Adam', 'lr': 1e-2}},
        'param_scheduler': {'type': 'MultiStepLR', 'by_epoch': False, 'milestones': [5], 'gamma': 0.5},
        'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': ITERATIONS}},
        'custom_hooks': [{'type': 'NetworkCheckpointHook'}, *hooks], 'cfg': Config(), 'log_level': 'WARNING',
        **options})


def basicsr(folder, step, start=None):
    opt = model_options(step, folder)
    opt['path'].update(pretrain_network_g=start)
    return build_model(opt)


@pytest.mark.parametrize(('step', 'network', 'loss'), [(1, 'EDSRVar', 'ESU'), (2, 'EDSRTwo', 'UDL')])
def test_same_losses_and_weights(tmp_path, step, network, loss):
    first = basicsr(tmp_path, 1)
    first.save(epoch=-1, current_iter=-1)
    start = str(tmp_path / 'net_g_latest.pth')

    model, expected = basicsr(tmp_path, step, start), []
    for number in range(1, ITERATIONS + 1):
        model.update_learning_rate(number)
        pairs = [Batches()[2 * number - 2], Batches()[2 * number - 1]]
        model.feed_data({'lq': torch.stack([pair['inputs'] for pair in pairs]),
                         'gt': torch.stack([pair['data_samples']['gt'] for pair in pairs])})
        model.optimize_parameters(number)
        expected.append(float(model.log_dict['l_pix']))

    found = []
    runner = host(tmp_path, network, loss, start, [{'type': 'Losses', 'seen': found}])
    runner.train()
    assert expected[0] > 1.05 * expected[-1]
    assert len(found) == ITERATIONS
    assert all(math.isclose(one, other, rel_tol=1e-5) for one, other in zip(found, expected)), (found, expected)
    ours = runner.model.generator.state_dict()
    for name, value in model.net_g.state_dict().items():
        assert torch.allclose(ours[name], value, atol=1e-5), name


def test_accumulated_batches(tmp_path):
    """As docs/scaling.md has it: the same training, of halves of the batch."""
    start = host(tmp_path, 'EDSRVar', 'ESU').model.state_dict()
    trained = []
    for count in (1, 2):
        runner = host(
            tmp_path, 'EDSRVar', 'ESU', experiment_name=str(count),
            train_cfg={'type': 'IterBasedTrainLoop', 'max_iters': count * ITERATIONS},
            optim_wrapper={'optimizer': {'type': 'Adam', 'lr': 1e-2}, 'accumulative_counts': count},
            param_scheduler={'type': 'MultiStepLR', 'by_epoch': False, 'milestones': [count * 5], 'gamma': 0.5})
        runner.model.load_state_dict(start)
        runner._train_dataloader['batch_size'] = 2 // count
        runner.train()
        trained.append(runner.model.state_dict())
    for name, value in trained[0].items():
        assert torch.allclose(trained[1][name], value, atol=1e-4), name


@pytest.mark.parametrize(('network', 'loss'), [('EDSRVar', 'ESU'), ('EDSRTwo', 'UDL')])
@pytest.mark.parametrize('averaged', [False, True])
def test_there_and_back(tmp_path, network, loss, averaged):
    """BasicSR -> mmengine -> BasicSR: no bit is lost."""
    path, step = str(tmp_path / 'net_g_latest.pth'), 1 if loss == 'ESU' else 2
    model = basicsr(tmp_path, 1)
    model.save(epoch=-1, current_iter=-1)
    if step == 2:
        model = basicsr(tmp_path, 2, path)
        torch.nn.init.normal_(model.net_g.sr_net.conv_last.weight)  # both branches are not one
        model.save(epoch=-1, current_iter=-1)
    ema = [{'type': 'EMAHook', 'ema_type': 'ExponentialMovingAverage', 'momentum': 0.1}] * averaged
    runner = host(tmp_path, network, loss, path, ema)
    runner.call_hook('before_run')
    runner.load_or_resume()
    runner.optim_wrapper = None
    runner.save_checkpoint(str(tmp_path), 'mm.pth', save_optimizer=False, save_param_scheduler=False)
    for key in ('params', 'params_ema') if averaged else ('params',):
        back, _ = read_state_dict(tmp_path / 'mm.pth', key)
        there, _ = read_state_dict(path)
        assert back.keys() == there.keys()
        assert all(torch.equal(back[name], there[name]) for name in there)
    read = load_network_file(tmp_path / 'mm.pth')
    assert len(read.notes) == averaged  # which weights are taken
    assert read.network_g == {'type': network, **TINY}
    again = basicsr(tmp_path, step, str(tmp_path / 'mm.pth'))
    assert all(torch.equal(value, again.net_g.state_dict()[name]) for name, value in model.net_g.state_dict().items())


def test_averages_are_told_from_weights(tmp_path):
    """mmengine has the moving average in the place of the weights."""
    ema = [{'type': 'EMAHook', 'ema_type': 'ExponentialMovingAverage', 'momentum': 0.1}]
    runner = host(tmp_path, 'EDSRVar', 'ESU', None, ema)
    runner.train()
    path = tmp_path / f'work/iter_{ITERATIONS}.pth'
    trained = runner.model.generator.state_dict()
    params, averaged = (read_state_dict(path, key)[0] for key in ('params', 'params_ema'))
    assert all(torch.equal(params[name], trained[name]) for name in trained)
    assert not all(torch.equal(averaged[name], trained[name]) for name in trained)

    for trains, key, expected in ((True, None, params), (False, None, averaged), (False, 'params', params),
                                  (True, 'params_ema', averaged)):
        other = host(tmp_path, 'EDSRVar', 'ESU', str(path), ema)
        hook_of(other, NetworkCheckpointHook).param_key = key
        if trains:
            assert other.train_loop
        other.call_hook('before_run')
        other.load_or_resume()
        for net in (other.model, hook_of(other, EMAHook).ema_model.module):
            assert all(torch.equal(expected[name], value) for name, value in net.generator.state_dict().items())


def hook_of(runner, kind):
    hook, = (hook for hook in runner.hooks if isinstance(hook, kind))
    return hook


def test_resume_of_an_average_needs_the_hook(tmp_path):
    ema = [{'type': 'EMAHook', 'ema_type': 'ExponentialMovingAverage', 'momentum': 0.1}]
    host(tmp_path, 'EDSRVar', 'ESU', None, ema).train()
    path = str(tmp_path / f'work/iter_{ITERATIONS}.pth')
    with pytest.raises(UserError, match='resume it with EMAHook in custom_hooks'):
        host(tmp_path, 'EDSRVar', 'ESU', path, resume=True).train()
    host(tmp_path, 'EDSRVar', 'ESU', path, ema, resume=True).train()


def test_best_checkpoints_of_others_are_kept(tmp_path):
    """mmengine deletes what a checkpoint says was the best, when it finds a better; one that is gone was none."""
    host(tmp_path, 'EDSRVar', 'ESU').train()
    path = tmp_path / f'work/iter_{ITERATIONS}.pth'
    content = load_tensors_only(path)
    for name in ('best_x.pth', 'best_moved.pth', 'other.pth'):
        (tmp_path / 'work' / name).touch()
    (tmp_path / 'best_x.pth').touch()
    for best, kept, scored in (
            ('best_x.pth', None, True), ('work/best_x.pth', 'work/best_x.pth', True), ('work/other.pth', None, True),
            ('best_moved.pth', 'work/best_moved.pth', True), ('work/best_gone.pth', None, False)):
        content['message_hub']['runtime_info'].update(best_ckpt=str(tmp_path / best), best_score=3.)
        torch.save(content, path)
        again = host(tmp_path, 'EDSRVar', 'ESU', str(path), resume=True, experiment_name=best.replace('/', '_'))
        again.train()
        assert again.message_hub.runtime_info.get('best_ckpt') == (kept and str(tmp_path / kept)), best
        assert ('best_score' in again.message_hub.runtime_info) == scored, best


def test_cached_maps_of_another_network(tmp_path):
    """As BasicSR's side has it."""
    lq, maps = write_images(tmp_path / 'lq.lmdb', random_images(2, 24)), tmp_path / 'maps.lmdb'
    gt = write_images(tmp_path / 'gt.lmdb', random_images(2, 48))
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_checkpoint(tmp_path / f'{seed}.pth', {'params': ARCH_REGISTRY.get('EDSRVar')(**TINY).state_dict()},
                         {'type': 'EDSRVar', **TINY})
    prepare_uncertainty(tmp_path / '1.pth', gt, lq, maps)
    section = {'name': 'x', 'type': 'PairedImageUncertaintyDataset', 'dataroot_gt': str(gt), 'dataroot_lq': str(lq),
               'dataroot_uncertainty': str(maps), 'io_backend': {'type': 'lmdb'}, 'gt_size': 16, 'use_hflip': True,
               'use_rot': True}
    data = {'type': 'ConcatDataset', 'datasets': [{'type': 'BasicSRDataset', 'phase': 'train', 'scale': 2,
                                                   'dataset': section}]}
    for network, loss, seed, message in (
            ('EDSRTwo', 'UDL', 2, 'are of another network'), ('EDSRVar', 'ESU', 1, 'no loss weighs by its maps'),
            ('EDSRTwo', 'UDL', 1, None)):
        runner = host(tmp_path, network, loss, str(tmp_path / f'{seed}.pth'))
        runner._train_dataloader.update(dataset=data, sampler={'type': 'InfiniteSampler'})  # else it rests each epoch
        if message:
            with pytest.raises(UserError, match=message):
                runner.train()
        else:
            with patch.object(runner.model.generator.var_net, 'forward', side_effect=AssertionError('not needed')):
                runner.train()


def test_checkpoint_that_does_not_fit(tmp_path):
    """mmengine alone would load what fits, which is nothing, and train on."""
    model = basicsr(tmp_path, 1)
    model.save(epoch=-1, current_iter=-1)
    start = str(tmp_path / 'net_g_latest.pth')
    runner = host(tmp_path, 'EDSRVar', 'ESU', start)
    runner.model = UDLRestorer({'type': 'EDSRVar', **TINY, 'num_block': 3})
    with pytest.raises(UserError, match=r"latest\.pth' does not fit generator: EDSRVar: it has num_block: 2"):
        runner.load_or_resume()


def test_resume_that_would_load_nothing(tmp_path):
    """mmengine alone would go on with what it has: fresh weights, or a fresh optimizer."""
    basicsr(tmp_path, 1).save(epoch=-1, current_iter=-1)
    runner = host(tmp_path, 'EDSRVar', 'ESU')
    runner.train()
    good = tmp_path / f'work/iter_{ITERATIONS}.pth'
    runner.save_checkpoint(str(tmp_path), 'best.pth', save_optimizer=False)
    other = torch.load(good, weights_only=False)
    other['state_dict'].pop('generator.conv_first.weight')
    torch.save(other, tmp_path / 'other.pth')
    for name, message in (('net_g_latest.pth', 'holds no state of a training under mmengine'),
                          ('best.pth', 'holds no state of a training under mmengine'),
                          ('other.pth', 'of another network than generator')):
        with pytest.raises(UserError, match=f"{name}' {'is ' * (name == 'other.pth')}{message}"):
            host(tmp_path, 'EDSRVar', 'ESU', str(tmp_path / name), resume=True).train()
    with pytest.raises(UserError, match='of another network than generator, and cannot be resumed: EDSRTwo'):
        host(tmp_path, 'EDSRTwo', 'UDL', str(good), resume=True).train()
    again = host(tmp_path, 'EDSRVar', 'ESU', str(good), resume=True)
    again.train()
    assert again.iter == ITERATIONS


def test_step_2_needs_step_1(tmp_path):
    for more in ({}, {'resume': True}):
        with pytest.raises(UserError, match='load_from: is missing. EDSRTwo starts from a checkpoint of step 1'):
            host(tmp_path, 'EDSRTwo', 'UDL', **more).train()


def test_init_cfg(tmp_path):
    """For engines that take no other checkpoint than their own as load_from."""
    basicsr(tmp_path, 1).save(epoch=-1, current_iter=-1)
    start = str(tmp_path / 'net_g_latest.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': start}
    model = UDLRestorer({'type': 'EDSRTwo', **TINY}, {'type': 'UDL'}, init_cfg=init_cfg)
    model.init_weights()
    wanted, found = model.generator.expand(read_state_dict(start)[0]), model.generator.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with pytest.raises(UserError, match=r"latest\.pth' does not fit generator: EDSRVar: it has num_block: 2"):
        UDLRestorer({'type': 'EDSRVar', **TINY, 'num_block': 3}, init_cfg=init_cfg).init_weights()

    runner = host(tmp_path, 'EDSRTwo', 'UDL')
    runner.model.init_cfg = init_cfg
    runner.train()
    assert runner.iter == ITERATIONS


def test_resume_with_more_ahead(tmp_path):
    """What is ahead of the learning rate is the config's; mmengine alone would keep it still from the old end on."""
    longer = {'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': 2 * ITERATIONS}, 'param_scheduler': [
        {'type': 'MultiStepLR', 'by_epoch': False, 'milestones': [5, 30], 'gamma': 0.1}]}
    host(tmp_path, 'EDSRVar', 'ESU').train()
    runner = host(tmp_path, 'EDSRVar', 'ESU', str(tmp_path / f'work/iter_{ITERATIONS}.pth'), resume=True,
                  experiment_name='longer', **longer)
    runner._train_dataloader.update(sampler={'type': 'InfiniteSampler'})  # else it rests each epoch
    with patch.object(runner.logger, 'warning') as told:
        runner.train()
    assert runner.optim_wrapper.param_groups[0]['lr'] == pytest.approx(1e-2 * 0.5 * 0.1), 'what was is as it was'
    told.assert_any_call(
        'param_scheduler.0: goes on as the config has it: milestones: [5, 30] (in the checkpoint: [5]), gamma: 0.1 (in '
        'the checkpoint: 0.5), end: 40 (in the checkpoint: 20)')


@pytest.mark.parametrize(('generator', 'pixel_loss', 'message'), [
    ({'type': 'EDSRVarr'}, {'type': 'ESU'}, "there is no 'EDSRVarr'"),
    ({'type': 'EDSRVar', **TINY, 'num_foot': 3}, {'type': 'ESU'}, 'num_foot'),
    ({'type': 'EDSRVar', **TINY}, {'type': 'ESUU'}, "pixel_loss: type: there is no 'ESUU'"),
    ({'type': 'EDSRVar', **TINY}, {'type': 'ESU', 'weight': 1}, "pixel_loss: 'weight' is not an option"),
    ({'type': 'EDSRVar', **TINY}, {'type': 'L1Loss', 'reduction': 'none'}, 'pixel_loss: reduction: none'),
    ({'type': 'EDSRTwo', **TINY}, {'type': 'ESU'}, 'pixel_loss: ESU trains the log-variance, and that of generator: E'),
    ({'type': 'EDSR', **TINY}, {'type': 'UDL'}, 'pixel_loss: UDL needs log_var, and generator: EDSR gives none'),
])
def test_what_does_not_fit_is_refused(generator, pixel_loss, message):
    with pytest.raises(UserError, match=message):
        UDLRestorer(generator, pixel_loss)


def test_modes(tmp_path):
    model = UDLRestorer({'type': 'EDSRTwo', **TINY}, {'type': 'UDL'}).eval()
    lq, gt = torch.rand(2, 3, 8, 6), torch.rand(2, 3, 16, 12)
    sr = model(lq)
    assert sr.shape == gt.shape
    loss = model(lq, {'gt': gt}, 'loss')
    assert loss.keys() == {'loss_pix'}
    given = model(lq, {'gt': gt, 'log_var': torch.zeros(gt.shape)}, 'loss')
    assert given['loss_pix'] != loss['loss_pix'], 'cached maps'
    one, two = model(lq, {'gt': gt, 'lq_path': ['a', 'b']}, 'predict')
    assert one.keys() == {'gt', 'lq_path', 'sr'}
    assert two['lq_path'] == 'b'
    assert torch.equal(two['sr'], sr[1])
    model.wants_log_var = True
    assert model(lq, None, 'predict')[1]['log_var'].shape == (3, 16, 12)
    with pytest.raises(ValueError, match="mode is 'tensor', 'loss' or 'predict', not 'x'"):
        model(lq, None, 'x')


def test_compiled():
    """The losses of a model that is not, and compiled once, whatever the files are called."""
    losses = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        model = UDLRestorer({'type': 'EDSRVar', **TINY}, {'type': 'ESU'})
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
        step = torch.compile(model.train_step, backend='eager') if compiled else model.train_step
        losses[compiled] = []
        for number in range(4):
            data = {'inputs': torch.rand(1, 3, 4, 4), 'data_samples': {'gt': torch.rand(1, 3, 8, 8),
                                                                       'lq_path': [f'{number}.png']}}
            with torch._dynamo.config.patch(error_on_recompile=number > 1):
                losses[compiled].append(float(step(data, wrapper)['loss'].detach()))
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


def test_maps_are_drawn(tmp_path):
    """Each `interval`-th of a validation, all of a test, within the limits."""
    model = UDLRestorer({'type': 'EDSRVar', **TINY}, {'type': 'ESU'})
    drawn = []
    runner = SimpleNamespace(model=model, iter=7, visualizer=SimpleNamespace(
        add_image=lambda name, image, step: drawn.append((name, image, step))))
    hook = UncertaintyVisualizationHook(limits=(-1, 4), interval=2)
    hook.before_run(runner)
    for number in range(3):
        outputs = model.eval()(torch.rand(1, 3, 4, 6), {'set': ['Set5'], 'lq_path': [f'a/{number}.png']}, 'predict')
        hook.after_val_iter(runner, number, None, outputs)
    hook.after_test_iter(runner, 1, None, outputs)
    assert [(name, step) for name, _, step in drawn] == [
        ('Set5_0_uncertainty', 7), ('Set5_2_uncertainty', 7), ('Set5_2_uncertainty', 0)]
    expected = uncertainty_picture(outputs[0]['log_var'].numpy(), (-1, 4))
    assert (drawn[-1][1] == expected[..., ::-1]).all()
    for limits, interval in (((4, -1), 1), ((1, 2, 3), 1), (5, 1), (('a', 'b'), 1), (None, 0)):
        with pytest.raises(UserError, match='UncertaintyVisualizationHook: (limits|interval) is'):
            UncertaintyVisualizationHook(limits, interval)
    runner.model = UDLRestorer({'type': 'EDSR', **TINY})
    with pytest.raises(UserError, match='EDSR gives no log_var: delete UncertaintyVisualizationHook'):
        hook.before_run(runner)


def test_metrics_want_something_to_compare_with():
    with pytest.raises(UserError, match='PSNR: data set Set5 has no images to compare with'):
        udl_plugin.integrations.mmengine.PSNR(2).process(None, [{'set': 'Set5', 'sr': torch.rand(3, 4, 4)}])


def test_networks_that_want_certain_sizes():
    swin = {'type': 'SwinIR', 'upscale': 2, 'img_size': 16, 'window_size': 8, 'depths': [1], 'embed_dim': 8,
            'num_heads': [1], 'mlp_ratio': 1, 'upsampler': 'pixelshuffle'}
    model = UDLRestorer({'type': 'WithVariance', 'backbone': swin}).eval()
    model.wants_log_var = True
    sample, = model(torch.rand(1, 3, 9, 11), None, 'predict')
    assert sample['sr'].shape == sample['log_var'].shape == (3, 18, 22)


def test_names():
    """Of the README, and their options."""
    readme = (ROOT / 'README.md').read_text()
    for name in udl_plugin.integrations.mmengine.__all__:
        row = re.search(rf'^\| `{name}` \| mmengine: .*\| (.*) \|$', readme, re.MULTILINE)
        own = [key for key, parameter in inspect.signature(getattr(udl_plugin.integrations.mmengine, name).__init__).parameters.items()
               if key != 'self' and parameter.kind is not parameter.VAR_KEYWORD]
        assert re.findall(r'`(\w+)`', row[1]) == own
    assert set(udl_plugin.integrations.mmengine.__all__) == {'PSNR', 'SSIM', 'BasicSRDataset', 'NetworkCheckpointHook',
                                          'ResumableFSDPStrategy', 'UDLRestorer', 'UncertaintyVisualizationHook'}
