"""A tiny study, run as a user runs it: finished, killed, changed, failing."""
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from basicsr.archs.edsr_arch import EDSR
from conftest import TINY, study_section

from udl_plugin.errors import UserError
from udl_plugin.studies.config import read_study
from udl_plugin.studies.runner import run_study

TOO_MUCH = {'type': 'Adam', 'lr': 1e-3, 'fused': True, 'foreach': True}
STUDY = ('-m', 'udl_plugin.cli.study', 'tiny.yml')


def write_study(folder, **changes):
    (folder / 'tiny.yml').write_text(yaml.safe_dump(study_section(**changes)))


def test_study_from_nothing_to_report(runner):
    write_study(runner.folder)
    process = runner.run(*STUDY, '--jobs', '2')
    assert process.returncode == 0, process.stdout
    assert '4 trainings, 4 of them to be done' in process.stdout
    folder = runner.folder / 'results/tiny'
    assert {path.name for path in folder.iterdir()} == {
        'options', 'experiments', 'tb_logger', 'scores', 'tiny.md', 'tiny.csv', 'tiny_images.csv',
        'tiny_differences.png', 'tiny_curves.png', 'tiny.html'}
    scores = {path.stem: json.loads(path.read_text()) for path in (folder / 'scores').iterdir()}
    assert len(scores) == 4
    udl = scores['tiny_x2_ESU_then_UDL_seed0']
    psnr, ssim = udl['scores']['astronaut']['astronaut']
    assert f'| UDL | 10 | 1 | {psnr:.3f} | {ssim:.4f} |' in (folder / 'tiny.md').read_text()
    assert set(udl['curve']) == {'2', '4', '6'}
    assert udl['curve']['6'] == pytest.approx(psnr, abs=1e-4)

    # the score is that of upstream's own last validation
    log = next((folder / 'experiments/tiny_x2_ESU_then_UDL_seed0').glob('train_*.log')).read_text()
    assert f'# psnr: {psnr:.4f}' in log
    assert f'# ssim: {ssim:.4f}' in log

    # step 2 went on from step 1, and its frozen branch is that one
    models = {name: torch.load(folder / f'experiments/tiny_x2_{name}_seed0/models/net_g_latest.pth')['params']
              for name in ('ESU', 'ESU_then_UDL', 'L1Loss_then_L1Loss')}
    for name, value in models['ESU'].items():
        assert torch.equal(value, models['ESU_then_UDL'][f'var_net.{name}'])
    EDSR(**TINY).load_state_dict(models['L1Loss_then_L1Loss'])
    assert not list(folder.glob('experiments/*/training_states'))
    assert not list(folder.glob('experiments/*/models/net_g_[0-9]*'))
    assert {one['resumed'] for one in scores.values()} == {0}
    assert all(0 <= one['seconds'] < 60 for one in scores.values())

    # again: nothing is trained, and nothing else comes out
    before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    process = runner.run(*STUDY, '--jobs', '2')
    assert '4 trainings, 0 of them to be done' in process.stdout
    assert {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()} == before

    # a run of it, as any yml
    process = subprocess.run([sys.executable, '-m', 'udl_plugin.train', '-opt', 'options/tiny_x2_ESU_seed0.yml'],
                             cwd=folder, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr

    write_study(runner.folder, steps=[{**study_section()['steps'][0], 'total_iter': 3}] * 2)
    process = runner.run(*STUDY)
    assert process.returncode == 2
    assert runner.run(*STUDY, '--report').stdout == process.stdout
    assert "tiny_x2_L1Loss_seed0.yml' is of a study with other options (total_iter: 3)" in process.stdout


@pytest.mark.skipif(not hasattr(os, 'killpg'), reason='kills a process as POSIX has it')
def test_killed_study_goes_on(runner):
    variants = {'L1': [{'type': 'L1Loss'}]}
    steps = [{**study_section()['steps'][0], 'total_iter': 400}]
    logger = {'print_freq': 1, 'save_checkpoint_freq': 20}
    write_study(runner.folder, variants=variants, steps=steps, val={'benchmark': 'astronaut', 'val_freq': 1000},
                logger=logger)
    folder = runner.folder / 'results/tiny'
    states = folder / 'experiments/tiny_x2_L1Loss_seed0/training_states'
    with subprocess.Popen([sys.executable, *STUDY], cwd=runner.folder, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: states.is_dir() and any(states.glob('*.state')))
        process.send_signal(signal.SIGKILL)
    with contextlib.suppress(UserError):  # the training that it had started ends too, and lets go of the folder
        wait_for(lambda: is_free(folder))
    assert is_free(folder)
    assert not (folder / 'scores').exists()
    reached = max(int(path.stem) for path in states.glob('*.state'))
    assert reached < 400
    assert not [path for path in states.iterdir() if not path.name.endswith('.state') and path.is_file()]

    process = runner.run(*STUDY)
    assert process.returncode == 0, process.stdout
    assert '1 of them to be done' in process.stdout
    log = '\n'.join(path.read_text() for path in (folder / 'experiments/tiny_x2_L1Loss_seed0').glob('*.log'))
    assert re.search(rf'Resuming training from epoch: \d+, iter: {reached}\.', log)
    scores = json.loads((folder / 'scores/tiny_x2_L1Loss_seed0.json').read_text())
    assert scores['resumed'] == 1
    assert '1 were stopped and went on from a checkpoint' in (folder / 'tiny.html').read_text()


def wait_for(condition, seconds=60):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.1)


