"""The training loop: equal to BasicSR's own, one pass at start-up, folders, locks, and how it ends."""
import builtins
import errno
import logging
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from urllib.error import URLError

import pytest
import torch
import yaml
from basicsr.archs.edsr_arch import EDSR
from basicsr.models import build_model
from basicsr.utils import get_root_logger
from conftest import TINY, Runner, model_options
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from udl_plugin.archs import EDSRVar
from udl_plugin.cli.train import main
from udl_plugin.models.udl_model import UDLModel
from udl_plugin.training import loop, run


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def logged():
    """What BasicSR's logger logs, line by line."""
    handler, logger = Lines(), get_root_logger()
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


@pytest.fixture
def train(runner, monkeypatch, capfd):
    """udl-train in this process; returns the exit status and what it reported on stderr."""
    monkeypatch.chdir(runner.folder)

    def train(yml, *arguments):
        status = main(True, ['-opt', str(yml), *arguments])
        command = f'{os.path.basename(sys.argv[0])}: '
        return status, [line[len(command):] for line in capfd.readouterr().err.splitlines() if line.startswith(command)]

    return train


def run_basicsr(folder, yml):
    """BasicSR's own command, unmodified, in this process."""
    from basicsr.train import train_pipeline
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['train.py', '-opt', str(yml)])
        train_pipeline(str(folder))


def numbers(lines):
    """Of each iteration its losses, and of each validation its results."""
    iterations = [re.search(r'epoch: *(\d+), iter: *(\d+), lr:\((.*?)\).*?(l_pix: .*)', line) for line in lines]
    return [found.groups() for found in iterations if found], [line for line in lines if line.startswith('Validation')]


@pytest.mark.parametrize('step', [1, 2])
def test_equal_to_basicsr(runner, train, logged, step):
    """Losses of every iteration, final weights and validation results, bit for bit."""
    changes = {'train__total_iter': 9, 'train__ema_decay': 0.9, 'val__val_freq': 3, 'manual_seed': 5,
               'datasets__train__num_worker_per_gpu': step - 1, 'datasets__train__dataset_enlarge_ratio': 0.02}
    if step == 2:
        assert train(runner.write_yml('step1', train__total_iter=1, val=None))[0] == 0
        changes['path__pretrain_network_g'] = 'experiments/step1/models/net_g_latest.pth'
    source = f'demo/train_udl_step{step}'
    results, weights = [], []
    for name in ('ours', 'basicsr'):
        logged.clear()
        yml = runner.write_yml(name, source, **changes)
        if name == 'ours':
            assert train(yml) == (0, [])
        else:
            run_basicsr(runner.folder, yml)
        results.append(numbers(logged))
        weights.append(torch.load(runner.folder / f'experiments/{name}/models/net_g_latest.pth', weights_only=True))
    assert len(results[0][0]) == 9
    assert len({epoch for epoch, *_ in results[0][0]}) > 1
    assert results[0] == results[1]
    for key in ('params', 'params_ema'):
        assert weights[0][key].keys() == weights[1][key].keys()
        assert all(torch.equal(value, weights[1][key][name]) for name, value in weights[0][key].items())


def events_of(folder):
    """Values and steps of each tag; of pictures, their PNG files."""
    events = EventAccumulator(str(folder), size_guidance={'images': 0, 'scalars': 0})
    events.Reload()
    return {**{tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()['scalars']},
            **{tag: [(event.step, event.encoded_image_string) for event in events.Images(tag)]
               for tag in events.Tags()['images']}}


