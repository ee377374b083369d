"""Files from strangers: nothing in them runs, and nothing is written where the options do not say."""
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import yaml
from conftest import OPTIONS, TINY, write_malicious

from udl_plugin.checkpoints.safe_load import load_tensors_only
from udl_plugin.cli import convert, upscale
from udl_plugin.training import run as entry

STATE = {'epoch': 0, 'iter': 2, 'optimizers': [], 'schedulers': []}


@pytest.fixture
def run(runner, monkeypatch, capfd):
    """Runs udl-train on a yml in this process; gives the status and the last line of what it said."""
    monkeypatch.chdir(runner.folder)

    def train(yml, *arguments):
        monkeypatch.setattr(sys, 'argv', ['udl-train', '-opt', str(yml), *arguments])
        status = entry.run('basicsr.train', 'train_pipeline')
        return status, capfd.readouterr().err.strip().splitlines()[-1]

    return train


def refused(folder, outcome, *parts):
    status, last = outcome
    assert status == 2
    for part in parts:
        assert part in last
    assert not list(folder.rglob('payload'))
    assert not (folder / 'experiments/step1/models/net_g_latest.pth').exists()


NEEDS_MORE = 'cannot be read as a checkpoint of tensors (it is of another kind, or holds more than tensors'


def test_the_payload_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.load(write_malicious(tmp_path / 'x.pth'), weights_only=False)
    assert (tmp_path / 'payload').read_text() == 'it ran'


def test_malicious_network(runner, run):
    path = write_malicious(runner.folder / 'x.pth')
    yml = runner.write_yml('step1', path__pretrain_network_g=str(path), path__strict_load_g=False)
    refused(runner.folder, run(yml), 'path: pretrain_network_g', NEEDS_MORE)
    refused(runner.folder, run(yml, '--no-check'), 'path: pretrain_network_g', NEEDS_MORE)


def test_malicious_state(runner, run):
    path = write_malicious(runner.folder / 'experiments/step1/training_states/2.state', STATE)
    yml = runner.write_yml('step1', path__resume_state=str(path))
    refused(runner.folder, run(yml), 'path: resume_state', NEEDS_MORE)
    yml = runner.write_yml('step1')
    refused(runner.folder, run(yml, '--auto_resume'), '--auto_resume passes over', NEEDS_MORE)


def test_malicious_network_of_a_state(runner, run):
    write_malicious(runner.folder / 'experiments/step1/models/net_g_2.pth')
    states = runner.folder / 'experiments/step1/training_states'
    states.mkdir()
    torch.save(STATE, states / '2.state')
    refused(runner.folder, run(runner.write_yml('step1'), '--auto_resume'), 'net_g_2.pth', NEEDS_MORE)


@pytest.mark.parametrize('command', [upscale, convert])
def test_malicious_model_of_a_command(runner, monkeypatch, capfd, command):
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
def test_yml_that_asks_for_python(runner, run, text, arguments):
    yml = runner.write_yml('step1')
    yml.write_text(yml.read_text() + f'\nextra: {text}\n')
    refused(runner.folder, run(yml, *arguments), 'only plain data is read')


@pytest.mark.parametrize('text', [
    'train:x=__import__("os").system("touch payload")', 'train:"]=open("payload","w");opt["x=1',
    'name=!!python/object/apply:exec ["open(\'payload\', \'w\')"]', 'scale=[open("payload","w")]'])
def test_override_that_asks_for_python(runner, run, text):
    """BasicSR runs `exec` on it."""
    refused(runner.folder, run(runner.write_yml('step1'), '--force_yml', text))


@pytest.mark.parametrize('name', ['../x', '/tmp/x', 'a/../../x', '..', '', 'a\\b', 'a\0b'])
def test_nothing_is_written_elsewhere(runner, run, name):
    yml = runner.folder / 'x.yml'
    opt = yaml.safe_load((OPTIONS / 'demo/train_udl_step1.yml').read_text())
    for changes in ({'name': name}, {'val': {**opt['val'], 'suffix': name}}):
        opt['network_g'].update(TINY)
        yml.write_text(yaml.safe_dump({**opt, 'num_gpu': 0, **changes}))
        before = sorted(runner.folder.parent.iterdir())
        refused(runner.folder, run(yml), 'a plain name of a file or folder')
        assert sorted(runner.folder.parent.iterdir()) == before
        assert not (runner.folder / 'experiments').exists()


@pytest.mark.parametrize('backend', [
    {'type': 'memcached', 'server_list_cfg': 'x', 'client_cfg': 'x', 'sys_path': 'evil'},
    {'type': 'lmdb', 'readonly': False, 'lock': True}])
@pytest.mark.parametrize('arguments', [[], ['--no-check']])
def test_backend_that_would_run_code_or_write(runner, run, backend, arguments):
    """Upstream imports `mc` from where a yml says."""
    (runner.folder / 'evil').mkdir()
    (runner.folder / 'evil/mc.py').write_text("open('payload', 'w')")
    yml = runner.write_yml('step1', datasets__train__io_backend=backend)
    if arguments and backend['type'] == 'lmdb':
        return  # for the brave
    status, last = run(yml, *arguments)
    assert status == 2
    assert 'io_backend: ' in last
    assert not list(runner.folder.rglob('payload'))


