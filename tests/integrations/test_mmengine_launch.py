"""scripts/mm_train.py and mm_test.py, as users run them, and the configs that ship."""
import inspect
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import pytest
import torch
import yaml
from conftest import OPTIONS, TINY, random_images, write_images, write_malicious
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, PARAM_SCHEDULERS, STRATEGIES
from mmengine.runner import FlexibleRunner
from mmengine.runner import Runner as Host
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch import multiprocessing as mp

from udl_plugin.archs.edsr_arch import EDSRVar
from udl_plugin.checkpoints.safe_load import load_checkpoint, load_tensors_only
from udl_plugin.errors import UserError
from udl_plugin.integrations.mmengine import launch
from udl_plugin.integrations.mmengine.checkpoints import can_be_resumed, find_resume_checkpoint
from udl_plugin.integrations.mmengine.configs import section_problems
from udl_plugin.utils import atomic_io
from udl_plugin.utils.plain import to_builtins

CONFIGS = sorted((OPTIONS / 'mmengine').glob('*.py'))
MM = ('-m', 'udl_plugin.integrations.mmengine.launch')
SMALL = ['model.generator.num_feat=8', 'model.generator.num_block=2', 'train_dataloader.batch_size=2',
         'train_dataloader.dataset.dataset.gt_size=24', 'default_hooks.logger.interval=1']
UNSEEN = ['val_cfg=None', 'val_dataloader=None', 'val_evaluator=None', 'default_hooks.checkpoint.save_best=None']
FOUR = ['train_cfg.max_iters=4', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2']


def ok(process):
    assert process.returncode == 0, process.stdout
    return process.stdout


def config(name):
    return OPTIONS / 'mmengine' / f'{name}.py'


def scores(folder):
    """What the evaluator said last: PSNR and SSIM."""
    path, = folder.glob('*/*.json')
    found = json.loads(path.read_text().strip().splitlines()[-1])
    return found['astronaut/PSNR'], found['astronaut/SSIM']


def test_both_steps_and_both_hosts(runner):
    """Step 1 is killed and resumed, step 2 begins with it; either host tests the checkpoints of both alike."""
    command = [sys.executable, *MM, 'train', config('demo_udl_step1'), '--cfg-options', *SMALL]
    more = ['train_cfg.max_iters=500', 'train_cfg.val_interval=1000', 'default_hooks.checkpoint.interval=2']
    work = runner.folder / 'work_dirs/demo_udl_step1'
    with subprocess.Popen([*command, *more], cwd=runner.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as process:
        latest = time.time() + 120
        while not (work / 'last_checkpoint').exists() and time.time() < latest and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -9, process.communicate()[0]
    reached = int(re.search(r'iter_(\d+)', (work / 'last_checkpoint').read_text())[1])
    last = reached + 2
    log = ok(runner.run(*command[1:5], '--resume', '--cfg-options', *SMALL, f'train_cfg.max_iters={last}',
                        f'train_cfg.val_interval={last}', 'default_hooks.checkpoint.interval=2'))
    assert f'resumed epoch: 0, iter: {reached}' in log
    assert f'Iter(train) [{reached + 1:{len(str(last))}d}/{last}]' in log
    assert f'Iter(train) [{reached:{len(str(last))}d}/{last}]' not in log

    step1 = work / f'iter_{last}.pth'
    ok(runner.run(*MM, 'train', config('demo_udl_step2'), '--work-dir', 'step2', '--cfg-options', *SMALL,
                  *FOUR, f'load_from={step1}'))
    assert list((runner.folder / 'step2').glob('*/vis_data/vis_image/astronaut_astronaut_uncertainty_4.png'))
    assert list((runner.folder / 'step2').glob('best_astronaut_PSNR_iter_*.pth'))

    # step 2 under BasicSR, from mmengine's step 1
    ok(runner.train(runner.write_yml('step2', 'demo/train_udl_step2', path__pretrain_network_g=str(step1))))
    for path in (runner.folder / 'step2/iter_4.pth', runner.folder / 'experiments/step2/models/net_g_latest.pth'):
        found = runner.folder / f'test_{path.stem}'
        ok(runner.run(*MM, 'test', config('demo_udl_step2'), path, '--work-dir', found, '--cfg-options',
                      *SMALL))
        log = ok(runner.test(runner.write_yml('test', 'demo/test_udl_step2', path__pretrain_network_g=str(path))))
        wanted = [float(re.search(rf'# {name}: ([\d.]+)', log)[1]) for name in ('psnr', 'ssim')]
        assert scores(found) == pytest.approx(wanted, abs=1e-4)  # of which the log shows four places


@HOOKS.register_module()
class Recorder(Hook):
    """Keeps the losses of this process, and the weights in the end."""

    def __init__(self, folder):
        self.folder, self.losses = folder, []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs['loss'].detach()))

    def after_train(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        weights = dict(model.named_parameters())
        torch.save({'losses': self.losses, 'weights': weights}, f'{self.folder}/{runner.rank}.pth')


PLAIN = """
_base_ = [{base!r}]
custom_hooks = [dict(type='Recorder', folder={folder!r})]
visualizer = None
default_hooks = dict(checkpoint=None)
"""


def run_rank(rank, world_size, path, options, port, work_dir=None, *more):
    import os
    if world_size > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR='127.0.0.1',
                          MASTER_PORT=str(port))
    torch.set_num_threads(1)
    work_dir = work_dir or f'{path}_{rank}_{world_size}'
    assert launch.train([path, '--launcher', 'pytorch' if world_size > 1 else 'none', '--work-dir', work_dir, *more,
                         '--cfg-options', *options]) == 0