def test_tensorboard_changes_nothing_and_is_the_same_under_basicsr(runner, train, logged):
    """Weights bit for bit; scalars in each iteration that logs, pictures and metrics at each validation."""
    ause = {'type': 'calculate_map_ause', 'crop_border': 2, 'better': 'lower'}
    changes = {'manual_seed': 5, 'val__val_freq': 2, 'logger__print_freq': 2, 'logger__use_tb_logger': True,
               'val__metrics': {'ause': ause, 'calibration': {**ause, 'type': 'calculate_map_calibration'}}}
    assert train(runner.write_yml('ours', **changes)) == (0, [])
    assert sum(line.startswith('A negative loss is no error') for line in logged) == 1
    assert train(runner.write_yml('without', **{**changes, 'logger__use_tb_logger': False})) == (0, [])
    run_basicsr(runner.folder, runner.write_yml('basicsr', **changes))
    ours, *others = (torch.load(runner.folder / f'experiments/{name}/models/net_g_latest.pth', weights_only=True)
                     for name in ('ours', 'without', 'basicsr'))
    for other in others:
        assert all(torch.equal(value, other['params'][name]) for name, value in ours['params'].items())
    events = events_of(runner.folder / 'tb_logger' / 'ours')
    assert events.keys() == {'losses/l_pix', 'error/mean', 'map/mean', 'map/spread', 'map/at_bound',
                             'metrics/astronaut/ause', 'metrics/astronaut/calibration', 'images/astronaut/astronaut'}
    for tag, values in events.items():
        of_validation = tag.startswith(('metrics/', 'images/'))  # the last one is run twice, as in BasicSR
        assert [step for step, _ in values] == ([2, 4, 4] if of_validation else [2, 4])
    assert events == events_of(runner.folder / 'tb_logger' / 'basicsr')
    assert not (runner.folder / 'tb_logger' / 'without').exists()


@pytest.mark.parametrize('cache', ['device', 'host'])
def test_images_in_memory_change_nothing(runner, train, cache):
    """Under udl-train, also over a resume, and under BasicSR's command."""
    changes = {'train__total_iter': 9, 'train__ema_decay': 0.9, 'val': None, 'manual_seed': 5,
               'logger__save_checkpoint_freq': 4, 'datasets__train__num_worker_per_gpu': 1,
               'datasets__train__dataset_enlarge_ratio': 0.02}
    cached = {**changes, 'datasets__train__type': 'PairedImageCachedDataset', 'datasets__train__cache': cache}
    assert train(runner.write_yml('plain', **changes)) == (0, [])
    assert train(runner.write_yml('cached', **{**cached, 'train__total_iter': 6})) == (0, [])
    assert train(runner.write_yml('cached', **cached), '--auto_resume') == (0, [])
    run_basicsr(runner.folder, runner.write_yml('basicsr', **cached))
    plain, *others = (torch.load(runner.folder / f'experiments/{name}/models/net_g_latest.pth', weights_only=True)
                      for name in ('plain', 'cached', 'basicsr'))
    for other in others:
        for key in ('params', 'params_ema'):
            assert all(torch.equal(value, other[key][name]) for name, value in plain[key].items())


def test_same_log_as_basicsr(runner, train, logged):
    """Line by line, but for names and times, the first line with the versions, and the command for step 2."""
    texts = []
    for name in ('first', 'other'):
        logged.clear()
        yml = runner.write_yml(name, manual_seed=5)
        train(yml) if name == 'first' else run_basicsr(runner.folder, yml)
        text = '\n'.join(line for line in logged[1:] if not line.startswith('Step 1 is')).replace('other', 'first')
        texts.append(re.sub(r'\[eta.*?\)\] |[\d:]+$|total_iter.*|Total epochs.*', '', text, flags=re.MULTILINE))
    assert texts[0] == texts[1]


def test_notes_of_the_option_check_are_logged(runner, train, logged):
    metrics = {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}
    assert train(runner.write_yml('step1', train__total_iter=1, val__metrics=metrics))[0] == 0
    start = next(number for number, line in enumerate(logged) if line.startswith('Start training'))
    notes = [number for number, line in enumerate(logged) if line.startswith('val.metrics.psnr: on RGB')]
    assert len(notes) == 1 and notes[0] < start
    logged.clear()
    yml = runner.write_yml('test', 'demo/test_udl_step1', val__metrics=metrics,
                           path__pretrain_network_g='experiments/step1/models/net_g_latest.pth')
    assert main(False, ['-opt', str(yml)]) == 0
    assert sum(line.startswith('val.metrics.psnr: on RGB') for line in logged) == 1


