"""The whole chain as a user runs it, each command in a process of its own: step 1, step 2, resume, test."""
import os
import shutil
import sys
from pathlib import Path

import basicsr
import cv2
import numpy as np
import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.metrics import calculate_psnr
from conftest import TINY

from udl_plugin.cli.train import main


def ok(process):
    assert process.returncode == 0, process.stdout
    return process.stdout


def params(path):
    return torch.load(path)['params']


def equal(one, other, prefix):
    """Whether the tensors of `one` are those of `other` under `prefix`."""
    return all(torch.equal(value, other[prefix + name]) for name, value in one.items())


def step2(runner, **changes):
    return runner.write_yml('step2', 'demo/train_udl_step2',
                            path__pretrain_network_g='experiments/step1/models/net_g_latest.pth', **changes)


def test_our_entry_points(runner):
    log = ok(runner.train(runner.write_yml('step1')))
    assert 'Network: EDSRVar' in log
    step1 = params(runner.folder / 'experiments/step1/models/net_g_latest.pth')

    yml = step2(runner)
    log = ok(runner.train(yml))
    assert 'will not be optimized' not in log
    assert 'Current net - loaded net' not in log
    models = runner.folder / 'experiments/step2/models'
    full = params(models / 'net_g_latest.pth')
    assert equal(step1, full, 'var_net.')
    assert not any(torch.equal(full[f'sr_net.{name}'], step1[name]) for name in EDSR(**TINY).state_dict())

    # from the middle: take away what came after iteration 2
    (models / 'net_g_4.pth').unlink()
    (models / 'net_g_latest.pth').unlink()
    (models.parent / 'training_states' / '4.state').rename(models.parent / 'training_states' / 'best.state')
    log = ok(runner.train(yml, '--auto_resume'))
    assert 'Resuming training from epoch: 0, iter: 2' in log
    assert 'iter:       3' in log
    assert 'iter:       2,' not in log
    resumed = params(models / 'net_g_latest.pth')
    assert equal(step1, resumed, 'var_net.')

    # the other way to ask for it
    yml = step2(runner, path__resume_state='experiments/step2/training_states/2.state')
    assert 'Resuming training from epoch: 0, iter: 2' in ok(runner.train(yml))

    test = runner.write_yml('test', 'demo/test_udl_step2',
                            path__pretrain_network_g='experiments/step2/models/net_g_latest.pth')
    log = ok(runner.test(test))
    folder = runner.folder / 'results/test/visualization/astronaut'
    assert {path.name for path in folder.iterdir()} == \
        {f'astronaut_test{end}' for end in ('.png', '_expected_error.png', '_expected_error.npy', '_log_var.npy')}
    gt, sr = (cv2.imread(str(path)) for path in (
        runner.folder / 'datasets/demo/val/GTmod2/astronaut.png', folder / 'astronaut_test.png'))
    psnr = calculate_psnr(sr, gt, crop_border=2, test_y_channel=True)
    assert f'# psnr: {psnr:.4f}' in log
    assert np.load(folder / 'astronaut_test_log_var.npy').shape == (3, *gt.shape[:2])

    # what ships is a plain EDSR, for BasicSR's model and arch
    log = ok(runner.run('-m', 'udl_plugin.cli.convert', models / 'net_g_latest.pth', 'edsr.pth'))
    assert 'type: EDSR\n' in log
    assert 'Note' not in log
    plain = runner.write_yml('plain', 'demo/test_l1', path__pretrain_network_g='edsr.pth')
    assert f'# psnr: {psnr:.4f}' in ok(runner.test(plain))

    # and without a yml; the images are those that were validated
    lq = 'datasets/demo/val/LRbicx2'
    ok(runner.run('-m', 'udl_plugin.cli.upscale', lq, 'upscaled', '--model', models / 'net_g_latest.pth',
                  '--uncertainty'))
    ok(runner.run('-m', 'udl_plugin.cli.upscale', f'{lq}/astronaut.png', 'sr.png', '--model', 'edsr.pth'))
    assert (runner.folder / 'sr.png').read_bytes() == (runner.folder / 'upscaled/astronaut.png').read_bytes()
    validated, upscaled = (cv2.imread(str(path)).astype(int) for path in (
        folder / 'astronaut_test.png', runner.folder / 'upscaled/astronaut.png'))
    assert np.abs(validated - upscaled).max() <= 1
    np.testing.assert_allclose(np.load(folder / 'astronaut_test_log_var.npy'),
                               np.load(runner.folder / 'upscaled/astronaut_log_var.npy'), atol=1e-4)

    # nothing elsewhere
    assert {path.name for path in runner.folder.iterdir()} == \
        {'datasets', 'experiments', 'results', 'edsr.pth', 'upscaled', 'sr.png', 'step1.yml', 'step2.yml', 'test.yml',
         'plain.yml'}


