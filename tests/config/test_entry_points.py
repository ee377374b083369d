"""Option files through the commands: what the user sees."""
import sys
from pathlib import Path

import pytest
from conftest import OPTIONS

from udl_plugin.cli import upscale
from udl_plugin.cli.train import main
from udl_plugin.config.cross_checks import check_options
from udl_plugin.config.yaml_loader import OptionFile
from udl_plugin.training import run as commands


def refused(monkeypatch, capsys, folder, text, *arguments):
    """What the command writes about a file to stderr, before anything is made."""
    (folder / 'x.yml').write_text(text)
    argv = ['/bin/udl-train', '-opt', 'x.yml', *arguments]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'argv', argv)
    assert main(True) == 2
    assert {path.name for path in folder.iterdir()} <= {'x.yml', 'datasets'}
    assert sys.argv == argv
    return capsys.readouterr().err


@pytest.fixture
def good(runner):
    """The text of an option file without errors, whose data is in the runner's folder."""
    return (OPTIONS / 'demo/train_udl_step1.yml').read_text()


def test_report(runner, good, monkeypatch, capsys):
    """Of one error, of several, of an override; see test_problems.py."""
    bad = good.replace('warmup_iter', 'warmup_itre')
    number = next(line for line, text in enumerate(bad.splitlines(), 1) if 'warmup_itre' in text)
    said = refused(monkeypatch, capsys, runner.folder, bad)
    assert said.splitlines()[-1].startswith(f'udl-train: x.yml, line {number}: train.warmup_itre: is not an option '
                                           "(did you mean 'warmup_iter'?). The options are: total_iter, warmup_iter, ")
    two = bad.replace('pretrain_network_g: ~', 'pretrain_network_g: x.pth')
    said = refused(monkeypatch, capsys, runner.folder, two)
    assert said.splitlines()[0] == 'udl-train: x.yml: 2 problems:'
    said = refused(monkeypatch, capsys, runner.folder, good, '--force_yml', 'name=../x')
    assert said.splitlines()[-1].startswith('udl-train: x.yml, --force_yml name=../x: name: expected a plain file name')


def test_missing_state_is_in_the_report(runner, good, monkeypatch, capsys):
    """Then it is not known which checkpoint the network starts from."""
    text = good.replace('resume_state: ~', 'resume_state: 3.state').replace('type: EDSRVar', 'type: EDSRTwo').replace(
        'type: ESU', 'type: UDL')
    number = next(line for line, text in enumerate(text.splitlines(), 1) if 'resume_state' in text)
    said = refused(monkeypatch, capsys, runner.folder, text)
    assert f"line {number}: path.resume_state: there is no file '3.state'" in said
    assert 'problems' not in said
    said = refused(monkeypatch, capsys, runner.folder, text.replace('warmup_iter', 'warmup_itre'))
    assert 'x.yml: 2 problems:' in said
    assert "path.resume_state: there is no file '3.state'" in said


@pytest.mark.parametrize(('launcher', 'variable'), [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID')])
def test_only_rank_zero_reports(runner, good, monkeypatch, capsys, launcher, variable):
    for rank in (0, 1):
        monkeypatch.setenv(variable, str(rank))
        said = refused(monkeypatch, capsys, runner.folder, good.replace('warmup_iter', 'warmup_itre'), '--launcher',
                       launcher)
        assert bool(said) == (rank == 0)


def test_no_check(runner, good, monkeypatch):
    """The loop gets the options as they are, and UDLModel does not check them either."""
    seen = []

    def train(opt, *_):
        check_options(opt)
        seen.append(opt)

    monkeypatch.setattr(commands, 'train', train)
    monkeypatch.chdir(runner.folder)
    Path('x.yml').write_text(good.replace('warmup_iter', 'warmup_itre'))
    arguments = ['-opt', 'x.yml', '--force_yml', 'train:total_iter=7', '--no-check']
    assert main(True, arguments) == 0
    assert seen[0]['train']['warmup_itre'] == -1
    assert seen[0]['train']['total_iter'] == 7
    assert main(True, arguments[:-1]) == 2


@pytest.mark.parametrize(('file', 'name', 'command'), [
    ('train_udl_step1.yml', None, f'udl-train {OPTIONS}/train_udl_step2.yml'),
    ('train_udl_step1.yml', 'mine', f'udl-train {OPTIONS}/train_udl_step2.yml '
     '--force_yml path:pretrain_network_g=experiments/mine/models/net_g_latest.pth'),
    ('train_udl_step2.yml', None, None), ('train_udl_one_run.yml', None, None),
    ('train/EDSR_S/train_EDSR_S_x4_l1.yml', None, None)])
def test_command_for_step_2(file, name, command):
    data = OptionFile(str(OPTIONS / file)).data
    message = commands.describe_step_2({**data, 'name': name or data['name']}, str(OPTIONS / file))
    assert message == (f'Step 1 is complete. For step 2: {command}' if command else '')


@pytest.mark.parametrize(('file', 'pixel_opt', 'end'), [
    ('train_udl_step2.yml', None, ' --uncertainty'), ('train_udl_one_run.yml', None, ' --uncertainty'),
    ('train/RCAN/train_RCAN_x4_udl_step2.yml', None, ' --uncertainty'),
    ('train/EDSR_S/train_EDSR_S_x4_l1.yml', {'type': 'UDL', 'source': 'teacher_error'}, ''),
    ('train_udl_step1.yml', None, None), ('train/EDSR_S/train_EDSR_S_x4_l1.yml', None, None)])
def test_command_to_upscale_with_the_result(file, pixel_opt, end):
    """udl-upscale takes it; `--uncertainty` only where the checkpoint has a map."""
    data = OptionFile(str(OPTIONS / file)).data
    data['train']['pixel_opt'] = pixel_opt or data['train']['pixel_opt']
    message = commands.describe_upscaling(data)
    command = f'udl-upscale photo.png out.png --model experiments/{data["name"]}/models/net_g_latest.pth{end}'
    assert message == (f'Training is complete. To upscale a photo: {command}' if end is not None else '')
    if message:
        assert upscale.parse(command.split()[1:]).uncertainty == bool(end)


def test_command_for_step_2_without_its_file(tmp_path):
    data = OptionFile(str(OPTIONS / 'train_udl_step1.yml')).data
    assert commands.describe_step_2(data, str(tmp_path / 'my_step1.yml')).endswith(
        'udl-train STEP2.yml --force_yml path:pretrain_network_g=experiments/train_udl_step1/models/net_g_latest.pth')


def test_unfinished_file_of_step_2_does_not_stop_step_1(tmp_path):
    data = OptionFile(str(OPTIONS / 'train_udl_step1.yml')).data
    (tmp_path / 'my_step2.yml').write_text('path: {')
    assert 'udl-train STEP2.yml --force_yml' in commands.describe_step_2(data, str(tmp_path / 'my_step1.yml'))