def test_one_pass_at_start_up(runner, train, monkeypatch):
    """Step 2 with EMA: the yml is parsed once, each LMDB's index and the checkpoint are read once, the network is built
    once, and once more for the EMA. BasicSR's data set reads the index once more for its keys."""
    assert train(runner.write_yml('step1', train__total_iter=1, val=None))[0] == 0
    yml = runner.write_yml('step2', 'demo/train_udl_step2', train__total_iter=1, train__ema_decay=0.9, val=None,
                           path__pretrain_network_g='experiments/step1/models/net_g_latest.pth')
    opened, built, open_file = Counter(), Counter(), builtins.open

    def counting_open(file, mode='r', *args, **kwargs):
        if 'r' in mode and isinstance(file, (str, os.PathLike)):
            opened[os.path.relpath(file, runner.folder)] += 1
        return open_file(file, mode, *args, **kwargs)

    def count(cls):
        init = cls.__init__

        def counting_init(self, *args, **kwargs):
            built[cls.__name__] += 1
            init(self, *args, **kwargs)

        monkeypatch.setattr(cls, '__init__', counting_init)

    from udl_plugin.archs import EDSRTwo
    count(EDSRTwo)
    count(EDSR)
    parse, parsed = yaml.SafeLoader.get_single_node, []
    monkeypatch.setattr(yaml.SafeLoader, 'get_single_node', lambda self: parsed.append(1) or parse(self))
    load, loaded = torch.load, []
    monkeypatch.setattr(torch, 'load', lambda path, *args, **kwargs: loaded.append(str(path)) or load(
        path, *args, **kwargs))
    monkeypatch.setattr('io.open', counting_open)
    monkeypatch.setattr(builtins, 'open', counting_open)
    assert train(yml)[0] == 0
    monkeypatch.undo()
    assert len(parsed) == 1
    assert built == {'EDSRTwo': 2, 'EDSR': 4}  # both have a trained and a frozen EDSR
    assert loaded == ['experiments/step1/models/net_g_latest.pth']
    indices = {path: number for path, number in opened.items() if path.endswith('meta_info.txt')}
    assert len(indices) == 2
    assert set(indices.values()) == {2}


def test_no_name_of_another_module_is_replaced(runner, train):
    """Neither in BasicSR nor in PyTorch."""
    import basicsr.models.sr_model
    import basicsr.train
    import basicsr.utils.options
    modules = (basicsr.train, basicsr.utils.options, basicsr.models.sr_model, torch.cuda)
    before = [dict(vars(module)) for module in modules]
    seen = []
    original = EDSR.forward

    def forward(self, x):
        seen.append([name for module, names in zip(modules, before) for name, value in names.items()
                     if vars(module).get(name) is not value])
        return original(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EDSR, 'forward', forward)
        assert train(runner.write_yml('step1', train__total_iter=1))[0] == 0
    assert seen and not any(seen)


def test_second_training_of_one_name(runner, train):
    """Is refused before it renames the folder of the first; which goes on."""
    yml = runner.write_yml('step1', train__total_iter=1, val=None)
    assert train(yml)[0] == 0
    folder = runner.folder / 'experiments/step1'
    script = ('from udl_plugin.utils.atomic_io import exclusive_lock\nimport sys\n'
              f'with exclusive_lock({str(folder)!r}): print("locked", flush=True); sys.stdin.read()')
    with subprocess.Popen([sys.executable, '-c', script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b'locked\n'
        for arguments in ((), ('--auto_resume',)):
            status, (message,) = train(yml, *arguments)
            assert status == 2
            assert "experiments/step1': another process is " in message
        other.communicate()
    assert [path.name for path in (runner.folder / 'experiments').iterdir()] == ['step1']
    assert train(yml, '--auto_resume')[0] == 0


def test_left_over_temporary_files_are_removed(runner, train):
    yml = runner.write_yml('step1', train__total_iter=2, val=None)
    assert train(yml)[0] == 0
    left = runner.folder / 'experiments/step1/models/.net_g_4.pth.77.tmp'
    left.write_bytes(b'x')
    assert train(yml, '--auto_resume')[0] == 0
    assert not left.exists()


def signal_at(monkeypatch, owner, name, n):
    """Sends SIGTERM at the n-th call of a function."""
    function, calls = getattr(owner, name), []

    def signalling(*args, **kwargs):
        calls.append(1)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, signalling)


def state_of(runner, name, iteration):
    return torch.load(runner.folder / f'experiments/{name}/training_states/{iteration}.state', weights_only=True)


SIGNALLED = {'train__total_iter': 6, 'val__val_freq': 3, 'logger__save_checkpoint_freq': 100, 'manual_seed': 3,
             'datasets__train__dataset_enlarge_ratio': 0.02}


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, small_data):
    """Final weights of a training with SIGNALLED that gets no signal."""
    runner = Runner(tmp_path_factory.mktemp('undisturbed'), small_data)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runner.folder)
        assert main(True, ['-opt', str(runner.write_yml('whole', **SIGNALLED))]) == 0
    return torch.load(runner.folder / 'experiments/whole/models/net_g_latest.pth', weights_only=True)['params']