def is_free(folder):
    from udl_plugin.utils.atomic_io import exclusive_lock
    try:
        with exclusive_lock(folder):
            return True
    except UserError:
        return False


def test_failure_of_one_leaves_the_others(runner):
    """What options of the optimizer go together is PyTorch's to know: the first of all trainings finds out."""
    first, second = study_section()['steps']
    write_study(runner.folder, steps=[first, {**second, 'optim_g': TOO_MUCH}],
                variants={'L1': [{'type': 'L1Loss'}] * 2})
    process = runner.run(*STUDY)
    assert process.returncode == 1
    assert 'trainings that failed: 1 of 2' in process.stdout
    assert 'cannot be `True` together' in process.stdout
    folder = runner.folder / 'results/tiny/scores'
    assert [path.name for path in folder.iterdir()] == ['tiny_x2_L1Loss_seed0.json']


def test_what_follows_from_a_failure_is_not_begun(runner, monkeypatch):
    monkeypatch.chdir(runner.folder)
    write_study(runner.folder, steps=[{**step, 'optim_g': TOO_MUCH} for step in study_section()['steps']],
                variants={'L1': [{'type': 'L1Loss'}] * 2})
    lines = []
    failed = run_study(read_study('tiny.yml'), tell=lines.append)
    assert list(failed) == ['tiny_x2_L1Loss_seed0', 'tiny_x2_L1Loss_then_L1Loss_seed0']
    assert failed['tiny_x2_L1Loss_then_L1Loss_seed0'] == 'was not begun, for tiny_x2_L1Loss_seed0 failed.'
    assert lines[1:] == ['1 of 2: tiny_x2_L1Loss_seed0']