@pytest.mark.parametrize('names', [['../payload'], ['..'], ['a/b'], [5], 5])
def test_unfinished_folder_of_a_stranger(tmp_path, names):
    """What was left of a run is moved by the names that it left; none leads out of the folder."""
    from udl_plugin.errors import UserError
    from udl_plugin.utils.atomic_io import COMPLETE, UNFINISHED, atomic_folders
    (tmp_path / 'payload').write_text('mine')
    (tmp_path / 'data/payload').mkdir(parents=True)
    (tmp_path / 'data' / UNFINISHED).mkdir()
    (tmp_path / 'data' / UNFINISHED / COMPLETE).write_text(json.dumps({'names': names, 'force': True}))
    with pytest.raises(UserError, match='is not of ours'), atomic_folders(tmp_path / 'data', ['x']):
        pass
    assert (tmp_path / 'payload').read_text() == 'mine'


def swollen(tmp_path, kind):
    path = tmp_path / 'x.pth'
    if kind == 'lists':
        content = [0]
        for _ in range(30):
            content = [content] * 5
        torch.save({'params': content}, path)
    elif kind == 'hidden':
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('x/data.pkl', b'x' * 1000)
        path.write_bytes(path.read_bytes() + b'PK\x05\x06')
    elif kind == 'bytes':
        class Bytes:
            def __reduce__(self):
                return bytearray, (10 ** 9,)
        torch.save({'params': {}, 'x': Bytes()}, path)
    elif kind == 'shared':
        one = torch.zeros(10 ** 6)
        torch.save({'params': {str(number): one for number in range(100)}}, path)
    else:
        torch.save({'params': {'weight': torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8)}}, path)
    return path


class Call:
    """As pickle reads it: a call of any function, and a state that is set on what it gives."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments, state)[:2 + (state is not None)]

    def __reduce__(self):
        return self.reduced


POINTERS = b'A' * 8  # bytes that NumPy would take for where an object is
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
    """In a process of its own, which would not live to tell."""
    torch.save({'params': {'x': torch.zeros(1)}, 'y': forged}, tmp_path / 'x.pth')
    code = "from udl_plugin.checkpoints.state_dict import load_tensors; load_tensors('x.pth')"
    process = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.stderr.strip().splitlines()[-1].startswith('udl_plugin.errors.UserError')
    assert 'cannot be read as a checkpoint of tensors' in process.stderr


def test_arrays_of_numbers(tmp_path):
    """As mmengine's checkpoints hold them."""
    arrays = [np.arange(6.).reshape(2, 3).T, np.array([True, False]), np.float32(0.1), np.int64(3)]
    torch.save(arrays, tmp_path / 'x.pth')
    found = load_tensors_only(tmp_path / 'x.pth')
    assert all(np.array_equal(one, other) for one, other in zip(found, arrays))
    assert isinstance(found[3], int)
    torch.save(found, tmp_path / 'y.pth')
    assert all(np.array_equal(one, other) for one, other in zip(load_tensors_only(tmp_path / 'y.pth'), arrays))


@pytest.mark.parametrize('kind', ['lists', 'hidden', 'bytes', 'shared', 'quantized'])
def test_checkpoint_that_would_fill_the_memory(tmp_path, kind):
    from udl_plugin.checkpoints.state_dict import read_state_dict
    from udl_plugin.errors import UserError
    with pytest.raises(UserError, match='cannot be read as a checkpoint'):
        read_state_dict(swollen(tmp_path, kind))


@pytest.mark.parametrize(('said', 'message'), [
    ({'type': 'EDSR', **TINY, 'num_block': 1024}, 'more than its weights can have|would be of more'),
    ({'type': 'EDSR', **TINY, 'num_feat': 200, 'num_block': 200}, 'would be of more'),
    ({'type': 'SwinIR', 'depths': [10 ** 7]}, 'more than its weights can have')])
def test_checkpoint_that_says_it_is_huge(tmp_path, said, message):
    from udl_plugin.archs.build import build_network
    from udl_plugin.checkpoints.network_file import load_network_file
    from udl_plugin.errors import UserError
    torch.save({'params': build_network({'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_group': 1,
                                 'num_block': 1, 'squeeze_factor': 4}).state_dict(), 'network_g': said},
               tmp_path / 'x.pth')
    with pytest.raises(UserError, match=message):
        load_network_file(tmp_path / 'x.pth')


def test_random_numbers_from_beyond():
    """NumPy would read past its state."""
    from udl_plugin.training import rng_state
    states = rng_state.to_tensors(rng_state.capture())
    states['numpy'][2] = 1e8
    with pytest.raises(ValueError, match='no position'):
        rng_state.restore(states)
