"""A tiny study, run as a user runs it: finished, killed, changed, failing."""
import contextlib
import json
import os
import re
import time

import pytest
import torch
import yaml
from basicsr.archs.edsr_arch import EDSR
from conftest import TINY, study_config
from forked_python import Forked

from udl_plugin.cli.study import main
from udl_plugin.errors import UserError
from udl_plugin.studies.config import MAP_METRICS, read_study
from udl_plugin.studies.runner import run_study
from udl_plugin.utils.atomic_io import exclusive_lock

L1, ESU, UDL = {'type': 'L1Loss'}, {'type': 'ESU'}, {'type': 'UDL'}
STEP = study_config()['steps'][0]


@pytest.fixture
def folder(runner, monkeypatch):
    """The current folder, with datasets/demo."""
    monkeypatch.chdir(runner.folder)
    return runner.folder


def write_study(folder, **changes):
    (folder / 'tiny.yml').write_text(yaml.safe_dump(study_config(**changes)))
    return folder / 'results/tiny'


def test_study_from_nothing_to_report(folder, capsys):
    cached = {'pixel_opt': UDL, 'cached_maps': True, 'channels_last': True, 'ema_decay': 0.5}
    joint = {'pixel_opt': {'type': 'JointUDL', 'warmup': 1}, 'detach_features': True}
    taught = {**UDL, 'source': 'teacher_residual', 'scaling': 'log'}
    variants = {'L1': [L1, L1], 'UDL': [ESU, UDL], 'cached': [ESU, cached], 'joint': [joint], 'taught': [L1, taught]}
    results = write_study(folder, variants=variants)
    assert main(['tiny.yml', '--jobs', '2']) == 0
    assert '7 trainings, 7 to do, in results' in capsys.readouterr().out
    assert {path.name for path in results.iterdir() if path.name != 'maps'} == {
        'options', 'experiments', 'logs', 'tb_logger', 'scores', 'tiny.md', 'tiny.csv', 'tiny_images.csv',
        'tiny_differences.svg', 'tiny_curves.svg', 'tiny.html'}
    scores = {path.stem: json.loads(path.read_text()) for path in (results / 'scores').iterdir()}
    assert len(scores) == 7
    udl = scores['tiny_x2_ESU_then_UDL_seed0']
    psnr, ssim = (udl['scores']['astronaut']['astronaut'][metric] for metric in ('psnr', 'ssim'))
    text = re.sub(r'\*\*|</?u>', '', (results / 'tiny.md').read_text())
    assert re.search(rf'\| UDL \| {psnr:.3f} \| {ssim:.4f} \| \S+ \| 10 \| 1 \|', text)
    maps = {name: {*one['maps']['astronaut'].get('astronaut', {})} for name, one in scores.items()}
    assert {name for name in maps if maps[name]} == {name for name in maps if 'ESU' in name or 'Joint' in name}
    assert {metric for rated in maps.values() for metric in rated} == set(MAP_METRICS)
    assert re.search(r'\| joint \|.* \| 4 \| 1 \|', text.partition('tiny, x2, uncertainty maps')[2])
    assert set(udl['curve']) == {'2', '4', '6'}
    assert udl['curve']['6'] == pytest.approx(psnr, abs=1e-4)

    # the score is that of BasicSR's own last validation
    log = next((results / 'experiments/tiny_x2_ESU_then_UDL_seed0').glob('train_*.log')).read_text()
    assert f'# psnr: {psnr:.4f}' in log
    assert f'# ssim: {ssim:.4f}' in log

    # step 2 starts from step 1, which is its frozen branch
    models = {name: torch.load(results / f'experiments/tiny_x2_{name}_seed0/models/net_g_latest.pth')['params']
              for name in ('ESU', 'ESU_then_UDL', 'L1Loss_then_L1Loss')}
    for name, value in models['ESU'].items():
        assert torch.equal(value, models['ESU_then_UDL'][f'var_net.{name}'])
    EDSR(**TINY).load_state_dict(models['L1Loss_then_L1Loss'])
    assert not list(results.glob('experiments/*/training_states'))
    assert not list(results.glob('experiments/*/models/net_g_[0-9]*'))
    assert all(0 <= one['seconds'] < 60 for one in scores.values())

    # cached maps are used, and removed; the moving average is what is scored
    name = 'tiny_x2_ESU_then_UDL-cached_maps=True-channels_last=True-ema_decay=0.5_seed0'
    assert 'Dataset [PairedImageUncertaintyDataset]' in next(
        (results / 'experiments' / name).glob('train_*.log')).read_text()
    assert not list(results.glob('maps/*'))
    psnr = scores[name]['scores']['astronaut']['astronaut']['psnr']
    assert scores[name]['curve']['6'] == pytest.approx(psnr, abs=1e-4)
    assert re.search(rf'\| cached \| {psnr:.3f} \|.* 10 \| 1 \|', text)

    # a second time, nothing is trained and nothing changes
    before = read_all(results)
    assert main(['tiny.yml', '--jobs', '2']) == 0
    assert '7 trainings, 0 to do' in capsys.readouterr().out
    assert read_all(results) == before

    # other options do not mix with these
    write_study(folder, variants=variants, steps=[{**STEP, 'total_iter': 3}] * 2)
    for arguments in ([], ['--report']):
        assert main(['tiny.yml', *arguments]) == 2
        assert ("tiny_x2_L1Loss_seed0.yml' belongs to a study with other options (total_iter: 3)"
                in capsys.readouterr().err)


