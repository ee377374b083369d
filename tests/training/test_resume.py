"""Which training state a training resumes from."""
import re

import pytest
import torch

from udl_plugin.checkpoints.state_dict import fingerprint
from udl_plugin.errors import UserError
from udl_plugin.training.resume import find_resume_state


@pytest.fixture
def opt(tmp_path):
    for name in ('models', 'training_states'):
        (tmp_path / name).mkdir()
    for iteration in (2, 4, 10):
        torch.save({'params': {'weight': torch.rand(1000)}}, tmp_path / f'models/net_g_{iteration}.pth')
        torch.save({'epoch': 0, 'iter': iteration, 'optimizers': [torch.rand(1000)], 'schedulers': []},
                   tmp_path / f'training_states/{iteration}.state')
    return {'auto_resume': True, 'is_train': True, 'network_g': {}, 'path': {
        'models': str(tmp_path / 'models'), 'training_states': str(tmp_path / 'training_states'),
        'resume_state': None, 'pretrain_network_g': None}}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_newest_by_number(opt):
    state, messages = find_resume_state(opt)
    assert state['iter'] == 10
    assert messages == []
    assert opt['path']['resume_state'].endswith('training_states/10.state')
    assert opt['path']['pretrain_network_g'].endswith('models/net_g_10.pth')


@pytest.mark.parametrize(('harm', 'message'), [
    (lambda folder: truncate(folder / 'training_states/10.state'), r"training_states/10\.state' cannot be read as a"),
    (lambda folder: (folder / 'training_states/10.state').write_bytes(b''), r"10\.state' cannot be read as a"),
    (lambda folder: truncate(folder / 'models/net_g_10.pth'), r"models/net_g_10\.pth' cannot be read as a checkpoint"),
    (lambda folder: (folder / 'models/net_g_10.pth').unlink(), r"there is no file '.*models/net_g_10\.pth'"),
    (lambda folder: torch.save({}, folder / 'training_states/10.state'), r"10\.state' is not a training state"),
    (lambda folder: (folder / 'training_states/10.state').write_bytes(
        (folder / 'training_states/2.state').read_bytes()), r"10\.state' is the state of iteration 2"),
])
def test_incomplete_pair_is_skipped_and_kept(opt, tmp_path, harm, message):
    harm(tmp_path)
    before = files(tmp_path)
    state, (line,) = find_resume_state(opt)
    assert state['iter'] == 4
    assert re.match(r"--auto_resume skips '.*training_states/10\.state': ", line)
    assert re.search(message, line)
    assert files(tmp_path) == before


def test_doubtful_weights_are_skipped(opt, tmp_path):
    """Of a training that ended because nothing was finite any more; unless there are no others."""
    def skipping(iteration):
        path = tmp_path / f'training_states/{iteration}.state'
        torch.save({**torch.load(path), 'skips_in_row': 3}, path)

    skipping(10), skipping(4)
    state, messages = find_resume_state(opt)
    assert state['iter'] == 2
    assert [line.split("': ")[1] for line in messages] == 2 * [
        'the iterations before it were skipped as not finite, possibly because of its weights. To resume from it, name '
        'it as path: resume_state.']
    skipping(2)
    assert find_resume_state(opt)[0]['iter'] == 10


def test_other_file_names_are_ignored(opt, tmp_path):
    for name in ('best.state', '-3.state', '5.5.state', '.12.state.77.tmp'):
        (tmp_path / 'training_states' / name).write_bytes(b'x')
    assert find_resume_state(opt)[0]['iter'] == 10


def test_no_usable_state(opt, tmp_path):
    """Starting from scratch without a word would be the worst."""
    for path in (tmp_path / 'training_states').iterdir():
        truncate(path)
    with pytest.raises(UserError, match=r'(skips .*){3}No usable state is left in .*\. Without --auto_resume'):
        find_resume_state(opt)


def test_no_state_yet(opt, tmp_path):
    for path in (tmp_path / 'training_states').iterdir():
        path.unlink()
    nothing = (None, ['--auto_resume: no training state yet; starting a new training.'])
    assert find_resume_state(opt) == nothing
    (tmp_path / 'training_states').rmdir()
    assert find_resume_state(opt) == nothing


def test_named_state_is_used_or_rejected(opt, tmp_path):
    opt['auto_resume'], path = False, tmp_path / 'training_states/4.state'
    opt['path']['resume_state'] = str(path)
    assert find_resume_state(opt)[0]['iter'] == 4
    truncate(path)
    with pytest.raises(UserError, match=r"path.resume_state: '.*4\.state' cannot be read"):
        find_resume_state(opt)


def test_network_of_another_training(opt, tmp_path):
    """As after a training, resumed from an older state, was killed between writing network and state."""
    for number in (4, 10):
        network = torch.load(tmp_path / f'models/net_g_{4}.pth')['params']
        path = tmp_path / f'training_states/{number}.state'
        torch.save({**torch.load(path), 'network': fingerprint(network)}, path)
    state, messages = find_resume_state(opt)
    assert state['iter'] == 4
    assert "net_g_10.pth' was written by another training than this state." in messages[0]


@pytest.mark.parametrize('auto_resume', [True, False])
def test_state_of_another_training_until_this_one_has_its_own(opt, tmp_path, auto_resume):
    (tmp_path / 'training_states/10.state').rename(tmp_path / 'other.state')
    opt['auto_resume'], opt['path']['resume_state'] = auto_resume, str(tmp_path / 'other.state')
    assert find_resume_state(opt)[0]['iter'] == (4 if auto_resume else 10)
    opt['path'].update(training_states=str(tmp_path / 'none'), resume_state=str(tmp_path / 'other.state'))
    assert find_resume_state(opt)[0]['iter'] == 10
    opt['path']['resume_state'] = 'nowhere.state'
    with pytest.raises(UserError, match="path.resume_state: there is no file 'nowhere.state'"):
        find_resume_state(opt)


def test_param_key_of_the_initial_weights_does_not_apply(opt):
    opt['path']['param_key_g'] = None
    find_resume_state(opt)
    assert opt['path']['param_key_g'] == 'params'


@pytest.mark.parametrize('is_missing', [True, False])
def test_named_state_of_another_run(opt, tmp_path, is_missing):
    """Not the network, which BasicSR looks for in this run's folder, is to blame."""
    other, path = tmp_path / 'other.state', tmp_path / 'models/net_g_4.pth'
    torch.save({**torch.load(tmp_path / 'training_states/4.state'), 'network': 'that of the other run'}, other)
    opt.update(auto_resume=False)
    opt['path']['resume_state'] = str(other)
    if is_missing:
        path.unlink()
    reason = 'there is no file' if is_missing else "models/net_g_4.pth' was written by another training"
    message = f"path.resume_state: .*{reason}.* To continue the run that wrote '.*other.state', write its name; to "
    with pytest.raises(UserError, match=f'{message}start from its weights, set pretrain_network_g to its net_g_4.pth'):
        find_resume_state(opt)
    opt['path'].update(ignore_resume_networks=['network_g'], pretrain_network_g='x.pth')
    assert find_resume_state(opt)[0]['iter'] == 4