def free_port():
    import socket
    with socket.socket() as one:
        one.bind(('127.0.0.1', 0))
        return one.getsockname()[1]


def test_two_processes_are_one_with_twice_the_batch(runner, monkeypatch):
    """The same losses, and the same weights on both. No crops or flips, which each process draws for itself."""
    monkeypatch.chdir(runner.folder)
    section = 'train_dataloader.dataset.dataset'
    options = [*SMALL[:2], f'{section}.gt_size=120', f'{section}.use_hflip=False', f'{section}.use_rot=False',
               'train_dataloader.num_workers=0', 'train_cfg.max_iters=4', 'train_cfg.val_interval=100']
    found = {}
    for world_size in (1, 2):
        folder = runner.folder / str(world_size)
        folder.mkdir()
        path = folder / 'config.py'
        path.write_text(PLAIN.format(base=str(config('demo_udl_step1')), folder=str(folder)))
        batch = [f'train_dataloader.batch_size={4 // world_size}']
        mp.spawn(run_rank, (world_size, str(path), options + batch, free_port()), world_size)
        found[world_size] = [torch.load(folder / f'{rank}.pth') for rank in range(world_size)]
    (one,), (first, second) = found[1], found[2]
    assert one['losses'][0] > 1.01 * one['losses'][-1]
    assert first['losses'] != second['losses'], 'the processes must see other data'
    for expected, *both in zip(one['losses'], first['losses'], second['losses']):
        assert sum(both) / 2 == pytest.approx(expected, rel=1e-5)
    for name, value in first['weights'].items():
        assert torch.equal(value, second['weights'][name]), name
        assert torch.allclose(value, one['weights'][name], atol=1e-5), name


DDP = """
_base_ = [{base!r}]
val_dataloader = dict(dataset=dict(dataset=dict(dataroot_gt='gt', dataroot_lq='lq')))
custom_hooks = [dict(type='NetworkCheckpointHook'), dict(type='Recorder', folder=None)]
"""
FSDP = DDP + """
runner_type = 'FlexibleRunner'
strategy = dict(type='ResumableFSDPStrategy', state_dict_cfg='full', model_wrapper=dict(use_orig_params=True,
    auto_wrap_policy=dict(type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy', min_num_params=1000)))
"""
RUNS = {'ddp': ('ddp', 4), 'fsdp': ('fsdp', 2), 'resumed': ('fsdp', 4)}