@pytest.mark.parametrize(('where', 'call', 'saved'), [
    ('optimize_parameters', 2, 2), ('nondist_validation', 1, 3), ('optimize_parameters', 6, 6),
    ('save_training_state', 1, 6)])
def test_signal_then_resume_is_exact(runner, train, monkeypatch, undisturbed, where, call, saved):
    """In an iteration, between two images of a validation, in the last iteration, and in the final saving."""
    yml = runner.write_yml('parts', **SIGNALLED)
    with monkeypatch.context() as patch:
        signal_at(patch, UDLModel, where, call)
        status, message = train(yml)
    assert status == 128 + signal.SIGTERM
    assert message == [f'ended by SIGTERM. Iteration {saved} is saved; resume with --auto_resume.']
    assert train(yml, '--auto_resume')[0] == 0
    parts = torch.load(runner.folder / 'experiments/parts/models/net_g_latest.pth', weights_only=True)['params']
    assert all(torch.equal(value, parts[name]) for name, value in undisturbed.items())


def test_validation_that_was_cut_short_is_made_up_for(runner, train, monkeypatch, logged):
    """With the random numbers it would have had; and the state says so, with its result."""
    yml = runner.write_yml('step1', **SIGNALLED)
    with monkeypatch.context() as patch:
        signal_at(patch, UDLModel, 'nondist_validation', 1)
        assert train(yml)[0] == 128 + signal.SIGTERM
    state = state_of(runner, 'step1', 3)
    assert state['validated'] is False
    logged.clear()
    assert train(yml, '--auto_resume')[0] == 0
    lines = [line for line in logged if re.match('Resuming|Validation|Start', line)]
    assert [line.split()[0] for line in lines] == ['Resuming', 'Validation', 'Start', 'Validation', 'Validation']
    assert '@ 3 iter' in lines[1]
    state = state_of(runner, 'step1', 3)
    assert state['validated'] is True
    assert state['best_metric_results']['astronaut']['psnr']['iter'] == 3


def test_images_that_cannot_be_written(runner, train, monkeypatch):
    """One line, and what was reached is saved."""
    def atomic_write(path, _):
        raise OSError(errno.ENOSPC, 'No space left on device', 'x.png')

    monkeypatch.setattr('udl_plugin.models.validation.atomic_write', atomic_write)
    yml = runner.write_yml('step1', val__save_img=True, val__val_freq=3, logger__save_checkpoint_freq=100)
    status, (message,) = train(yml)
    assert status == 2
    assert message == ("[Errno 28] No space left on device: 'x.png'. Check free space and write permission. "
                       'Iteration 3 is saved; resume with --auto_resume.')
    assert not state_of(runner, 'step1', 3)['validated']


def test_error_within_an_iteration_saves_nothing_half_done(runner, train, monkeypatch):
    step = UDLModel.optimize_parameters

    def fail_at_four(self, iteration):
        if iteration == 4:
            raise OSError(5, 'Input/output error', 'x')
        step(self, iteration)

    monkeypatch.setattr(UDLModel, 'optimize_parameters', fail_at_four)
    status, (message,) = train(runner.write_yml('step1', logger__save_checkpoint_freq=2))
    assert status == 2
    assert message.endswith('Iteration 2 is saved; resume with --auto_resume.')
    assert sorted(path.name for path in (runner.folder / 'experiments/step1/training_states').iterdir()) == ['2.state']