def read_all(folder):
    """Path to content; of the report, without its date."""
    return {path: re.sub(rb'<td>date</td><td>[^<]*', b'', path.read_bytes())
            for path in folder.rglob('*') if path.is_file()}


@pytest.mark.skipif(not hasattr(os, 'killpg'), reason='requires SIGKILL')
def test_killed_study_resumes(folder, capsys):
    results = write_study(folder, variants={'L1': [L1]}, steps=[{**STEP, 'total_iter': 150}],
                          val={'benchmark': 'astronaut', 'val_freq': 1000},
                          logger={'print_freq': 1, 'save_checkpoint_freq': 10})
    states = results / 'experiments/tiny_x2_L1Loss_seed0/training_states'
    process = Forked(folder, 'udl_plugin.cli.study', 'tiny.yml')
    wait_for(lambda: states.is_dir() and any(states.glob('*.state')))
    process.kill()
    process.wait()
    process.stdout.close()
    wait_for(lambda: is_free(results))  # the worker ends too, and releases the lock
    assert not (results / 'scores').exists()
    reached = max(int(path.stem) for path in states.glob('*.state'))
    assert reached < 150
    assert not [path for path in states.iterdir() if not path.name.endswith('.state') and path.is_file()]

    assert main(['tiny.yml']) == 0
    assert '1 to do' in capsys.readouterr().out
    log = '\n'.join(path.read_text() for path in (results / 'experiments/tiny_x2_L1Loss_seed0').glob('*.log'))
    assert re.search(rf'Resuming training from epoch: \d+, iter: {reached}\.', log)
    assert '1 of 1 trainings are finished.' in (results / 'tiny.html').read_text()


def wait_for(condition, seconds=120):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.05)


def is_free(folder):
    with contextlib.suppress(UserError), exclusive_lock(folder):
        return True
    return False


def test_failed_run(folder, capsys):
    """Runs that start from it are not started; others are. PyTorch finds this error first, in the training."""
    invalid = {'pixel_opt': L1, 'optim_g': {'type': 'Adam', 'lr': 1e-3, 'fused': True, 'foreach': True}}
    results = write_study(folder, baseline='Fails', variants={'Fails': [invalid, L1], 'L1': [L1]})
    assert main(['tiny.yml']) == 1
    out, err = capsys.readouterr()
    failed = 'tiny_x2_L1Loss-optim_g=-foreach-True-fused-True-lr-0.001-type-Adam-'
    assert [line for line in out.splitlines() if ' of 3: ' in line] == [
        f'1 of 3: {failed}_seed0', '2 of 3: tiny_x2_L1Loss_seed0']
    assert 'udl-study: 2 of 3 trainings failed; run the same command again to retry' in err
    assert f'{failed}_seed0 ended with status' in err
    assert 'cannot be `True` together' in err
    assert f'{failed}_then_L1Loss_seed0 was not started because {failed}_seed0 failed.' in err
    assert [path.name for path in (results / 'scores').iterdir()] == ['tiny_x2_L1Loss_seed0.json']


def test_one_study_at_a_time_in_a_folder(folder):
    results = write_study(folder)
    results.mkdir(parents=True)
    with exclusive_lock(results), pytest.raises(UserError, match='another process'):
        run_study(read_study('tiny.yml'))


@pytest.mark.parametrize(('changes', 'message'), [
    ({'benchmarks': {'astronaut': 'datasets/demo/val', 'Set5': 'datasets/nowhere'}},
     r"^tiny, x2, L1Loss: datasets.Set5.dataroot_gt: there is no folder 'datasets/nowhere/GTmod2'"),
    ({'scales': [3]},
     "datasets.train.dataroot_lq: there is no folder 'datasets/demo/demo_train_LR_bicubic_X3_sub.lmdb'"),
    ({'networks': {'tiny': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feats': 8}}},
     "^tiny, x2, L1Loss: network_g.num_feats: is not an option"),
    ({'networks': {'grey': {'type': 'DPDNN', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_step': 1}}},
     'grey, x2, L1Loss: datasets.train.color: ~ gives images of 3 channels, .* or color: y'),
    ({'steps': [{**STEP, 'ema_deacy': 0.9}] * 2}, "train.ema_deacy: is not an option"),
    ({'steps': [{**STEP, 'optim_g': {'type': 'Adam', 'lr': '4e-4'}}] * 2},
     "train.optim_g.lr: expected a number above 0, got the string '4e-4'"),
    ({'networks': {'tiny': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'res_scale': '1E-1'}}},
     "network_g.res_scale: expected a number, got the string '1E-1'"),
    ({'variants': {'L1': [{'type': 'L1Loss', 'loss_weight': '1e-2'}]}},
     "train.pixel_opt.loss_weight: expected a number, got the string '1e-2'"),
    ({'steps': [{**STEP, 'optim_g': {'type': 'Adam', 'lr': 1e-3, 'btas': [0.9, 0.999]}}] * 2},
     "train.optim_g.btas: is not an option of type: Adam .did you mean 'betas'"),
    ({'variants': {'L1': [L1, {'pixel_opt': L1, 'amq': 'bf16'}]}},
     "train.amq: is not an option .did you mean 'amp'"),
    # parts of unequal size, found before step 1 is trained
    ({'variants': {'L1': [ESU, {'pixel_opt': UDL, 'accumulate': 3}]}},
     'ESU then UDL-accumulate=3: train.accumulate: 3: .*batch_size_per_gpu: 2'),
])
def test_wrong_input_is_found_before_anything_is_written(folder, changes, message):
    write_study(folder, **changes)
    with pytest.raises(UserError, match=message):
        run_study(read_study('tiny.yml'))
    assert not (folder / 'results').exists()