def test_fsdp(runner, monkeypatch):
    """Weights that are spread give what DDP gives, checkpoints for everyone, and can be resumed."""
    monkeypatch.chdir(runner.folder)
    for engine, text in (('ddp', DDP), ('fsdp', FSDP)):
        (runner.folder / f'{engine}.py').write_text(text.format(base=str(config('demo_udl_step1'))))
    with (runner.folder / 'ddp.py').open('a') as file:
        file.write("custom_hooks += [dict(type='UncertaintyVisualizationHook')]")
    for name, size in (('gt', 48), ('lq', 24)):
        write_images(runner.folder / name, random_images(2, size))
    start = runner.folder / 'start.pth'
    torch.save({'params': EDSRVar(**TINY).state_dict()}, start)
    options = [*SMALL, *FOUR[1:], f'load_from={start}']
    for name, (engine, iterations) in RUNS.items():
        (runner.folder / name).mkdir()
        mp.spawn(run_rank, (2, str(runner.folder / f'{engine}.py'), [
            *options, f'train_cfg.max_iters={iterations}', f'custom_hooks.1.folder={runner.folder / name}'],
            free_port(), str(runner.folder / f'work_{engine}'), *['--resume'] * (name == 'resumed')), 2)

    drawn = runner.folder.glob('work_ddp/*/vis_data/vis_image/*')
    assert sorted(path.name for path in drawn) == [
        f'astronaut_image_{image}_uncertainty_{step}.png' for image in range(2) for step in (2, 4)], 'of both processes'
    ddp, fsdp = (load_checkpoint(runner.folder / f'work_{engine}/iter_2.pth') for engine in ('ddp', 'fsdp'))
    assert fsdp['network_g'] == ddp['network_g']
    assert fsdp['params'].keys() == ddp['params'].keys()
    whole, first, second = (torch.load(runner.folder / name / '0.pth')['losses'] for name in RUNS)
    assert all(torch.equal(value, ddp['params'][name]) for name, value in fsdp['params'].items())
    assert len(whole) == 4
    assert first == whole[:2]
    assert len(second) == 2
    assert launch.test([str(runner.folder / 'fsdp.py'), str(runner.folder / 'work_fsdp/iter_2.pth'), '--cfg-options',
                        *SMALL]) == 0, 'one process tests what two trained'
    if not hasattr(_InfiniteDataloaderIterator, 'skip_iter'):  # the fork passes over images unread: other crops follow
        assert second[0] == whole[2], 'the same weights, and the same place in the data'
        # near, not equal: of Adam's moments, torch on the CPU (not on GPUs) saves one for the other
        assert second[1] == pytest.approx(whole[3], rel=0.2)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config(path, monkeypatch, tmp_path):
    """It loads, prints and builds, and nothing in it is left unread."""
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(path)
    assert not list(section_problems(cfg))
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()
    host = FlexibleRunner if cfg.get('runner_type') == 'FlexibleRunner' else Host
    read = inspect.signature(host.__init__).parameters.keys() | {'custom_imports', 'compile', 'runner_type'}
    assert set(cfg) - read <= {'scale'}, 'a variable of the base'
    model = MODELS.build({**cfg.model, 'generator': {**cfg.model.generator, 'num_block': 1}})  # so much sooner
    assert model.network_g['upscale'] == cfg.scale
    spread = cfg.get('strategy')
    wrapper = {**cfg.optim_wrapper, 'type': 'OptimWrapper'} if spread else cfg.optim_wrapper
    optimizer = build_optim_wrapper(model, wrapper)
    assert not spread or spread.type in STRATEGIES
    PARAM_SCHEDULERS.build(cfg.param_scheduler, default_args={'optimizer': optimizer})
    for hook in (*cfg.default_hooks.values(), *cfg.custom_hooks):
        HOOKS.build(hook)
    for metric in cfg.val_evaluator:
        assert METRICS.build(metric).crop_border == cfg.scale
    for section in (cfg.train_dataloader.dataset, cfg.val_dataloader.dataset):
        for dataset in section.get('datasets', [section]):
            with pytest.raises(UserError, match='there is no folder') as caught:
                DATASETS.build(dataset)
            assert all('there is no folder' in message for message in caught.value.messages)
            assert dataset.scale == cfg.scale


@pytest.mark.parametrize(('name', 'source'), [
    ('edsr_s_x4_udl_step1', 'train_udl_step1'), ('edsr_s_x4_udl_step2', 'train_udl_step2'),
    ('demo_udl_step1', 'demo/train_udl_step1'), ('demo_udl_step2', 'demo/train_udl_step2')])