OUT_OF_MEMORY = torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')


@pytest.mark.parametrize('failing', [3, 4])  # a training set of three batches: within an epoch, and the first of one
def test_out_of_memory_in_training(runner, train, monkeypatch, failing):
    """What was reached is saved: before the update, nothing of the iteration is done. The resume repeats it exactly."""
    changes = {'train__total_iter': 6, 'val': None, 'logger__save_checkpoint_freq': 100, 'manual_seed': 3,
               'datasets__train__dataset_enlarge_ratio': 0.02, 'datasets__train__num_worker_per_gpu': 1}
    assert train(runner.write_yml('whole', **changes))[0] == 0
    yml = runner.write_yml('parts', **changes)
    compute, calls = UDLModel.compute_losses, []

    def fail(self, **part):
        calls.append(1)
        losses = compute(self, **part)
        if len(calls) == failing:
            raise OUT_OF_MEMORY
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(UDLModel, 'compute_losses', fail)
        assert train(yml) == (2, [f'{loop.MEMORY_OF_TRAINING} Iteration {failing - 1} is saved; resume with '
                                  '--auto_resume.'])
    assert train(yml, '--auto_resume')[0] == 0
    whole, parts = (torch.load(runner.folder / f'experiments/{name}/models/net_g_latest.pth', weights_only=True)
                    for name in ('whole', 'parts'))
    assert all(torch.equal(value, parts['params'][name]) for name, value in whole['params'].items())


@pytest.mark.parametrize('where', ['first', 'update'])
def test_out_of_memory_with_nothing_to_save(runner, train, monkeypatch, where):
    """In the first iteration; or within an update, which leaves weights half updated."""
    def fail(*_, **__):
        raise OUT_OF_MEMORY

    owner, name = (UDLModel, 'compute_losses') if where == 'first' else (torch.optim.Adam, 'step')
    monkeypatch.setattr(owner, name, fail)
    assert train(runner.write_yml('step1')) == (2, [loop.MEMORY_OF_TRAINING])


def test_out_of_memory_in_validation(runner, train, monkeypatch, demo_data):
    """The state is saved before; with `val: tile`, the resume makes up for the validation."""
    data = runner.folder / 'datasets/demo'
    data.unlink()
    data.symlink_to(demo_data)  # its validation photo is larger than a tile
    test_image = UDLModel._test_image

    def fail(self):
        if max(self.lq.shape[2:]) > 64:
            raise OUT_OF_MEMORY
        test_image(self)

    monkeypatch.setattr(UDLModel, '_test_image', fail)
    changes = {'val__val_freq': 2, 'logger__save_checkpoint_freq': 100}
    assert train(runner.write_yml('step1', **changes)) == (
        2, [f'{loop.MEMORY_OF_VALIDATION} Iteration 2 is saved; resume with --auto_resume.'])
    assert train(runner.write_yml('step1', val__tile=64, **changes), '--auto_resume') == (0, [])
    assert state_of(runner, 'step1', 2)['validated']
    weights = {'path__pretrain_network_g': 'experiments/step1/models/net_g_latest.pth'}
    for name, tile, status in (('full', None, 2), ('tiled', 64, 0)):
        yml = runner.write_yml(name, 'demo/test_udl_step1', val__tile=tile, **weights)
        assert main(False, ['-opt', str(yml)]) == status


def test_download_that_fails(runner, train, monkeypatch):
    def refuse(*_):
        raise URLError('Name or service not known')

    monkeypatch.setattr(loop, 'build_model', refuse)
    status, (message,) = train(runner.write_yml('step1'))
    assert status == 2
    assert 'such as the VGG of perceptual_opt, cannot be downloaded: <urlopen error Name' in message
    assert not (runner.folder / 'experiments').exists()


