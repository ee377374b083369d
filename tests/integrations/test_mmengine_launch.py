"""The mmengine launcher as users run it, and the configs that ship."""
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest
import torch
import yaml
from conftest import OPTIONS, TINY, Runner, random_images, write_images, write_malicious
from forked_python import run_module
from mmengine import runner as mmengine_runner
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, PARAM_SCHEDULERS, STRATEGIES
from mmengine.runner.loops import _InfiniteDataloaderIterator
from mmengine.utils import ManagerMixin
from torch import multiprocessing as mp

from udl_plugin.archs.edsr_arch import EDSRVar
from udl_plugin.checkpoints.safe_load import load_checkpoint, load_tensors_only
from udl_plugin.cli import mm
from udl_plugin.errors import UserError
from udl_plugin.integrations.mmengine import launch
from udl_plugin.integrations.mmengine.checkpoints import can_be_resumed, find_last_checkpoint
from udl_plugin.utils.plain import to_builtins

CONFIGS = sorted((OPTIONS / 'mmengine').glob('*.py'))
STEP1, STEP2 = (str(OPTIONS / 'mmengine' / f'demo_udl_step{step}.py') for step in (1, 2))
DATA = 'train_dataloader.dataset.dataset'
SMALL = ['model.generator.num_feat=8', 'model.generator.num_block=2', 'train_dataloader.batch_size=2',
         f'{DATA}.gt_size=24', 'default_hooks.logger.interval=1', 'train_cfg.val_interval=2',
         'default_hooks.checkpoint.interval=2', 'train_cfg.max_iters=4']
NO_VALIDATION = ['val_cfg=None', 'val_dataloader=None', 'val_evaluator=None',
                 'default_hooks.checkpoint.save_best=None']
# onedl-mmengine skips images without reading them after a resume, so that other crops follow
RESUME_IS_EXACT = not hasattr(_InfiniteDataloaderIterator, 'skip_iter')

pytestmark = pytest.mark.filterwarnings('ignore:Detected call of `scheduler.step')


@pytest.fixture
def folder(runner, monkeypatch):
    """The current folder, with the demo's data."""
    monkeypatch.chdir(runner.folder)
    return runner.folder


def train(*options, config=STEP1, arguments=()):
    """Trains the demo's config with a small network for 4 iterations; returns the exit status."""
    forget_runs()
    return mm.main(['train', config, *arguments, '--cfg-options', *SMALL, *map(str, options)])


def forget_runs():
    """mmengine identifies the runs of a process by the second of their start; tests are faster."""
    for cls in ManagerMixin.__subclasses__():
        cls._instance_dict.clear()


def last_line(capfd):
    return capfd.readouterr().err.strip().splitlines()[-1]


KILLED = """
import os, signal, sys
from udl_plugin.cli import mm

def fsync(handle, fsync=os.fsync):
    if os.path.exists('work_dirs/demo_udl_step1/last_checkpoint'):  # a checkpoint is complete: this is the next one
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(handle)

os.fsync = fsync
mm.main(sys.argv[1:])
"""


def test_killed_training_resumes_exactly(folder):
    """SIGKILL while a checkpoint is written; the folder is moved; `--resume` ends with the weights of an undisturbed
    training."""
    def run(module, *command):  # all in processes of their own, with the same number of threads
        return run_module(folder, module, *command, '--cfg-options', *SMALL, *NO_VALIDATION)

    (folder / 'killed.py').write_text(KILLED)
    killed = run('killed', 'train', STEP1)
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    moved = Path('work_dirs/demo_udl_step1').rename('moved')
    assert list(moved.glob('.iter_4.pth.*'))
    assert not (moved / 'iter_4.pth').exists()

    command = ['udl_plugin.integrations.mmengine.launch', 'train', STEP1]
    assert 'resumed epoch: 0, iter: 2' in run(*command, '--resume', '--work-dir', str(moved)).stdout
    assert not list(moved.glob('.*'))
    assert run(*command).returncode == 0
    resumed, whole = (torch.load(path / 'iter_4.pth', weights_only=False)
                      for path in (moved, Path('work_dirs/demo_udl_step1')))
    assert can_be_resumed(load_tensors_only(moved / 'iter_4.pth'))
    if RESUME_IS_EXACT:
        for name, value in whole['state_dict'].items():
            assert torch.equal(value, resumed['state_dict'][name]), name


