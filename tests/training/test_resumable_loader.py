"""A resumed epoch gives the very batches that would have come."""
import functools
import io
import os
import random
import signal
import types
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader
from basicsr.data.data_sampler import EnlargedSampler
from torch.utils.data import Dataset

from udl_plugin.data.checked_dataset import CheckedDataset
from udl_plugin.errors import UserError
from udl_plugin.training import rng_state, signals
from udl_plugin.training.resumable_loader import ResumableDataLoader


class Draws(Dataset):
    """Items are their index and numbers of all three generators, some of them drawn or not by chance."""

    opt = types.MappingProxyType({'name': 'draws'})

    def __len__(self):
        return 23

    def __getitem__(self, index):
        drawn = [random.random(), np.random.normal(), float(torch.rand(1))]
        if drawn[0] < 0.4:
            drawn.append(random.gauss(0, 1))
        return {'lq': torch.tensor([index, *drawn[:3], drawn[-1]], dtype=torch.float64)}


def loader_of(num_workers, batch_size=2, **options):
    dataset_opt = {'phase': 'train', 'batch_size_per_gpu': batch_size, 'num_worker_per_gpu': num_workers, **options}
    build = functools.partial(build_dataloader, dataset_opt=dataset_opt, num_gpu=0, seed=7)
    dataset = CheckedDataset(Draws(), 'datasets: train')
    sampler = EnlargedSampler(dataset, 1, 0, 1)
    return ResumableDataLoader(lambda dataset, sampler: build(dataset, sampler=sampler), dataset, sampler), sampler


def through_a_file(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def train(loader, sampler, epochs, start=0):
    """As upstream's loop: batches, and with each what a checkpoint behind it holds."""
    batches = iter(loader)  # of CPUPrefetcher's beginning, which is dropped
    seen = []
    for epoch in range(start, epochs):
        sampler.set_epoch(epoch)
        batches = iter(loader)
        for batch in batches:
            used = torch.rand(1)  # as a network may
            seen.append((batch['lq'], used, batch['note'].place, rng_state.capture()))
    return seen


def plain(entry):
    return through_a_file([entry[2].plain(), rng_state.to_tensors(entry[3])])


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
@pytest.mark.parametrize(('num_workers', 'options'), [
    (0, {}), (1, {}), (2, {}), (3, {}), (2, {'persistent_workers': True}), (2, {'prefetch_mode': 'cpu'}),
    (3, {'prefetch_mode': 'cpu', 'num_prefetch_queue': 4})], ids=str)
def test_resumed_anywhere(num_workers, options):
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    whole = train(*loader_of(num_workers, **options), epochs=3)
    assert len(whole) == 33
    assert not torch.equal(whole[0][0], whole[11][0])
    # persistent processes have drawn for upstream's first iterator, which is dropped, and tell it with a batch
    for place in (0, 1, 4, 10, 11, 15, 21, 24, 31)['persistent_workers' in options:]:
        torch.manual_seed(place + 99)  # a new process has drawn whatever
        random.seed(place)
        loader, sampler = loader_of(num_workers, **options)
        assert loader.go_on(*plain(whole[place])) == ''
        rest = train(loader, sampler, epochs=3, start=whole[place][2].epoch)
        assert len(rest) == len(whole) - place - 1
        for (found, used, *_), (wanted, wanted_use, *_) in zip(rest, whole[place + 1:]):
            assert torch.equal(found, wanted)
            assert used == wanted_use or options, 'the thread of prefetch_mode: cpu draws when it likes'


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
def test_resumed_twice():
    """The second time, before every loading process has made a batch again."""
    torch.manual_seed(1)
    whole = train(*loader_of(3), epochs=2)
    loader, sampler = loader_of(3)
    loader.go_on(*plain(whole[4]))
    once = train(loader, sampler, epochs=2)
    loader, sampler = loader_of(3)
    loader.go_on(*plain(once[0]))
    twice = train(loader, sampler, epochs=2)
    assert len(twice) == len(whole) - 6
    assert all(torch.equal(found[0], wanted[0]) for found, wanted in zip(twice, whole[6:]))


def test_no_shared_memory_is_set_up_while_processes_are_forked(monkeypatch):
    loader, _ = loader_of(2)
    loader.go_on(*plain(train(*loader_of(2), 1)[3]))
    monkeypatch.setattr('multiprocessing.reduction.DupFd', lambda fd: pytest.fail('a tensor'))
    with pytest.raises(pytest.fail.Exception, match='a tensor'):
        ForkingPickler.dumps(torch.rand(1))
    assert len([ForkingPickler.dumps(index) for index in loader.sampler]) == 2 * 2 + 23 - 8


def test_batches_are_upstreams():
    """Who never resumes sees what BasicSR's own command shows."""
    random.seed(3)
    found = [batch['lq'] for batch in loader_of(2)[0]]
    options = {'phase': 'train', 'batch_size_per_gpu': 2, 'num_worker_per_gpu': 2}
    upstream = list(build_dataloader(Draws(), options, num_gpu=0, sampler=EnlargedSampler(Draws(), 1, 0, 1), seed=7))
    for batch, lq in zip(upstream, found):
        assert torch.equal(batch['lq'][:, :3], lq[:, :3])  # not PyTorch's, which upstream seeds anew each time
    assert len(upstream) == len(found) == 11


@pytest.mark.parametrize(('other', 'note', 'first'), [
    ({'num_workers': 1}, 'num_worker_per_gpu, is another one', 10),
    ({'num_workers': 2, 'batch_size': 5}, 'the size of a batch, or num_worker_per_gpu, is another one', 10)])
def test_place_is_kept_as_far_as_it_can_be(other, note, first):
    """With other workers, or batches: no image comes twice in an epoch."""
    whole = train(*loader_of(2), epochs=1)
    loader, sampler = loader_of(**other)
    assert note in loader.go_on(*plain(whole[4]))
    order = [int(index) for entry in whole for index in entry[0][:, 0]]
    rest = [int(index) for entry in train(loader, sampler, epochs=1) for index in entry[0][:, 0]]
    assert rest[:10] == order[first:first + 10]


def test_other_data_begins_anew():
    whole = train(*loader_of(0), epochs=1)
    loader, sampler = loader_of(0)
    place, main = plain(whole[4])
    assert 'the training set, or the number of GPUs, is another one' in loader.go_on({**place, 'images': 24}, main)
    assert len(train(loader, sampler, epochs=1)) == 11


def test_too_few_images_for_a_batch():
    """Upstream would train nothing, and say that it is done."""
    with pytest.raises(UserError, match='datasets.train: 23 images .* do not fill one batch of 24'):
        loader_of(0, batch_size=24)


def test_no_signal_while_data_is_loaded():
    """What it raised in a queue would leave a lock behind, for which the end of the epoch would wait forever."""
    loader, sampler = loader_of(1)
    sampler.set_epoch(0)
    with pytest.raises(signals.Interrupted), signals.raised():
        batches = iter(loader)
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(list(batches)) == 23 // 2
        iter(loader)  # of the next epoch; held no more than once
        signals.check()
        pytest.fail('nothing was raised')