def test_copy_of_the_yml(runner, train, monkeypatch):
    """It is complete; a new training cannot start from it, for its folder is renamed; a resumed one can."""
    yml = runner.write_yml('step1', train__total_iter=2, val=None)
    assert train(yml)[0] == 0
    copied = runner.folder / 'experiments/step1/step1.yml'
    assert copied.read_text().endswith(yml.read_text())
    before = sorted(runner.folder.glob('experiments/*'))
    status, (message,) = train(copied)
    assert status == 2
    assert 'step1.yml\' lies in experiments/step1, which is renamed when a new training starts' in message
    assert sorted(runner.folder.glob('experiments/*')) == before
    assert train(copied, '--auto_resume')[0] == 0
    assert copied.read_text().endswith(yml.read_text())

    def atomic_write(path, data):
        raise OSError(28, 'No space left on device', str(path))

    content = copied.read_bytes()
    monkeypatch.setattr(run, 'atomic_write', atomic_write)
    assert train(yml, '--auto_resume')[1][0].endswith(
        "experiments/step1/step1.yml'. Check free space and write permission.")
    assert copied.read_bytes() == content


@pytest.mark.parametrize(('launcher', 'variable', 'command'), [
    ('pytorch', 'RANK', 'torchrun'), ('slurm', 'SLURM_PROCID', 'srun')])
def test_launcher_that_launched_nothing(runner, train, monkeypatch, launcher, variable, command):
    monkeypatch.delenv(variable, raising=False)
    status, (message,) = train(runner.write_yml('step1'), '--launcher', launcher)
    assert status == 2
    assert message.startswith(f'--launcher {launcher}: {variable}, ')
    assert message.endswith(f' is not set. Start the processes with {command} (docs/scaling.md).')


@pytest.mark.parametrize(('arguments', 'message'), [
    ((), 'torchrun started 2 processes, each of which would run alone: pass --launcher pytorch.'),
    (('--launcher', 'pytorch'), '--launcher pytorch: BasicSR trains with several processes on GPUs only, and PyTorch '
                                'finds none. On the CPU, start one process, without --launcher.')])
def test_torchrun(runner, train, monkeypatch, arguments, message):
    """Without --launcher, or without a GPU: one line for all processes."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    yml = runner.write_yml('step1')
    for rank in ('0', '1'):
        for name, value in {'WORLD_SIZE': '2', 'MASTER_ADDR': 'x', 'MASTER_PORT': '1', 'RANK': rank,
                            'LOCAL_RANK': rank}.items():
            monkeypatch.setenv(name, value)
        assert train(yml, *arguments) == (2, [message] if rank == '0' else [])
    assert not (runner.folder / 'experiments').exists()


def test_checkpoint_that_does_not_fit_srmodel(runner, train, monkeypatch, capfd):
    """BasicSR's own model would fail with a traceback, or load weights that give other images."""
    monkeypatch.chdir(runner.folder)
    assert train(runner.write_yml('edsr', 'demo/train_l1_step1', model_type='UDLModel', val=None))[0] == 0
    start = 'experiments/edsr/models/net_g_latest.pth'
    yml = runner.write_yml('l1', 'demo/train_l1_step2', path__pretrain_network_g=start, val=None)
    assert train(yml) == (0, [])
    for override, reason in (('num_block=5', 'does not fit network_g: EDSR: tensors missing'),
                             ('res_scale=0.1', 'was trained with network_g.res_scale: 1, the yml has 0.1')):
        status, (message,) = train(yml, '--force_yml', f'network_g:{override}')
        assert status == 2
        assert f"path.pretrain_network_g: '{start}' {reason}" in message
    status, (message,) = train(yml, '--auto_resume', '--force_yml', 'network_g:num_block=5')
    assert status == 2
    assert "net_g_4.pth' does not fit network_g: EDSR: tensors missing" in message
    test = runner.write_yml('test', 'demo/test_l1', path__pretrain_network_g=start)
    assert main(False, ['-opt', str(test), '--force_yml', 'network_g:rgb_mean=[0,0,0]']) == 2
    assert 'was trained with network_g.rgb_mean: [0.4488, ' in capfd.readouterr().err
    assert {path.name for path in (runner.folder / 'experiments').iterdir()} == {'edsr', 'l1'}
    assert not (runner.folder / 'results').exists()