def test_step_2_and_a_test_in_both_frameworks(folder, runner):
    """Step 2 starts from step 1; mmengine and BasicSR measure the same PSNR and SSIM for its checkpoint."""
    assert train(*NO_VALIDATION, 'train_cfg.max_iters=2') == 0
    step1, step2 = folder / 'work_dirs/demo_udl_step1/iter_2.pth', folder / 'step2'
    assert train(f'load_from={step1}', config=STEP2, arguments=['--work-dir', str(step2)]) == 0
    assert list(step2.glob('*/vis_data/vis_image/astronaut_astronaut_expected_error_4.png'))
    assert list(step2.glob('best_astronaut_PSNR_iter_*.pth'))

    forget_runs()
    checkpoint = step2 / 'iter_4.pth'
    assert mm.main(['test', STEP2, str(checkpoint), '--work-dir', 'tested', '--cfg-options', *SMALL[:2]]) == 0
    path, = Path('tested').glob('*/*.json')
    scores = json.loads(path.read_text().strip().splitlines()[-1])
    process = runner.test(runner.write_yml('test', 'demo/test_udl_step2', path__pretrain_network_g=str(checkpoint)))
    assert process.returncode == 0, process.stdout
    for name in ('psnr', 'ssim'):
        expected = float(re.search(rf'# {name}: ([\d.]+)', process.stdout)[1])
        assert scores[f'astronaut/{name.upper()}'] == pytest.approx(expected, abs=1e-4)  # the log has four digits


@HOOKS.register_module()
class Recorder(Hook):
    """Writes the losses of this process, and the weights at the end, to FOLDER/RANK.pth."""

    def __init__(self, folder):
        self.folder, self.losses = folder, []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs['loss'].detach()))

    def after_train(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        Path(self.folder).mkdir(exist_ok=True)
        torch.save({'losses': self.losses, 'weights': dict(model.named_parameters())},
                   f'{self.folder}/{runner.rank}.pth')


# mmengine's own default wrapper requires GPUs
PLAIN = """
_base_ = [{base!r}]
custom_hooks = [dict(type='NetworkCheckpointHook'), dict(type='Recorder', folder=None)]
visualizer = None
default_hooks = dict(checkpoint=None)
model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
"""
DDP = """
_base_ = [{base!r}]
val_dataloader = dict(dataset=dict(dataset=dict(dataroot_gt='gt', dataroot_lq='lq')))
custom_hooks = [dict(type='NetworkCheckpointHook'), dict(type='Recorder', folder=None)]
model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
"""
FSDP = DDP.replace("model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)", """
runner_type = 'FlexibleRunner'
strategy = dict(type='ResumableFSDPStrategy', state_dict_cfg='full', model_wrapper=dict(
    use_orig_params=True, device_id='cpu',
    auto_wrap_policy=dict(type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy', min_num_params=1000)))
""")
# no crops or flips, which each process draws for itself
WHOLE_IMAGES = [*SMALL[:2], f'{DATA}.gt_size=120', f'{DATA}.use_hflip=False', f'{DATA}.use_rot=False',
                'train_cfg.max_iters=4', 'train_cfg.val_interval=100']


def command_of(name, config, *options, resume=()):
    return ['train', f'{config}.py', *resume, '--work-dir', f'work_{config}', '--cfg-options', *options,
            f'custom_hooks.1.folder={name}']


def run_rank(rank, folder, commands):
    """What each of two processes runs: several trainings, one after the other."""
    os.chdir(folder)
    torch.set_num_threads(1)
    for port, command in commands:
        forget_runs()
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
                          MASTER_PORT=str(port))
        torch.distributed.init_process_group('gloo')  # mmengine's own launcher requires GPUs
        assert mm.main([*command[:2], '--launcher', 'pytorch', *command[2:]]) == 0


def free_port():
    with socket.socket() as one:
        one.bind(('127.0.0.1', 0))
        return one.getsockname()[1]


