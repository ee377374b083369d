"""Which state a training resumes from, and what else hangs on the names of upstream's pipeline."""
import os
import random
import re
import time
import types
from urllib.error import URLError

import pytest
import torch
from basicsr.data.data_sampler import EnlargedSampler
from torch.utils.data import DataLoader, Dataset

from udl_plugin.data.checked_dataset import CheckedDataset
from udl_plugin.errors import UserError
from udl_plugin.training import resumable_loader, rng_state
from udl_plugin.training import run as entry
from udl_plugin.training.patched import Session
from udl_plugin.training.resume import load_resume_state


@pytest.fixture
def opt(tmp_path):
    for name in ('models', 'training_states'):
        (tmp_path / name).mkdir()
    for iteration in (2, 4, 10):
        torch.save({'params': {'weight': torch.rand(1000)}}, tmp_path / f'models/net_g_{iteration}.pth')
        torch.save({'epoch': 0, 'iter': iteration, 'optimizers': [torch.rand(1000)], 'schedulers': []},
                   tmp_path / f'training_states/{iteration}.state')
    return {'auto_resume': True, 'network_g': {}, 'path': {
        'models': str(tmp_path / 'models'), 'training_states': str(tmp_path / 'training_states'),
        'resume_state': None, 'pretrain_network_g': None}}


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_newest_by_number(opt):
    state, notes = load_resume_state(opt)
    assert state['iter'] == 10
    assert notes == []
    assert opt['path']['resume_state'].endswith('training_states/10.state')
    assert opt['path']['pretrain_network_g'].endswith('models/net_g_10.pth')


@pytest.mark.parametrize(('harm', 'told'), [
    (lambda folder: cut(folder / 'training_states/10.state'), r"training_states/10\.state' cannot be read as a"),
    (lambda folder: (folder / 'training_states/10.state').write_bytes(b''), r"10\.state' cannot be read as a"),
    (lambda folder: cut(folder / 'models/net_g_10.pth'), r"models/net_g_10\.pth' cannot be read as a checkpoint"),
    (lambda folder: (folder / 'models/net_g_10.pth').unlink(), r"there is no file '.*models/net_g_10\.pth'"),
    (lambda folder: torch.save({}, folder / 'training_states/10.state'), r"10\.state' is not a training state"),
    (lambda folder: (folder / 'training_states/10.state').write_bytes(
        (folder / 'training_states/2.state').read_bytes()), r"10\.state' is the state of iteration 2"),
])
def test_torn_pair_is_passed_over_and_kept(opt, tmp_path, harm, told):
    harm(tmp_path)
    before = files(tmp_path)
    state, (note,) = load_resume_state(opt)
    assert state['iter'] == 4
    assert re.match(r"--auto_resume passes over '.*training_states/10\.state': ", note)
    assert re.search(told, note)
    assert files(tmp_path) == before


def test_weights_that_may_be_wrong_are_passed_over(opt, tmp_path):
    """Those of a training that ended since nothing was finite any more; unless there are no others."""
    def skipping(iteration):
        path = tmp_path / f'training_states/{iteration}.state'
        torch.save({**torch.load(path), 'skips_in_row': 3}, path)

    skipping(10), skipping(4)
    state, notes = load_resume_state(opt)
    assert state['iter'] == 2
    assert [note.split("': ")[1] for note in notes] == 2 * [
        'its last iterations were skipped, and its weights may be why (path: resume_state takes it all the same).']
    skipping(2)
    assert load_resume_state(opt)[0]['iter'] == 10


def test_other_names_do_not_count(opt, tmp_path):
    for name in ('best.state', '-3.state', '5.5.state', '.12.state.77.tmp'):
        (tmp_path / 'training_states' / name).write_bytes(b'x')
    assert load_resume_state(opt)[0]['iter'] == 10


def test_none_is_whole(opt, tmp_path):
    """To begin anew in silence would be the worst."""
    for path in (tmp_path / 'training_states').iterdir():
        cut(path)
    with pytest.raises(UserError, match=r'(passes over.*){3}None is left in .*\. Without --auto_resume'):
        load_resume_state(opt)