def test_configs_are_those_of_basicsr(name, source):
    cfg, opt = Config.fromfile(config(name)), yaml.safe_load((OPTIONS / f'{source}.yml').read_text())
    train, data = opt['train'], opt['datasets']['train']
    assert to_builtins(cfg.model.generator.to_dict()) == opt['network_g']
    assert cfg.model.pixel_loss.type == train['pixel_opt']['type']
    assert cfg.optim_wrapper.optimizer.lr == train['optim_g']['lr']
    assert list(cfg.optim_wrapper.optimizer.betas) == train['optim_g']['betas']
    assert cfg.train_cfg.max_iters == train['total_iter']
    if 'milestones' in train['scheduler']:
        assert cfg.param_scheduler.milestones == train['scheduler']['milestones']
        assert cfg.param_scheduler.gamma == train['scheduler']['gamma']
    else:
        assert cfg.param_scheduler.T_max == train['scheduler']['periods'][0]
        assert cfg.param_scheduler.eta_min == train['scheduler']['eta_min']
    ours = cfg.train_dataloader.dataset.dataset
    assert {key: data[key] for key in ours} == ours
    assert cfg.train_dataloader.batch_size == data['batch_size_per_gpu']
    averaged = [hook for hook in cfg.custom_hooks if hook.type == 'EMAHook']
    assert len(averaged) == ('demo' not in name), 'in which the yml has none'


@pytest.mark.parametrize(('arguments', 'message'), [
    (['nowhere.py'], "config: there is no file 'nowhere.py'"),
    ([config('demo_udl_step1'), '--resume', 'x.pth'], "--resume: there is no file 'x.pth'"),
    ([config('demo_udl_step1'), '--resume', 'http://127.0.0.1/x.pth'], "--resume: 'http://127.0.0.1/x.pth' is no file"),
    ([config('demo_udl_step1'), '--cfg-options', 'load_from=s3://x.pth'], "load_from: 's3://x.pth' is no file"),
    ([config('demo_udl_step1'), '--cfg-options', 'load_from=/'], "load_from: '/' is a folder"),
    ([config('demo_udl_step2')], "load_from: there is no file 'work_dirs/demo_udl_step1/iter_1200.pth'"),
    ([config('demo_udl_step1'), '--cfg-options', 'model.pixel_loss.weight=3'], "pixel_loss: 'weight' is not an option"),
    ([config('demo_udl_step1')], 'there is no folder'),
    ([OPTIONS / 'train_udl_step1.yml'], 'udl-train -opt takes a yml'),
    *(([config('demo_udl_step1'), '--cfg-options', option], message) for option, message in (
        ('train_cfg.max_iter=4', "train_cfg: 'max_iter' is not an option of IterBasedTrainLoop (did you mean 'max_ite"),
        ('optim_wrapper.accumulative_count=2', "optim_wrapper: 'accumulative_count' is not an option of OptimWrapper"),
        ('optim_wrapper.optimizer.lrr=1', "optim_wrapper.optimizer: 'lrr' is not an option of Adam"),
        ('optim_wrapper.optimizer.type=Adm', "optim_wrapper.optimizer: type: there is no 'Adm'"),
        ('model.generatr.num_feat=8', "model: 'generatr' is not an option of UDLRestorer"),
        ('default_hooks.chekpoint.interval=1', 'default_hooks.chekpoint: type is missing'),
        ('default_hooks.checkpoint.intervl=1', "'intervl' is not an option of CheckpointHook (did you mean 'interval'"),
        ('train_dataloader.dataset.type=BasicSRData', "train_dataloader.dataset: type: there is no 'BasicSRData'"),
        ('test_dataloader.dataset.type=Foo', "test_dataloader.dataset: type: there is no 'Foo'"),
        ('custom_hooks.1.limit=1', "custom_hooks.1: 'limit' is not an option of UncertaintyVisualizationHook"),
        ('custom_hooks.7.limit=1', '--cfg-options: cannot be put into'),
        ('custom_hooks.1=x', '--cfg-options: cannot be put into'),
        ('param_scheduler.T_mx=1', "'T_mx' is not an option of CosineAnnealingLR (did you mean 'T_max'?)"),
        ('param_scheduler.type=StepLR', 'param_scheduler.0: step_size is missing, an option of StepLR'),
        ('test_evaluator.0.crop=1', "test_evaluator.0: 'crop' is not an option of PSNR"),
        ('train_dataloader.batch_sise=1', "'batch_sise' is not an option of a loader (did you mean 'batch_size'?)"),
        ('train_dataloader.batch_size=0', 'train_dataloader: batch_size is a number of images, not 0'),
        ('val_dataloader.sampler.type=Foo', "val_dataloader.sampler: type: there is no 'Foo'"),
        ('val_dataloader.sampler.shufle=1', "val_dataloader.sampler: 'shufle' is not an option of DefaultSampler"),
        ('train_dataloader.collate_fn.type=pseudo_collate', "collate_fn: write dict(type='default_collate')"),
        ('optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper: type: AmpOptimWrapper: mmengine has it on GPUs alone'),
        ('optim_wrapper=None', 'optim_wrapper: is missing.'),
        ('strategy.type=DDPStrategy', 'strategy: type: DDPStrategy is for several processes'),
        ('strategy.type=SingleDeviceStrategy', "strategy: is read by runner_type = 'FlexibleRunner', and not by R"))),
    ([config('demo_udl_step1'), '--amp'], '--amp: mmengine has it on GPUs alone'),
    ([config('demo_udl_step1'), '--auto-scale-lr'], 'has no auto_scale_lr'),
    ([config('demo_udl_step1'), '--launcher', 'pytorch'], 'RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set: sta'),
    ([config('demo_udl_step1'), '--launcher', 'slurm'], 'is not set: start the processes with srun'),
])
def test_wrong_input_is_one_line(arguments, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    assert launch.train([str(argument) for argument in arguments]) == 2
    assert message in capfd.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(('lines', 'message'), [
    ('train_cgf = dict(max_iters=2)', "train_cgf: nothing reads it (did you mean 'train_cfg'?)"),
    ('defualt_hooks = dict()', "defualt_hooks: nothing reads it (did you mean 'default_hooks'?)"),
    ("custom_hooks = [dict(kind='NetworkCheckpointHook')]", 'custom_hooks.0: type is missing'),
    ("val_evaluator = [dict(type='PSNR')]", 'val_evaluator.0: crop_border is missing, an option of PSNR'),
    ("val_evaluator = dict(_delete_=True, type='Evaluator', metrics=[dict(type='PSN')])",
     "val_evaluator.0: type: there is no 'PSN' in mmengine's metrics (did you mean 'PSNR'?)"),
    ("test_dataloader = dict(_delete_=True, dataset=dict(type='ConcatDataset', datasets=[]),\n"
     "collate_fn=dict(type='default_collate'))", 'test_dataloader: sampler is missing'),
    ("test_dataloader = dict(_delete_=True, dataset=dict(type='ConcatDataset', datasets=[]),\n"
     "sampler=dict(type='DefaultSampler'))", "test_dataloader: collate_fn: write dict(type='default_collate')"),
    ("test_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets=[dict(type='Foo')]))",
     "test_dataloader.dataset.datasets.0: type: there is no 'Foo'"),
    ("strategy = dict(type='DeepSpeedStrategy')\nrunner_type = 'FlexibleRunner'", 'needs deepspeed: pip install'),
    ("_base_ = ['nowhere.py']", 'nowhere.py'),
    ("optim_wrapper = dict(optimizer=dict(lr='4e-4'))", "optim_wrapper.optimizer: lr: '4e-4' is a text; write 4e-4."),
])
def test_wrong_config_is_one_line(lines, message, tmp_path, monkeypatch, capfd):
    base = f"_base_ = ['{config('demo_udl_step1')}']\nborder = 2\n" * ('_base_' not in lines)
    (tmp_path / 'own.py').write_text(base + lines)
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '0')
    monkeypatch.setattr(launch.importlib.util, 'find_spec', lambda name: None)
    assert launch.train([str(tmp_path / 'own.py'), '--launcher', 'pytorch']) == 2
    assert message in last_line(capfd)