@pytest.fixture(scope='module')
def distributed(tmp_path_factory, small_data):
    """A folder with what two processes trained: `NAME/RANK.pth` of Recorder, `work_ENGINE/`."""
    folder = Runner(tmp_path_factory.mktemp('distributed'), small_data).folder
    for name, text in (('plain', PLAIN), ('ddp', DDP), ('fsdp', FSDP)):
        (folder / f'{name}.py').write_text(text.format(base=STEP1))
    for name, size in (('gt', 48), ('lq', 24)):
        write_images(folder / name, random_images(2, size))
    torch.manual_seed(0)
    torch.save({'params': EDSRVar(**TINY).state_dict()}, folder / 'start.pth')
    options = [*SMALL, 'load_from=start.pth']
    commands = [
        command_of('two', 'plain', *WHOLE_IMAGES, 'train_dataloader.batch_size=2'),
        command_of('ddp', 'ddp', *options),
        command_of('fsdp', 'fsdp', *options, 'train_cfg.max_iters=2'),
        command_of('resumed', 'fsdp', *options, resume=['--resume']),
    ]
    mp.spawn(run_rank, (str(folder), [(free_port(), command) for command in commands]), 2)
    return folder


def test_two_processes_train_like_one_with_twice_the_batch(distributed, monkeypatch):
    monkeypatch.chdir(distributed)
    assert mm.main(command_of('one', 'plain', *WHOLE_IMAGES, 'train_dataloader.batch_size=4')) == 0
    one, first, second = (torch.load(path) for path in ('one/0.pth', 'two/0.pth', 'two/1.pth'))
    assert one['losses'][0] > 1.01 * one['losses'][-1]
    assert first['losses'] != second['losses'], 'the processes must see other data'
    for expected, *both in zip(one['losses'], first['losses'], second['losses']):
        assert sum(both) / 2 == pytest.approx(expected, rel=1e-5)
    for name, value in first['weights'].items():
        assert torch.equal(value, second['weights'][name]), name
        assert torch.allclose(value, one['weights'][name], atol=1e-5), name


def test_fsdp(distributed, monkeypatch):
    """Sharded weights give the results of DDP and complete checkpoints, and can be resumed."""
    monkeypatch.chdir(distributed)
    ddp, fsdp = (load_checkpoint(f'work_{engine}/iter_2.pth') for engine in ('ddp', 'fsdp'))
    assert fsdp['network_g'] == ddp['network_g']
    assert fsdp['params'].keys() == ddp['params'].keys()
    assert all(torch.equal(value, ddp['params'][name]) for name, value in fsdp['params'].items())
    whole, first, second = (torch.load(f'{name}/0.pth')['losses'] for name in ('ddp', 'fsdp', 'resumed'))
    assert len(whole) == 4
    assert first == whole[:2]
    assert len(second) == 2
    if RESUME_IS_EXACT:
        assert second[0] == whole[2], 'the same weights, and the same position in the data'
        # close, not equal: on the CPU (not on GPUs), torch saves one of Adam's moments for the other
        assert second[1] == pytest.approx(whole[3], rel=0.2)
    assert mm.main(['test', 'fsdp.py', 'work_fsdp/iter_2.pth', '--cfg-options', *SMALL[:2]]) == 0, 'in one process'


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config(path, monkeypatch, tmp_path):
    """It loads, prints and builds, and the runner reads every name in it."""
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(path)
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()
    runner = getattr(mmengine_runner, cfg.get('runner_type', 'Runner'))
    read = inspect.signature(runner.__init__).parameters.keys() | {'custom_imports', 'compile', 'runner_type'}
    assert set(cfg) - read <= {'scale'}, 'a variable of the base'
    model = MODELS.build({**cfg.model, 'generator': {**cfg.model.generator, 'num_block': 1}})  # for speed
    assert model.network_g['upscale'] == cfg.scale
    strategy = cfg.get('strategy')
    optimizer = build_optim_wrapper(model, {**cfg.optim_wrapper, 'type': 'OptimWrapper'} if strategy else
                                    cfg.optim_wrapper)
    assert not strategy or strategy.type in STRATEGIES
    PARAM_SCHEDULERS.build(cfg.param_scheduler, default_args={'optimizer': optimizer})
    for hook in (*cfg.default_hooks.values(), *cfg.custom_hooks):
        HOOKS.build(hook)
    for metric in cfg.val_evaluator:
        assert METRICS.build(metric).options['crop_border'] == cfg.scale
    for section in (cfg.train_dataloader.dataset, cfg.val_dataloader.dataset):
        for dataset in section.get('datasets', [section]):
            with pytest.raises(UserError, match='there is no folder') as caught:
                DATASETS.build(dataset)
            assert all('there is no folder' in message for message in caught.value.messages)
            assert dataset.scale == cfg.scale