def test_nothing_there_yet(opt, tmp_path):
    for path in (tmp_path / 'training_states').iterdir():
        path.unlink()
    assert load_resume_state(opt) == (None, [])
    (tmp_path / 'training_states').rmdir()
    assert load_resume_state(opt) == (None, [])


def test_state_that_was_asked_for_is_taken_or_refused(opt, tmp_path):
    opt['auto_resume'], path = False, tmp_path / 'training_states/4.state'
    opt['path']['resume_state'] = str(path)
    assert load_resume_state(opt)[0]['iter'] == 4
    cut(path)
    with pytest.raises(UserError, match=r"path: resume_state: '.*4\.state' cannot be read"):
        load_resume_state(opt)


def test_epochs_go_on_from_the_state():
    """With smaller batches than before, of which more fit into an epoch."""
    module = types.SimpleNamespace(create_train_val_dataloader=lambda *_: (None, None, [], 3, 60),
                                   load_resume_state=lambda opt: None)
    with Session(module, lambda opt: ({'epoch': 13, 'iter': 40}, [])) as session:
        module.load_resume_state({'rank': 1})
        session.train_loader = range(12)
        assert module.create_train_val_dataloader({}, None)[3] == 13 + 2


def test_network_of_another_run(opt, tmp_path):
    """As where a run that went on from an older state was killed between network and state."""
    from udl_plugin.checkpoints.state_dict import fingerprint
    for number in (4, 10):
        network = torch.load(tmp_path / f'models/net_g_{4}.pth')['params']
        path = tmp_path / f'training_states/{number}.state'
        torch.save({**torch.load(path), 'network': fingerprint(network)}, path)
    state, notes = load_resume_state(opt)
    assert state['iter'] == 4
    assert "net_g_10.pth' is of another run than it." in notes[0]


@pytest.mark.parametrize('auto_resume', [True, False])
def test_state_of_another_training_until_there_are_own_ones(opt, tmp_path, auto_resume):
    (tmp_path / 'training_states/10.state').rename(tmp_path / 'other.state')
    opt['auto_resume'], opt['path']['resume_state'] = auto_resume, str(tmp_path / 'other.state')
    assert load_resume_state(opt)[0]['iter'] == (4 if auto_resume else 10)
    opt['path'].update(training_states=str(tmp_path / 'none'), resume_state=str(tmp_path / 'other.state'))
    assert load_resume_state(opt)[0]['iter'] == 10
    opt['path']['resume_state'] = 'nowhere.state'
    with pytest.raises(UserError, match="path: resume_state: there is no file 'nowhere.state'"):
        load_resume_state(opt)


def whole_state():
    states = rng_state.to_tensors(rng_state.capture())
    resumable_loader = {'epoch': 0, 'seen': 4, 'images': 8, 'batch_size': 2, 'begun': states, 'loaders': [states, None]}
    return {'places': [resumable_loader], 'random': [states], 'validated': False, 'skips': 1, 'skips_in_row': 0,
            'best_metric_results': {'Set5': {'psnr': {'better': 'higher', 'val': 30.1, 'iter': 4}}}}


@pytest.mark.parametrize(('where', 'value'), [
    (('places',), 3), (('places',), []), (('places', 0, 'batch_size'), 0), (('places', 0, 'seen'), '4'),
    (('places', 0, 'loaders'), [{}]), (('places', 0, 'begun', 'numpy'), []), (('random', 0, 'torch'), None),
    (('random', 0, 'python', 1), torch.zeros(3)), (('best_metric_results', 'Set5'), {'psnr': 3}),
    (('best_metric_results', 'Set5', 'psnr', 'val'), [1]), (('skips',), 'x'), ((), None)])
def test_spoilt_state_is_passed_over(opt, tmp_path, where, value):
    path = tmp_path / 'training_states/10.state'
    content = {**torch.load(path), **whole_state()}
    section = content
    for key in where[:-1]:
        section = section[key]
    if where:
        section[where[-1]] = value
    torch.save(content, path)
    before = rng_state.to_tensors(rng_state.capture())
    state, notes = load_resume_state(opt)
    assert (state['iter'], len(notes)) == ((4, 1) if where else (10, 0))
    assert not where or "10.state' is not a training state of this version: " in notes[0]
    assert torch.equal(rng_state.to_tensors(rng_state.capture())['python'][1], before['python'][1])