def test_options_without_a_value(capfd):
    with pytest.raises(SystemExit) as ended:
        launch.train([str(config('demo_udl_step1')), '--cfg-options', 'foo'])
    assert ended.value.code == 2
    assert "--cfg-options: 'foo' is not KEY=VALUE" in last_line(capfd)


def last_line(capfd):
    return capfd.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize('key', ['scale', 'trainn_cfg.max_iters'])
def test_options_that_nothing_reads(key, capfd):
    assert launch.train([str(config('demo_udl_step1')), '--cfg-options', f'{key}=4']) == 2
    assert f"--cfg-options: '{key}' is not an option: a runner reads" in last_line(capfd)


def test_checkpoints_from_strangers(runner, monkeypatch, capfd):
    """Nothing in them runs: not the pickle, not the config that mmengine keeps in them as text."""
    monkeypatch.chdir(runner.folder)
    path = str(config('demo_udl_step1'))
    write_malicious(runner.folder / 'x.pth')
    for command, *arguments in ((launch.train, path, '--resume', 'x.pth'), (launch.test, path, 'x.pth'),
                                (launch.train, path, '--cfg-options', 'load_from=x.pth')):
        assert command(arguments) == 2
        assert "'x.pth' cannot be read as a checkpoint of tensors" in last_line(capfd)

    assert launch.train([path, '--cfg-options', *SMALL, *UNSEEN, *FOUR]) == 0
    content = load_tensors_only('work_dirs/demo_udl_step1/iter_4.pth')
    content['meta']['config'] = "open('payload', 'w').write('it ran')"
    content['meta']['iter'] = 3
    torch.save(content, 'config.pth')
    resume = [path, '--resume', 'config.pth', '--cfg-options', *SMALL, *UNSEEN, *FOUR, 'work_dir=more']
    assert launch.train(resume) == 0
    assert not Path('payload').exists()
    assert Path('more/iter_4.pth').exists()

    with monkeypatch.context() as without_ours:
        without_ours.setattr(launch, 'load_file', lambda filename, map_location=None: load_tensors_only(filename))
        launch.train(resume)
    assert Path('payload').exists(), 'so it is ours that keeps it from running'