@pytest.mark.parametrize(('name', 'source'), [
    ('edsr_s_x4_udl_step1', 'train_udl_step1'), ('edsr_s_x4_udl_step2', 'train_udl_step2'),
    ('edsr_s_x4_udl_one_run', 'train_udl_one_run'),
    ('demo_udl_step1', 'demo/train_udl_step1'), ('demo_udl_step2', 'demo/train_udl_step2')])
def test_configs_agree_with_option_files(name, source):
    cfg = Config.fromfile(OPTIONS / 'mmengine' / f'{name}.py')
    opt = yaml.safe_load((OPTIONS / f'{source}.yml').read_text())
    train_opt, data = opt['train'], opt['datasets']['train']
    assert to_builtins(cfg.model.generator.to_dict()) == opt['network_g']
    assert cfg.model.pixel_loss.type == train_opt['pixel_opt']['type']
    assert cfg.optim_wrapper.optimizer.lr == train_opt['optim_g']['lr']
    assert list(cfg.optim_wrapper.optimizer.betas) == train_opt['optim_g']['betas']
    assert cfg.train_cfg.max_iters == train_opt['total_iter']
    if 'milestones' in train_opt['scheduler']:
        assert cfg.param_scheduler.milestones == train_opt['scheduler']['milestones']
        assert cfg.param_scheduler.gamma == train_opt['scheduler']['gamma']
    else:
        assert cfg.param_scheduler.T_max == train_opt['scheduler']['periods'][0]
        assert cfg.param_scheduler.eta_min == train_opt['scheduler']['eta_min']
    dataset = cfg.train_dataloader.dataset.dataset
    assert {key: data[key] for key in dataset} == dataset
    assert cfg.train_dataloader.batch_size == data['batch_size_per_gpu']
    averaged = [hook for hook in cfg.custom_hooks if hook.type == 'EMAHook']
    assert len(averaged) == ('demo' not in name), 'the option file of the demo has none'