def test_two_trainings_of_one_name(opt, tmp_path):
    """The other one is not disturbed; what is not the first process of a training asks nothing."""
    opt['path']['experiments_root'] = str(tmp_path)
    modules = [types.SimpleNamespace(load_resume_state=None) for _ in range(3)]
    with Session(modules[0], load_resume_state), Session(modules[1], load_resume_state), \
            Session(modules[2], load_resume_state):
        modules[0].load_resume_state({**opt, 'rank': 0})
        with pytest.raises(UserError, match=f"'{tmp_path}': another process is writing there now"):
            modules[1].load_resume_state({**opt, 'rank': 0})
        modules[2].load_resume_state({**opt, 'rank': 1})
        modules[0].load_resume_state({**opt, 'rank': 0})  # the same again
    with Session(modules[1], load_resume_state):
        modules[1].load_resume_state({**opt, 'rank': 0})


def test_key_of_the_first_weights_is_not_that_of_ours(opt):
    opt['path']['param_key_g'] = None
    load_resume_state(opt)
    assert opt['path']['param_key_g'] == 'params'


@pytest.mark.parametrize(('epochs', 'batches', 'total_iter', 'wanted'), [
    (5, 1, 10, 10),  # 23 images in batches of 12: upstream counts two a epoch, trains one, and would end after 6
    (25, 10, 1000, 100),  # four GPUs under DataParallel
    (3, 10, 30, 3), (4, 10, 31, 4)])
def test_epochs_last_until_total_iter(epochs, batches, total_iter, wanted):
    module = types.SimpleNamespace(create_train_val_dataloader=lambda *_: (None, None, [], epochs, total_iter))
    with Session(module, load_resume_state) as session:
        session.train_loader = range(batches)
        assert module.create_train_val_dataloader({}, None) == (None, None, [], wanted, total_iter)
    assert module.create_train_val_dataloader()[3] == epochs, 'as before'


def test_lost_validation_draws_what_it_would_have():
    """The random numbers of the state, and training goes on with those behind them."""
    drawn, main = [], rng_state.to_tensors(rng_state.capture())
    wanted = [random.random(), random.random()]
    session = Session(types.SimpleNamespace(), load_resume_state)
    session.state, session.val_loaders = {'iter': 8, 'validated': False}, [1]
    session.train_loader = types.SimpleNamespace(main=main)
    session.model = types.SimpleNamespace(validation=lambda *_: drawn.append(random.random()))
    for val_freq, validations in ((3, 0), (4, 1)):
        session._validate({'val': {'val_freq': val_freq, 'save_img': False}}, None)
        assert len(drawn) == validations
    rng_state.restore(session.train_loader.main)
    assert [*drawn, random.random()] == wanted


class Lost(Dataset):
    """Whose loading process ends, or hangs, at the second image."""

    opt = types.MappingProxyType({'name': 'lost'})

    def __init__(self, end):
        self.end = end

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {'lq': torch.rand(1)} if index == 0 else self.end()


@pytest.mark.parametrize(('end', 'told'), [
    (lambda: os._exit(1), r'DataLoader worker \(pid.*? \d+\) exited unexpectedly[a-z 1]*: a loading process was lost'),
    (lambda: time.sleep(60), 'DataLoader timed out after 2 seconds: a loading process was lost')])
