"""Which state a training resumes from, and what else hangs on the names of upstream's pipeline."""
import os
import re
import time
import types

import pytest
import torch
from basicsr.data.data_sampler import EnlargedSampler
from torch.utils.data import DataLoader, Dataset

from udl_plugin import entry, place
from udl_plugin.data.careful import CarefulDataset
from udl_plugin.errors import InputError
from udl_plugin.session import Session, load_resume_state


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


def test_other_names_do_not_count(opt, tmp_path):
    for name in ('best.state', '-3.state', '5.5.state', '.12.state.77.tmp'):
        (tmp_path / 'training_states' / name).write_bytes(b'x')
    assert load_resume_state(opt)[0]['iter'] == 10


def test_none_is_whole(opt, tmp_path):
    """To begin anew in silence would be the worst."""
    for path in (tmp_path / 'training_states').iterdir():
        cut(path)
    with pytest.raises(InputError, match=r'(passes over.*){3}None is left in .*\. Without --auto_resume'):
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
    with pytest.raises(InputError, match=r"path: resume_state: '.*4\.state' cannot be read"):
        load_resume_state(opt)


def test_epochs_go_on_from_the_state():
    """With smaller batches than before, of which more fit into an epoch."""
    module = types.SimpleNamespace(create_train_val_dataloader=lambda *_: (None, None, [], 3, 60),
                                   load_resume_state=lambda opt: None)
    with Session(module, lambda opt: ({'epoch': 13, 'iter': 40}, [])) as session:
        module.load_resume_state({})
        session.train_loader = range(12)
        assert module.create_train_val_dataloader({}, None)[3] == 13 + 2


def test_network_of_another_run(opt, tmp_path):
    """As where a run that went on from an older state was killed between network and state."""
    from udl_plugin.checkpoints import fingerprint
    for number in (4, 10):
        network = torch.load(tmp_path / f'models/net_g_{4}.pth')['params']
        path = tmp_path / f'training_states/{number}.state'
        torch.save({**torch.load(path), 'network': fingerprint(network)}, path)
    state, notes = load_resume_state(opt)
    assert state['iter'] == 4
    assert "net_g_10.pth' is of another run than it." in notes[0]


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
    monkeypatch.setattr(place, 'TIMEOUT', 2)
    dataset = CarefulDataset(Lost(end), 'datasets: train')
    session = Session(types.SimpleNamespace(), load_resume_state)
    session.train_loader = place.KeepingLoader(
        lambda dataset, sampler: DataLoader(dataset, 1, num_workers=1, sampler=sampler), dataset,
        EnlargedSampler(dataset, 1, 0, 1))
    with pytest.raises(RuntimeError) as caught:
        list(session.train_loader)
    assert re.match(f'datasets: train: {told}', session.explain(caught.value))
    assert session.explain(RuntimeError(
        'DataLoader worker (pid 3) is killed by signal: Killed. ')).startswith(
            'datasets: train: DataLoader worker (pid 3) is killed by signal: Killed: a loading process was lost')
    assert session.explain(RuntimeError('CUDA out of memory')) is None


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