FAST = {'train__amp': 'bf16', 'train__channels_last': True, 'train__accumulate': 2, 'train__ema_decay': 0.9,
        'val__amp': 'bf16'}


def test_fast_training_with_cached_maps(runner):
    """Step 2 from the same yml plus two lines; resumed, tested, and what ships is the same."""
    ok(runner.train(runner.write_yml('step1', **{**FAST, 'train__amp': 'fp16'})))
    step1, roots = 'experiments/step1/models/net_g_latest.pth', [
        f'datasets/demo/demo_train_{side}_sub.lmdb' for side in ('HR', 'LR_bicubic_X2')]
    log = ok(runner.run('-m', 'udl_plugin.cli.prepare', 'uncertainty', '--model', step1, '--data', *roots, '--out',
                        'maps/x2.lmdb'))
    assert 'using params_ema, the moving average' in log
    assert '\n  type: PairedImageUncertaintyDataset\n  dataroot_uncertainty: maps/x2.lmdb\n' in log
    ok(runner.run('-m', 'udl_plugin.cli.prepare', 'check', 'maps/x2.lmdb'))

    cached = {'datasets__train__type': 'PairedImageUncertaintyDataset',
              'datasets__train__dataroot_uncertainty': 'maps/x2.lmdb', **FAST}
    yml = step2(runner, **cached)
    log = ok(runner.train(yml))
    assert 'Dataset [PairedImageUncertaintyDataset] - ' in log
    models = runner.folder / 'experiments/step2/models'
    before = torch.load(models / 'net_g_latest.pth')
    (models / 'net_g_latest.pth').unlink()
    assert 'Resuming training from epoch: 0, iter: 4' in ok(runner.train(yml, '--auto_resume'))
    after = torch.load(models / 'net_g_latest.pth')
    for key in ('params', 'params_ema'):
        assert equal(before[key], after[key], '')
        assert {value.dtype for value in after[key].values()} == {torch.float32}
        EDSR(**TINY).load_state_dict({name[7:]: value for name, value in after[key].items() if 'sr_net.' in name})

    test = runner.write_yml('test', 'demo/test_udl_step2', val__amp='bf16',
                            path__pretrain_network_g='experiments/step2/models/net_g_latest.pth')
    log = ok(runner.test(test))
    assert '# psnr: ' in log

    # maps of another set, before anything is made
    yml = step2(runner, **{**cached, 'datasets__train__dataroot_uncertainty': roots[0]})
    process = runner.train(yml)
    assert process.returncode == 2
    assert "datasets.train.dataroot_uncertainty: 'datasets/demo/demo_train_HR_sub.lmdb' has no" in process.stdout


@pytest.fixture
def checkout(runner):
    """A folder that looks like a BasicSR checkout: a copy of the installed package."""
    shutil.copytree(Path(basicsr.__file__).parent, runner.folder / 'basicsr',
                    ignore=shutil.ignore_patterns('__pycache__'))
    return runner


def test_unmodified_basicsr(checkout):
    """`python basicsr/train.py -opt ...`: only the start-up line knows of us."""
    runner = checkout
    assert any((Path(folder) / 'udl_plugin_autoload.pth').exists() for folder in sys.path), \
        'udl_plugin is not installed: pip install -e .'
    log = ok(runner.run('basicsr/train.py', '-opt', runner.write_yml('step1', train__ema_decay=0.9)))
    assert 'Model [UDLModel] is created' in log
    ok(runner.run('basicsr/train.py', '-opt', step2(runner, train__ema_decay=0.9)))
    step1 = torch.load(runner.folder / 'experiments/step1/models/net_g_latest.pth')['params_ema']
    full = torch.load(runner.folder / 'experiments/step2/models/net_g_latest.pth')
    assert equal(step1, full['params'], 'var_net.')
    assert equal(step1, full['params_ema'], 'var_net.')
    test = runner.write_yml('test', 'demo/test_udl_step2',
                            path__pretrain_network_g='experiments/step2/models/net_g_latest.pth')
    ok(runner.run('basicsr/test.py', '-opt', test))
    assert (runner.folder / 'results/test/visualization/astronaut/astronaut_test_expected_error.png').exists()