@pytest.mark.parametrize(('model_type', 'build'), [
    ('UDLModel', build_model), ('UDLModel', loop._build_model), ('SRModel', loop._build_model)])
def test_moving_average_is_read_unless_a_training_resumes(tmp_path, model_type, build):
    """Under BasicSR's own command too, with UDLModel."""
    saved = {key: EDSRVar(**TINY).state_dict() for key in ('params', 'params_ema')}
    torch.save(saved, tmp_path / 'x.pth')
    opt = model_options(1, tmp_path, model_type, pixel_opt={'type': 'L1Loss'})
    opt['path']['pretrain_network_g'] = str(tmp_path / 'x.pth')
    for path, is_train, key in (({}, False, 'params_ema'), ({}, True, 'params_ema'),
                                ({'param_key_g': 'params'}, False, 'params'),
                                ({'resume_state': '3.state'}, True, 'params')):
        model = build({**opt, 'is_train': is_train, 'path': {**opt['path'], **path}})
        assert all(torch.equal(value, saved[key][name]) for name, value in model.net_g.state_dict().items())


def test_step_1_resumed_as_step_2(runner, train):
    """Step 2 starts from a checkpoint of step 1, but does not resume one."""
    assert train(runner.write_yml('step1', val=None))[0] == 0
    yml = runner.write_yml('step1', 'demo/train_udl_step2', val=None)
    status, (message,) = train(yml, '--auto_resume')
    assert status == 2
    assert re.search(r"path\.resume_state: '.*net_g_4\.pth' has the stage step 1, and network_g: EDSRTwo .* step 2; "
                     r'.* write another name and path\.pretrain_network_g: .*/net_g_4\.pth, and do not ', message)


def test_network_that_contradicts_its_checkpoint(runner, train, monkeypatch, capfd):
    """In step 2, a resume, a test and a command, before anything is made; unless path.strict_load_g is false."""
    from udl_plugin.cli import prepare
    monkeypatch.chdir(runner.folder)
    yml = runner.write_yml('step1', val=None)
    assert train(yml)[0] == 0
    start, wrong = 'experiments/step1/models/net_g_latest.pth', ('--force_yml', 'network_g:res_scale=0.1')
    reason = 'was trained with network_g.res_scale: 1, the yml has 0.1. Write '
    step2 = runner.write_yml('step2', 'demo/train_udl_step2', path__pretrain_network_g=start, val=None)
    test = runner.write_yml('test', 'demo/test_udl_step1', path__pretrain_network_g=start)
    status, (message,) = train(step2, *wrong)
    assert (status, f"path.pretrain_network_g: '{start}' {reason}" in message) == (2, True)
    status, (message,) = train(yml, '--auto_resume', *wrong)
    assert (status, f"models/net_g_4.pth' {reason}" in message) == (2, True)
    assert main(False, ['-opt', str(test), *wrong]) == 2
    assert f"path.pretrain_network_g: '{start}' {reason}" in capfd.readouterr().err
    (runner.folder / 'x.yml').write_text(yaml.safe_dump({'network_g': {'type': 'EDSRVar', **TINY, 'img_range': 1}}))
    data = [f'datasets/demo/demo_train_{side}_sub.lmdb' for side in ('HR', 'LR_bicubic_X2')]
    assert prepare.main(['uncertainty', '--model', start, '--data', *data, '--out', 'maps.lmdb', '--opt', 'x.yml']) == 2
    assert 'was trained with network_g.img_range: 255.0, --opt has 1. Pass ' in capfd.readouterr().err
    assert {path.name for path in (runner.folder / 'experiments').iterdir()} == {'step1'}
    assert not (runner.folder / 'results').exists()
    assert main(False, ['-opt', str(test), *wrong, 'path:strict_load_g=false']) == 0
    log, = (runner.folder / 'results/test').glob('*.log')
    assert 'res_scale: 1, the yml has 0.1. Loaded anyway: path.strict_load_g is false.' in log.read_text()