@pytest.mark.parametrize(('changes', 'message'), [
    ({'benchmarks': {'astronaut': 'datasets/demo/val', 'Set5': 'datasets/nowhere'}},
     "tiny, x2, L1Loss: Set5: dataroot_gt: there is no folder 'datasets/nowhere/GTmod2'"),
    ({'networks': {'tiny': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feats': 8}}},
     "tiny, x2, L1Loss: network_g: 'num_feats' is not an option"),
    ({'scales': [3]}, "train: dataroot_lq: there is no folder 'datasets/demo/demo_train_LR_bicubic_X3_sub.lmdb'"),
    ({'steps': [{**study_section()['steps'][0], 'ema_deacy': 0.9}] * 2}, "train: 'ema_deacy' is not an option"),
    ({'steps': [{**study_section()['steps'][0], 'optim_g': {'type': 'Adam', 'lr': 1e-3, 'btas': [0.9, 0.999]}}] * 2},
     "train: optim_g: 'btas' is not an option of type: Adam .did you mean 'betas'"),
])
def test_bad_input_is_refused_before_anything_is_written(runner, monkeypatch, changes, message):
    monkeypatch.chdir(runner.folder)
    write_study(runner.folder, **changes)
    with pytest.raises(UserError, match=message):
        run_study(read_study('tiny.yml'))
    assert not (runner.folder / 'results').exists()


def test_process_that_cannot_be_started_fails_its_run(runner, monkeypatch):
    """And ends the study with what is left, instead of waiting for ever."""
    def popen(*_, **__):
        raise OSError(12, 'Cannot allocate memory')

    monkeypatch.chdir(runner.folder)
    monkeypatch.setattr('udl_plugin.studies.runner.subprocess.Popen', popen)
    write_study(runner.folder)
    failed = run_study(read_study('tiny.yml'), jobs=2, tell=lambda line: None)
    assert len(failed) == 4
    assert 'Cannot allocate memory' in failed['tiny_x2_ESU_seed0']


def test_moving_average_is_scored(runner):
    steps = study_section()['steps']
    write_study(runner.folder, steps=[{**steps[0], 'ema_decay': 0.5}], variants={'L1': [{'type': 'L1Loss'}]})
    assert runner.run(*STUDY).returncode == 0
    scores = json.loads((runner.folder / 'results/tiny/scores/tiny_x2_L1Loss_seed0.json').read_text())
    assert scores['curve']['4'] == pytest.approx(scores['scores']['astronaut']['astronaut'][0], abs=1e-4)


def test_channels_that_the_data_does_not_have(runner, monkeypatch):
    monkeypatch.chdir(runner.folder)
    grey = {'type': 'DPDNN', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_step': 1}
    write_study(runner.folder, networks={'grey': grey})
    with pytest.raises(UserError, match='grey, x2, L1Loss: the network takes images of 1 channels: write color: y'):
        run_study(read_study('tiny.yml'))


def test_one_study_at_a_time_in_a_folder(runner, monkeypatch):
    from udl_plugin.utils.atomic_io import exclusive_lock
    monkeypatch.chdir(runner.folder)
    write_study(runner.folder)
    (runner.folder / 'results/tiny').mkdir(parents=True)
    with exclusive_lock('results/tiny'), pytest.raises(UserError, match='another process is writing there'):
        run_study(read_study('tiny.yml'))


def test_cached_maps_are_made_and_removed(runner):
    variants = {'L1': [{'type': 'L1Loss'}] * 2,
                'cached': [{'type': 'ESU'}, {'pixel_opt': {'type': 'UDL'}, 'cached_maps': True, 'channels_last': True}]}
    write_study(runner.folder, variants=variants)
    process = runner.run(*STUDY)
    assert process.returncode == 0, process.stdout
    folder, name = runner.folder / 'results/tiny', 'tiny_x2_ESU_then_UDL-cached_maps=True-channels_last=True_seed0'
    log = next((folder / 'experiments' / name).glob('train_*.log')).read_text()
    assert 'Dataset [PairedImageUncertaintyDataset]' in log
    assert (folder / 'scores' / f'{name}.json').exists()
    assert not list(folder.glob('maps/*'))
    assert '| cached | 10 | 1 |' in (folder / 'tiny.md').read_text()


def test_parts_of_a_batch_that_are_not_equal(runner, monkeypatch):
    """Found before step 1 is trained."""
    monkeypatch.chdir(runner.folder)
    write_study(runner.folder, variants={'L1': [{'type': 'ESU'}, {'pixel_opt': {'type': 'UDL'}, 'accumulate': 3}]})
    with pytest.raises(UserError, match='ESU then UDL-accumulate=3: train: accumulate: 3: .*batch_size_per_gpu: 2'):
        run_study(read_study('tiny.yml'))


def test_misspelt_option_of_a_step(runner, monkeypatch):
    monkeypatch.chdir(runner.folder)
    write_study(runner.folder, variants={'L1': [{'type': 'L1Loss'}, {'pixel_opt': {'type': 'L1Loss'}, 'amq': 'bf16'}]})
    with pytest.raises(UserError, match=r"train: 'amq' is not an option .did you mean 'amp'"):
        run_study(read_study('tiny.yml'))
