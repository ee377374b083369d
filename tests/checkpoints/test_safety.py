"""Untrusted files: nothing in them is executed, and nothing is written outside the folders that the options name."""
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import OPTIONS, TINY, write_malicious

from udl_plugin.checkpoints.safe_load import load_tensors_only
from udl_plugin.cli import convert, upscale
from udl_plugin.cli.train import main

STATE = {'epoch': 0, 'iter': 2, 'optimizers': [], 'schedulers': []}


@pytest.fixture
def run(runner, monkeypatch, capfd):
    """Runs udl-train in this process; returns the exit status and the last line on stderr."""
    monkeypatch.chdir(runner.folder)

    def train(yml, *arguments):
        monkeypatch.setattr(sys, 'argv', ['udl-train', '-opt', str(yml), *arguments])
        status = main(True)
        return status, capfd.readouterr().err.strip().splitlines()[-1]

    return train


def assert_refused(folder, outcome, *parts):
    status, last_line = outcome
    assert status == 2
    for part in parts:
        assert part in last_line
    assert not list(folder.rglob('payload'))
    assert not (folder / 'experiments/step1/models/net_g_latest.pth').exists()


NOT_TENSORS = 'cannot be read as a checkpoint of tensors (it has another format, or holds Python objects'


def test_the_payload_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.load(write_malicious(tmp_path / 'x.pth'), weights_only=False)
    assert (tmp_path / 'payload').read_text() == 'it ran'


def test_malicious_network(runner, run):
    path = write_malicious(runner.folder / 'x.pth')
    yml = runner.write_yml('step1', path__pretrain_network_g=str(path), path__strict_load_g=False)
    assert_refused(runner.folder, run(yml), 'path.pretrain_network_g', NOT_TENSORS)
    assert_refused(runner.folder, run(yml, '--no-check'), 'path.pretrain_network_g', NOT_TENSORS)


def test_malicious_state(runner, run):
    path = write_malicious(runner.folder / 'experiments/step1/training_states/2.state', STATE)
    yml = runner.write_yml('step1', path__resume_state=str(path))
    assert_refused(runner.folder, run(yml), 'path.resume_state', NOT_TENSORS)
    yml = runner.write_yml('step1')
    assert_refused(runner.folder, run(yml, '--auto_resume'), '--auto_resume skips', NOT_TENSORS)


def test_malicious_network_beside_a_state(runner, run):
    write_malicious(runner.folder / 'experiments/step1/models/net_g_2.pth')
    states = runner.folder / 'experiments/step1/training_states'
    states.mkdir()
    torch.save(STATE, states / '2.state')
    assert_refused(runner.folder, run(runner.write_yml('step1'), '--auto_resume'), 'net_g_2.pth', NOT_TENSORS)


@pytest.mark.parametrize('command', [upscale, convert])
def test_malicious_model_in_a_command(runner, monkeypatch, capfd, command):
    monkeypatch.chdir(runner.folder)
    path = str(write_malicious(runner.folder / 'x.pth'))
    arguments = ['in.png', 'out.png', '--model', path] if command is upscale else [path, 'out.pth']
    (runner.folder / 'in.png').write_bytes(b'')
    monkeypatch.setattr(sys, 'argv', ['udl', *arguments])
    with pytest.raises(SystemExit) as ended:
        sys.exit(command.main())
    assert ended.value.code
    assert 'cannot be read as a checkpoint of tensors' in capfd.readouterr().err
    assert not (runner.folder / 'payload').exists()
    assert not list(runner.folder.glob('out.*'))


@pytest.mark.parametrize('text', [
    '!!python/object/apply:exec ["open(\'payload\', \'w\')"]', '!!python/object/new:exec ["open(\'payload\', \'w\')"]',
    '!!python/name:os.system'])
@pytest.mark.parametrize('arguments', [(), ('--no-check',)])
def test_yml_with_python_tags(runner, run, text, arguments):
    yml = runner.write_yml('step1')
    yml.write_text(yml.read_text() + f'\nextra: {text}\n')
    assert_refused(runner.folder, run(yml, *arguments), 'only plain data is read')


@pytest.mark.parametrize('text', [
    'train:x=__import__("os").system("touch payload")', 'train:"]=open("payload","w");opt["x=1',
    'name=!!python/object/apply:exec ["open(\'payload\', \'w\')"]', 'scale=[open("payload","w")]'])
def test_override_with_python_code(runner, run, text):
    """BasicSR passes it to `exec`."""
    assert_refused(runner.folder, run(runner.write_yml('step1'), '--force_yml', text))


