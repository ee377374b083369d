"""A resumed epoch returns exactly the batches of the uninterrupted one."""
import functools
import io
import os
import random
import signal
import time
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from udl_plugin.data.checked_dataset import CheckedDataset
from udl_plugin.errors import UserError
from udl_plugin.training import resumable_loader, rng_state
from udl_plugin.training.resumable_loader import DataError, ResumableDataLoader
from udl_plugin.training.signals import StoppableLoader, Stopped, StopSignal


class Draws(Dataset):
    """Items are their index and numbers of all three generators, some of them drawn or not by chance."""

    def __init__(self):
        self.opt = {'name': 'draws'}

    def __len__(self):
        return 23

    def __getitem__(self, index):
        drawn = [random.random(), np.random.normal(), float(torch.rand(1))]
        if drawn[0] < 0.4:
            drawn.append(random.gauss(0, 1))
        return {'lq': torch.tensor([index, *drawn[:3], drawn[-1]], dtype=torch.float64)}


def build_loader(num_workers, batch_size=2, data=None, **options):
    dataset_opt = {'phase': 'train', 'batch_size_per_gpu': batch_size, 'num_worker_per_gpu': num_workers, **options}
    opt = {'num_gpu': 0, 'dist': False, 'rank': 0, 'world_size': 1, 'manual_seed': 7,
           'datasets': {'train': dataset_opt}}
    return ResumableDataLoader(CheckedDataset(data or Draws(), 'datasets.train'), opt)


def through_a_file(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def train(loader, total, done=0):
    """Batches, what a network may draw with each, and what a checkpoint behind it holds."""
    seen = []
    for _, batch in loader.iterations(done, total):
        used = torch.rand(1)
        rng = rng_state.to_tensors(rng_state.capture())
        seen.append((batch['lq'], used, through_a_file([loader.state_dict(), rng])))
    return seen


def indices(seen):
    return [int(index) for lq, *_ in seen for index in lq[:, 0]]


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
@pytest.mark.parametrize(('num_workers', 'options'), [
    (0, {}), (1, {}), (2, {}), (3, {}), (2, {'persistent_workers': True}), (2, {'prefetch_mode': 'cpu'}),
    (3, {'prefetch_mode': 'cpu', 'num_prefetch_queue': 4})], ids=str)
def test_resume_anywhere(num_workers, options):
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    complete = train(build_loader(num_workers, **options), 33)
    assert len(complete) == 33
    assert not torch.equal(complete[0][0], complete[11][0])
    # persistent workers drew for BasicSR's first iterator, which is dropped; only a batch carries that state
    for number in (0, 1, 4, 10, 11, 15, 21, 24, 31)['persistent_workers' in options:]:
        torch.manual_seed(number + 99)  # a new process has drawn anything
        random.seed(number)
        loader = build_loader(num_workers, **options)
        assert loader.load_state_dict(*complete[number][2]) == ''
        rest = train(loader, 33, number + 1)
        assert len(rest) == len(complete) - number - 1
        for (found, used, _), (expected, expected_use, _) in zip(rest, complete[number + 1:]):
            assert torch.equal(found, expected)
            assert used == expected_use


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
def test_resume_twice():
    """The second time before every worker has produced a batch again."""
    torch.manual_seed(1)
    complete = train(build_loader(3), 22)
    loader = build_loader(3)
    loader.load_state_dict(*complete[4][2])
    once = train(loader, 22, 5)
    loader = build_loader(3)
    loader.load_state_dict(*once[0][2])
    twice = train(loader, 22, 6)
    assert len(twice) == len(complete) - 6
    assert all(torch.equal(found[0], expected[0]) for found, expected in zip(twice, complete[6:]))


def test_state_is_that_of_the_last_batch():
    loader = build_loader(0)
    for iteration, _ in loader.iterations(0, 13):
        state = loader.state_dict()
        assert (state['epoch'], state['seen']) == ((iteration - 1) // 11, 2 * ((iteration - 1) % 11 + 1))
    assert (state['images'], state['batch_size'], loader.epoch) == (23, 2, 1)


@pytest.mark.parametrize('batch_size', [12, 5, 2])
def test_epochs_last_until_the_last_iteration(batch_size):
    """BasicSR counts the incomplete batch of an epoch, which it drops: it would end early."""
    iterations = [iteration for iteration, _ in build_loader(0, batch_size).iterations(3, 30)]
    assert iterations == list(range(4, 31))


def test_no_shared_memory_is_set_up_while_workers_are_forked(monkeypatch):
    loader = build_loader(2)
    loader.load_state_dict(*train(build_loader(2), 4)[3][2])
    monkeypatch.setattr('multiprocessing.reduction.DupFd', lambda fd: pytest.fail('a tensor'))
    with pytest.raises(pytest.fail.Exception, match='a tensor'):
        ForkingPickler.dumps(torch.rand(1))
    assert len([ForkingPickler.dumps(index) for index in loader.sampler]) == 2 * 2 + 23 - 8


@pytest.mark.parametrize(('changes', 'message'), [
    ({'num_workers': 1}, 'batch size or num_worker_per_gpu changed: same image order, different crops'),
    ({'num_workers': 2, 'batch_size': 5}, 'batch size or num_worker_per_gpu changed: same image order')])
def test_other_workers_or_batches(changes, message):
    """No image comes twice in an epoch."""
    complete = train(build_loader(2), 11)
    loader = build_loader(**changes)
    assert message in loader.load_state_dict(*complete[4][2])
    assert indices(train(loader, 2))[:4] == indices(complete)[10:14]


def test_other_data_restarts_the_epoch():
    complete = train(build_loader(0), 11)
    loader, (state, rng) = build_loader(0), complete[4][2]
    message = loader.load_state_dict({**state, 'images': 24}, rng)
    assert message == 'the number of training images or GPUs changed: restarting the epoch'
    assert indices(train(loader, 11)) == indices(complete)


def test_too_few_images_for_a_batch():
    """BasicSR would train nothing without a word."""
    with pytest.raises(UserError, match='datasets.train: 23 images .* do not fill one batch of 24'):
        build_loader(0, batch_size=24)


def test_validation_stops_between_two_images():
    done = []
    with StopSignal() as stop, pytest.raises(Stopped):
        for number in StoppableLoader(DataLoader(range(5), batch_size=None), stop):
            done.append(number)
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
    assert done == [0, 1, 2]


class Lost(Dataset):
    """Its worker ends or hangs at the second image."""

    def __init__(self, end):
        self.opt, self.end = {'name': 'lost'}, end

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {'lq': torch.rand(1)} if index == 0 else self.end()


@pytest.mark.parametrize(('end', 'message'), [
    (functools.partial(os._exit, 1),
     r'DataLoader worker \(pid.*? \d+\) exited unexpectedly[a-z 1]*: a worker was lost'),
    (functools.partial(time.sleep, 60), 'DataLoader timed out after 2 seconds: a worker was lost')])
def test_lost_worker_is_explained(end, message, monkeypatch):
    monkeypatch.setattr(resumable_loader, 'TIMEOUT', 2)
    with pytest.raises(DataError, match=f'datasets.train: {message}. It may have run out of memory'):
        list(build_loader(1, 1, Lost(end)).iterations(0, 4))


def test_other_errors_of_loading_are_not_explained(monkeypatch):
    loader = build_loader(0)

    def fail(*_):
        raise RuntimeError('CUDA out of memory')

    with pytest.raises(RuntimeError, match='CUDA out of memory'):
        loader._next(map(fail, [0]))