def test_entry_point_as_a_file(runner):
    """`python udl_plugin/train.py -opt ...` in a checkout, from any folder, even with the start-up line off."""
    import udl_plugin
    script = Path(udl_plugin.__file__).with_name('train.py')
    yml = runner.write_yml('step1', train__total_iter=1, val=None)
    log = ok(runner.run(script, '-opt', yml, UDL_PLUGIN_AUTOLOAD='0', PYTHONPATH=os.pathsep.join(sys.path[1:])))
    assert 'Model [UDLModel] is created' in log
    assert (runner.folder / 'experiments/step1/models/net_g_latest.pth').exists()
    assert not (script.parent / 'experiments').exists()


@pytest.fixture
def rejected(runner, monkeypatch, capfd):
    """Trains in this process, which must end with status 2 and no traceback; returns the last line."""
    monkeypatch.chdir(runner.folder)

    def train(yml):
        assert main(True, ['-opt', str(yml)]) == 2
        text = capfd.readouterr().err
        assert 'Traceback' not in text
        return text.splitlines()[-1]

    return train


def test_bad_input_is_one_line_before_the_first_iteration(runner, rejected):
    process = runner.train('nowhere.yml')
    assert process.returncode == 2
    assert process.stdout.splitlines()[-1].endswith(": 'nowhere.yml': No such file or directory.")
    for yml, *parts in (
            (runner.write_yml('a', datasets__train__dataroot_lq='datasets/nowhere.lmdb'),
             'datasets.train.dataroot_lq', 'datasets/nowhere.lmdb'),
            (runner.write_yml('b', network_g__upscale=4), 'scale: 2', 'upscale: 4'),
            (runner.write_yml('c', train__pixel_opt={'type': 'ESU', 'img_rnage': 1}), 'train.pixel_opt.img_rnage',
             "did you mean 'img_range'"),
            (step2(runner), 'path.pretrain_network_g', 'experiments/step1/models/net_g_latest.pth')):
        line = rejected(yml)
        assert all(part in line for part in parts), line
    assert not (runner.folder / 'experiments').exists()


def test_overrides_and_what_is_not_checked(runner):
    """`--force_yml` sets options, and the experiment says so; `--no-check` lets a wrong border pass."""
    yml = runner.write_yml('step1', val__metrics__psnr__crop_border=3)
    overrides = ['train:total_iter=1', 'logger:save_checkpoint_freq=5', 'train:optim_g:lr=1e-5', 'val:val_freq=1']
    process = runner.train(yml, '--force_yml', *overrides)
    assert process.returncode == 2
    assert process.stdout.endswith('3 does not agree with scale: 2; write 2 (--no-check accepts 3).\n')
    log = ok(runner.train(yml, '--force_yml', *overrides, '--no-check'))
    assert 'iter:       1, lr:(1.000e-05' in log
    assert 'iter:       2' not in log
    copied = (runner.folder / 'experiments/step1/step1.yml').read_text()
    assert '--force_yml train:total_iter=1 ' in copied  # BasicSR's line with the command
    assert copied.endswith(yml.read_text())


def test_rejected_run_replaces_no_finished_one(runner, rejected):
    ok(runner.train(runner.write_yml('step1', train__total_iter=1, val=None)))
    for changes in ({'network_g__num_feats': 8}, {'network_g__type': 'EDSRTwo'}, {'train__pixel_opt': {'type': 'UDL'}},
                    {'path__pretrain_network_g': 'nowhere.pth'}, {'path__resume_state': 'nowhere.state'},
                    {'path__resume_state': 'experiments/step1/models/net_g_latest.pth'},
                    {'network_g__num_block': 3, 'path__pretrain_network_g': 'experiments/step1/models/net_g_1.pth'}):
        rejected(runner.write_yml('step1', **changes))
    assert [path.name for path in (runner.folder / 'experiments').iterdir()] == ['step1']