@pytest.mark.parametrize('name', ['../x', '/tmp/x', 'a/../../x', '..', '', 'a\\b', 'a\0b'])
def test_no_name_leads_out_of_its_folder(runner, run, name):
    yml = runner.folder / 'x.yml'
    opt = yaml.safe_load((OPTIONS / 'demo/train_udl_step1.yml').read_text())
    for changes in ({'name': name}, {'val': {**opt['val'], 'suffix': name}}):
        opt['network_g'].update(TINY)
        yml.write_text(yaml.safe_dump({**opt, 'num_gpu': 0, **changes}))
        before = sorted(runner.folder.parent.iterdir())
        assert_refused(runner.folder, run(yml), 'a plain file name')
        assert sorted(runner.folder.parent.iterdir()) == before
        assert not (runner.folder / 'experiments').exists()


@pytest.mark.parametrize('backend', [
    {'type': 'memcached', 'server_list_cfg': 'x', 'client_cfg': 'x', 'sys_path': 'evil'},
    {'type': 'lmdb', 'readonly': False, 'lock': True}])
@pytest.mark.parametrize('arguments', [[], ['--no-check']])
def test_backend_that_would_run_code_or_write(runner, run, backend, arguments):
    """BasicSR imports `mc` from the folder that a yml names."""
    (runner.folder / 'evil').mkdir()
    (runner.folder / 'evil/mc.py').write_text("open('payload', 'w')")
    yml = runner.write_yml('step1', datasets__train__io_backend=backend)
    if arguments and backend['type'] == 'lmdb':
        return  # --no-check accepts it
    status, last_line = run(yml, *arguments)
    assert status == 2
    assert 'io_backend' in last_line
    assert not list(runner.folder.rglob('payload'))


class Call:
    """Unpickles as a call of any function, and a state that is set on its result."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments, state)[:2 + (state is not None)]

    def __reduce__(self):
        return self.reduced


POINTERS = b'A' * 8  # bytes that NumPy would take for a pointer to an object
OBJECTS = Call(np.dtype, 'O')
RECONSTRUCT, SCALAR = np.array(0).__reduce__()[0], np.float64(0).__reduce__()[0]
HIDDEN = Call(np.dtype, 'f8', False, True, state=(3, '<', None, ('a',), {'a': (OBJECTS, 0)}, 8, 8, 63))


@pytest.mark.parametrize('forged', [
    Call(np.ndarray, Call(np.ndarray, (1,), OBJECTS, POINTERS)),
    Call(SCALAR, Call(np.dtype, [('a', 'O')]), Call(np.ndarray, (), OBJECTS, POINTERS)),
    Call(RECONSTRUCT, np.ndarray, (0,), b'b', state=(1, (1,), HIDDEN, False, POINTERS)),
    Call(RECONSTRUCT, np.ndarray, (0,), b'b', state=(1, (9,), np.dtype('f8'), False, POINTERS)),
    Call(SCALAR, np.dtype('f8'), POINTERS[:4]),
], ids=['array', 'scalar', 'field', 'length', 'short'])
def test_arrays_that_are_none(tmp_path, forged):
    """In a process of its own, which NumPy would crash."""
    torch.save({'params': {'x': torch.zeros(1)}, 'y': forged}, tmp_path / 'x.pth')
    code = "from udl_plugin.checkpoints.safe_load import load_checkpoint; load_checkpoint('x.pth')"
    process = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.stderr.strip().splitlines()[-1].startswith('udl_plugin.errors.UserError')
    assert 'cannot be read as a checkpoint of tensors' in process.stderr


def test_arrays_of_numbers(tmp_path):
    """As in mmengine's checkpoints."""
    arrays = [np.arange(6.).reshape(2, 3).T, np.array([True, False]), np.float32(0.1), np.int64(3)]
    torch.save(arrays, tmp_path / 'x.pth')
    found = load_tensors_only(tmp_path / 'x.pth')
    assert all(np.array_equal(one, other) for one, other in zip(found, arrays))
    assert isinstance(found[3], int)
    torch.save(found, tmp_path / 'y.pth')
    assert all(np.array_equal(one, other) for one, other in zip(load_tensors_only(tmp_path / 'y.pth'), arrays))


def test_random_state_with_a_position_out_of_range():
    """NumPy would read past the end of its state."""
    from udl_plugin.training import rng_state
    states = rng_state.to_tensors(rng_state.capture())
    states['numpy'][2] = 1e8
    with pytest.raises(ValueError, match='no position'):
        rng_state.from_tensors(states)