def test_lost_loading_process_is_explained(end, told, monkeypatch):
    monkeypatch.setattr(resumable_loader, 'TIMEOUT', 2)
    dataset = CheckedDataset(Lost(end), 'datasets: train')
    session = Session(types.SimpleNamespace(), load_resume_state)
    session.train_loader = resumable_loader.ResumableDataLoader(
        lambda dataset, sampler: DataLoader(dataset, 1, num_workers=1, sampler=sampler), dataset,
        EnlargedSampler(dataset, 1, 0, 1))
    with pytest.raises(RuntimeError) as caught:
        list(session.train_loader)
    assert re.match(f'datasets: train: {told}', session.explain(caught.value))
    assert session.explain(RuntimeError(
        'DataLoader worker (pid 3) is killed by signal: Killed. ')).startswith(
            'datasets: train: DataLoader worker (pid 3) is killed by signal: Killed: a loading process was lost')
    assert session.explain(RuntimeError('CUDA out of memory')) is None


@pytest.fixture
def train(runner, monkeypatch, capfd):
    """udl-train in this process; gives the status and the last line on stderr."""
    monkeypatch.chdir(runner.folder)

    def run(yml, *arguments):
        monkeypatch.setattr('sys.argv', ['udl-train', '-opt', str(yml), *arguments])
        status = entry.run('basicsr.train', 'train_pipeline')
        return status, capfd.readouterr().err.strip().splitlines()[-1:]

    return run


@pytest.mark.parametrize(('launcher', 'variable', 'command'), [
    ('pytorch', 'RANK', 'torchrun'), ('slurm', 'SLURM_PROCID', 'srun')])
def test_launcher_that_launched_nothing(runner, train, monkeypatch, launcher, variable, command):
    monkeypatch.delenv(variable, raising=False)
    status, (told,) = train(runner.write_yml('step1'), '--launcher', launcher)
    assert status == 2
    assert told.startswith(f'udl-train: --launcher {launcher}: {variable}, ')
    assert told.endswith(f' is not set: start the processes with {command}, as docs/scaling.md has it.')


def test_copy_of_the_yml(runner, train, monkeypatch):
    """It is whole, is no yml to begin anew with, for it would get another name, and one to go on with."""
    yml = runner.write_yml('step1', train__total_iter=2, val=None)
    assert train(yml)[0] == 0
    copied = runner.folder / 'experiments/step1/step1.yml'
    assert copied.read_text().endswith(yml.read_text())
    before = sorted(runner.folder.glob('experiments/*'))
    status, (told,) = train(copied)
    assert status == 2
    assert "step1.yml' is in the folder of the training that it names" in told
    assert sorted(runner.folder.glob('experiments/*')) == before
    assert train(copied, '--auto_resume')[0] == 0
    assert copied.read_text().endswith(yml.read_text())

    def atomic_write(path, data):
        raise OSError(28, 'No space left on device', str(path))

    content = copied.read_bytes()
    monkeypatch.setattr(entry, 'atomic_write', atomic_write)
    assert train(yml, '--auto_resume')[1][0].endswith(
        "experiments/step1/step1.yml': is there room, and leave to write?")
    assert copied.read_bytes() == content


def test_download_that_cannot_be(runner, train, monkeypatch):
    def refuse(*_):
        raise URLError('Name or service not known')

    monkeypatch.setattr(Session, 'build_model', refuse)
    status, (told,) = train(runner.write_yml('step1'))
    assert status == 2
    assert 'such as the VGG of perceptual_opt, cannot be downloaded: <urlopen error Name' in told
    assert 'room' not in told


def test_images_that_cannot_be_written(runner, monkeypatch, capfd):
    """One line, and what was reached is saved."""
    def imwrite(*_):
        raise OSError('Failed in writing images.')  # as upstream's

    monkeypatch.chdir(runner.folder)
    monkeypatch.setattr('basicsr.models.sr_model.imwrite', imwrite)
    yml = runner.write_yml('step1', val__save_img=True, val__val_freq=3, logger__save_checkpoint_freq=100)
    monkeypatch.setattr('sys.argv', ['udl-train', '-opt', str(yml)])
    assert entry.run('basicsr.train', 'train_pipeline') == 2
    assert capfd.readouterr().err.strip().splitlines()[-1] == (
        'udl-train: Failed in writing images: is there room, and leave to write? Iteration 3 is saved; --auto_resume '
        'goes on from there.')
    state = torch.load(runner.folder / 'experiments/step1/training_states/3.state', weights_only=True)
    assert not state['validated']