@pytest.mark.parametrize(('config', 'arguments', 'message'), [
    ('nowhere.py', [], "config: 'nowhere.py' is not a Python file, such as"),
    (OPTIONS / 'train_udl_step1.yml', [], 'For an option file (.yml) there is udl-train -opt.'),
    (STEP1, [], 'there is no folder'),
    (STEP1, ['--auto-scale-lr'], '--auto-scale-lr: set auto_scale_lr = dict(base_batch_size=...) in'),
    (STEP1, ['--launcher', 'pytorch'], 'RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set'),
    (STEP1, ['--launcher', 'slurm'], 'is not set'),
    (STEP1, ['--cfg-options', 'model.pixel_loss.weight=3'], "pixel_loss: 'weight' is not an option"),
    (STEP1, ['--cfg-options', 'model.generator.type=EDSR', 'model.pixel_loss.type=L1Loss'], 'there is no folder'),
])
def test_user_errors_are_one_line(config, arguments, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert mm.main(['train', str(config), *arguments]) == 2
    assert message in last_line(capfd)


@pytest.mark.parametrize('command', [
    ['train', STEP1, '--resume', 'x.pth', '--cfg-options', *NO_VALIDATION], ['test', STEP1, 'x.pth'],
    ['train', STEP1, '--cfg-options', *NO_VALIDATION, 'load_from=x.pth']])
def test_unsafe_checkpoints(command, folder, capfd):
    write_malicious(folder / 'x.pth')
    assert mm.main(command) == 2
    assert "'x.pth' cannot be read as a checkpoint of tensors" in last_line(capfd)
    assert not Path('payload').exists()


@pytest.mark.parametrize('path', [
    'gone.pth', 'http://127.0.0.1/x.pth', 's3://x.pth', 'torchvision://alexnet', 'open-mmlab://x'])
def test_only_local_checkpoints_are_read(path):
    """mmengine itself unpickles what it downloads."""
    launch.install_file_handlers()
    with pytest.raises(UserError, match=f"there is no file '{path}'"):
        mmengine_runner.CheckpointLoader.load_checkpoint(path)


def test_config_in_a_checkpoint_is_not_executed(folder, monkeypatch):
    assert train(*NO_VALIDATION) == 0
    content = load_tensors_only('work_dirs/demo_udl_step1/iter_4.pth')
    content['meta']['config'] = "open('payload', 'w').write('it ran')"
    torch.save(content, 'config.pth')
    resume = ['--resume', 'config.pth', '--work-dir', 'more']
    assert train(*NO_VALIDATION, arguments=resume) == 0
    assert not Path('payload').exists()

    monkeypatch.setattr(launch, 'load_file', lambda filename, map_location=None: load_tensors_only(filename))
    train(*NO_VALIDATION, arguments=resume)
    assert Path('payload').exists(), 'mmengine alone executes it'


def test_resume_without_a_checkpoint_starts_with_load_from(folder, capfd):
    """The same command starts step 2 and resumes it."""
    start = folder / 'start.pth'
    torch.save({'params': EDSRVar(**TINY).state_dict()}, start)
    options = [*NO_VALIDATION, f'load_from={start}']
    assert train(*options, 'train_cfg.max_iters=2', config=STEP2, arguments=['--resume']) == 0
    assert f'Load checkpoint from {start}' in capfd.readouterr().out
    assert train(*options, config=STEP2, arguments=['--resume']) == 0
    assert 'resumed epoch: 0, iter: 2' in capfd.readouterr().out


def test_last_checkpoint_is_found(tmp_path, folder, capfd):
    work = tmp_path / 'work'
    work.mkdir()
    assert find_last_checkpoint(str(work)) is None
    (work / 'iter_2.pth').touch()
    (work / '.iter_4.pth.1.tmp').touch()
    (work / 'last_checkpoint').write_text('elsewhere/iter_2.pth')
    assert find_last_checkpoint(str(work)) == str(work / 'iter_2.pth')
    assert not list(work.glob('.*'))
    (work / 'iter_2.pth').rename(tmp_path / 'iter_2.pth')  # as with out_dir of CheckpointHook
    (work / 'last_checkpoint').write_text(str(tmp_path / 'iter_2.pth'))
    assert find_last_checkpoint(str(work)) == str(tmp_path / 'iter_2.pth')
    (tmp_path / 'iter_2.pth').unlink()
    assert train(arguments=['--resume', '--work-dir', str(work)]) == 2
    assert "iter_2.pth', which does not exist. Name another one with --resume CHECKPOINT" in last_line(capfd)


def test_corrupted_sample(folder, capfd):
    """A worker process finds it: an error in one line without the worker's traceback, or it is skipped."""
    corrupted = write_images(folder / 'corrupted.lmdb', random_images(2, 48))
    write_images(folder / 'lq.lmdb', random_images(2, 24))
    with lmdb.open(str(corrupted)) as env, env.begin(write=True) as txn:
        txn.put(b'image_0', b'not an image')
    options = [*NO_VALIDATION, f'{DATA}.dataroot_gt=corrupted.lmdb', f'{DATA}.dataroot_lq=lq.lmdb']
    assert train(*options) == 2
    err = capfd.readouterr().err
    assert 'corrupted.lmdb' in err.strip().splitlines()[-1]
    assert 'image_0' in err.strip().splitlines()[-1]
    assert 'Traceback' not in err
    assert train(*options, f'{DATA}.on_bad_record=skip') == 0
    logs = [path.read_text() for path in folder.glob('work_dirs/demo_udl_step1/*/*.log')]
    assert any("Skipped: 'corrupted.lmdb': 'image_0" in log for log in logs), logs


def test_without_mmengine(folder):
    """Its checkpoints can be read, and the package works; the integration says what to install."""
    assert train(*NO_VALIDATION) == 0
    code = ("import sys; sys.modules['mmengine'] = None;"
            'import udl_plugin.models, udl_plugin.train, udl_plugin.cli.upscale;'
            'from udl_plugin.checkpoints.safe_load import load_checkpoint;'
            "content = load_checkpoint('work_dirs/demo_udl_step1/iter_4.pth');"
            "print(content['network_g']['type'], sorted(content['params'])[0]);"
            'import udl_plugin.mm')
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert process.stdout.strip().splitlines()[-1] == 'EDSRVar body.0.conv1.bias'
    last = process.stderr.strip().splitlines()[-1]
    assert "udl_plugin.integrations.mmengine requires mmengine: pip install 'udl_plugin[mm]'" in last
    assert 'onedl-mmengine' in last