def test_resume_of_nothing_begins_with_load_from(runner, monkeypatch, capfd):
    """The same command line starts step 2 and goes on with it."""
    monkeypatch.chdir(runner.folder)
    start = runner.folder / 'start.pth'
    torch.save({'params': EDSRVar(**TINY).state_dict()}, start)
    command = [str(config('demo_udl_step2')), '--resume', '--cfg-options', *SMALL, *UNSEEN, f'load_from={start}']
    assert launch.train([*command, 'train_cfg.max_iters=2', *FOUR[1:]]) == 0
    assert f'Load checkpoint from {start}' in capfd.readouterr().out
    assert launch.train([*command, *FOUR]) == 0
    assert 'resumed epoch: 0, iter: 2' in capfd.readouterr().out


def test_resume_after_a_kill(runner, monkeypatch, capfd):
    """From what is whole in this folder, wherever it was before: nothing that was whole is ever torn."""
    monkeypatch.chdir(runner.folder)
    command = [str(config('demo_udl_step1')), '--cfg-options', *SMALL, *UNSEEN]
    work, moved = (runner.folder / name for name in ('work_dirs/demo_udl_step1', 'moved'))
    assert launch.train([*command, *FOUR]) == 0

    def killed(handle):
        raise KeyboardInterrupt

    before = (work / 'iter_4.pth').read_bytes()
    with monkeypatch.context() as kill, pytest.raises(KeyboardInterrupt):
        kill.setattr(atomic_io.os, 'fsync', killed)
        launch.train([*command, *FOUR, '--resume', str(work / 'iter_2.pth')])
    assert (work / 'iter_4.pth').read_bytes() == before

    work.rename(moved)
    (moved / 'iter_4.pth').write_bytes(before[:len(before) // 2])
    (moved / 'last_checkpoint').write_text('')
    (moved / '.iter_4.pth.1.tmp').touch()
    torch.save({'params': {}}, moved / 'iter_6.pth')
    capfd.readouterr()
    resume = [*command, *FOUR, 'experiment_name=moved', '--resume', '--work-dir', str(moved)]
    assert launch.train(resume) == 0
    out, err = capfd.readouterr()
    assert f"passed over: '{moved / 'iter_4.pth'}' cannot be read" in err
    assert f"passed over: '{moved / 'iter_6.pth'}' holds no state of a training" in err
    assert 'resumed epoch: 0, iter: 2' in out
    assert not work.exists()
    assert not list(moved.glob('.*'))
    assert can_be_resumed(load_tensors_only(moved / 'iter_4.pth'))

    for number in (2, 4):
        (moved / f'iter_{number}.pth').write_bytes(before[:100])
    assert launch.train(resume) == 2
    assert "has no checkpoint iter_N.pth to go on from ('" in last_line(capfd)
    for number in (2, 4, 6):
        (moved / f'iter_{number}.pth').unlink()
    assert launch.train(resume) == 2
    assert 'iter_4.pth). Name one with --resume CHECKPOINT' in last_line(capfd).replace("'", '')
    (moved / 'iter_6.pth').mkdir()
    (moved / 'iter_8.pth').mkdir()
    (moved / 'last_checkpoint').write_text('elsewhere/iter_6.pth')
    found, passed_over = find_resume_checkpoint(Config({'work_dir': str(moved), 'default_hooks': {'checkpoint': {'by_epoch': False}}}))
    assert found == str(moved / 'iter_6.pth'), 'of DeepSpeed'
    assert passed_over == [f"'{moved / 'iter_8.pth'}' is not what last_checkpoint names."]


@pytest.mark.parametrize(('options', 'message'), [
    (['default_hooks.checkpoint.save_best=astronaut/PSN'],
     "save_best: 'astronaut/PSN' is not measured (did you mean 'astronaut/PSNR'?): validation gives astronaut/PSNR, a"),
    (['val_evaluator.0.prefix=x'], 'validation gives x/astronaut/PSNR, astronaut/SSIM.'),
    (['model.pixel_loss=None'], 'model: pixel_loss: is missing'),
    (['model.generator.type=EDSR', 'model.pixel_loss.type=L1Loss'], 'EDSR gives no log_var'),
])
def test_parts_that_do_not_fit(options, message, runner, monkeypatch, capfd):
    monkeypatch.chdir(runner.folder)
    assert launch.train([str(config('demo_udl_step1')), '--cfg-options', *SMALL, *options]) == 2
    assert message in last_line(capfd)
    assert not list(runner.folder.glob('work_dirs/*/*.pth'))


def test_who_tells(runner, monkeypatch, capfd):
    """Of several processes the first tells what all meet, and each what it may have met alone."""
    monkeypatch.chdir(runner.folder)
    monkeypatch.setattr(launch, 'is_first', lambda launcher: False)
    command = [str(config('demo_udl_step1')), '--cfg-options', *SMALL, 'train_dataloader.dataset.dataset.gt_size=200']
    assert launch.train([*command, 'train_cfg.max_iter=4']) == 2
    assert not capfd.readouterr().err
    assert launch.train([*command, *UNSEEN, 'train_dataloader.num_workers=0']) == 2
    assert '200' in last_line(capfd)


def test_bad_record(runner, monkeypatch):
    """A loading process finds it: one line, without that process' traceback; or it is skipped."""
    monkeypatch.chdir(runner.folder)
    spoilt = write_images(runner.folder / 'spoilt.lmdb', random_images(2, 48))
    write_images(runner.folder / 'lq.lmdb', random_images(2, 24))
    with lmdb.open(str(spoilt)) as env, env.begin(write=True) as txn:
        txn.put(b'image_0', b'not an image')
    data = 'train_dataloader.dataset.dataset'
    command = [str(config('demo_udl_step1')), '--cfg-options', *SMALL, *UNSEEN, *FOUR,
               f'{data}.dataroot_gt=spoilt.lmdb', f'{data}.dataroot_lq=lq.lmdb']
    process = runner.run(*MM, 'train', *command)
    assert process.returncode == 2
    told = process.stdout.strip().splitlines()[-1]
    assert 'spoilt.lmdb' in told
    assert 'image_0' in told
    assert 'Traceback' not in process.stdout
    assert launch.train([*command, f'{data}.on_bad_record=skip']) == 0
    logs = [path.read_text() for path in runner.folder.glob('work_dirs/demo_udl_step1/*/*.log')]
    assert any("Passed over: 'spoilt.lmdb': 'image_0" in log for log in logs), logs


def test_tensors_of_mmengine_without_mmengine(runner, monkeypatch):
    """What it writes into its checkpoints besides tensors is read, and not executed, where it is not installed."""
    monkeypatch.chdir(runner.folder)
    assert launch.train([str(config('demo_udl_step1')), '--cfg-options', *SMALL, *UNSEEN, *FOUR]) == 0
    code = ("import sys; sys.modules['mmengine'] = None; from udl_plugin.checkpoints.state_dict import load_tensors;"
            "print(sorted(load_tensors('work_dirs/demo_udl_step1/iter_4.pth')))")
    assert ok(subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             check=False)).strip().splitlines()[-1] == "['network_g', 'params']"


def test_without_mmengine(tmp_path):
    """All of BasicSR's side works, and ours says what to install."""
    code = ("import sys; sys.modules['mmengine'] = None; import udl_plugin.models, udl_plugin.train;"
            'import udl_plugin.cli.upscale; import udl_plugin.mm')
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False, cwd=tmp_path)
    last = process.stderr.strip().splitlines()[-1]
    assert "udl_plugin.mm needs mmengine: pip install 'udl_plugin[mm]'" in last
    assert 'onedl-mmengine' in last
    assert TINY
