"""Files from strangers: nothing in them runs, and nothing is written where the options do not say."""
import sys

import pytest
import torch
import yaml
from conftest import OPTIONS, TINY

from udl_plugin import entry
from udl_plugin.cli import convert_checkpoint, upscale

STATE = {'epoch': 0, 'iter': 2, 'optimizers': [], 'schedulers': []}


class Malicious:
    """As pickle reads it: a call of any function."""

    def __reduce__(self):
        return exec, ("open('payload', 'w').write('it ran')",)


def write_malicious(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**(content or {}), 'params': {'weight': torch.rand(2)}, 'x': Malicious()}, path)
    return path


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


@pytest.mark.parametrize('command', [upscale, convert_checkpoint])
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
