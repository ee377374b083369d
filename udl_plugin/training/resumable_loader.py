"""Where in an epoch a training is, kept so exactly that it goes on there with the very crops that would have come.

Upstream's DataLoader begins an epoch anew after a resume. Here each batch brings the random states of the process that
made it, as they were behind it. The first that a resumed epoch hands to each such process are these states, in place
of indices; then come the indices that are left.
"""
import dataclasses
import os
import pickle
import queue
import threading

import torch
from basicsr.utils import get_root_logger
from torch.utils.data import Sampler, default_collate

from udl_plugin.config.dataset_checks import too_few_images
from udl_plugin.errors import UserError, UserErrors
from udl_plugin.training import rng_state, signals

NOTE = 'note'  # a batch's key for what is not of its images
TIMEOUT = 600  # seconds without a batch from a loading process: it hangs, as on a file system that is gone


@dataclasses.dataclass
class LoaderState:
    """A place behind a batch, in one process of a training.

    Attributes:
        epoch (int): Counted from 0, as upstream does.
        seen (int): Images of this epoch that came in batches up to here.
        images (int): Of the epoch.
        batch_size (int): In this process.
        begun: `random_states.read` of before the epoch, of which PyTorch makes the seeds of the loading processes.
        loaders (tuple): For each loading process `random_states.read` behind its last batch, pickled, or made plain by
            an earlier run; None before its first batch.
    """

    epoch: int
    seen: int
    images: int
    batch_size: int
    begun: tuple
    loaders: tuple

    def plain(self):
        """As a checkpoint holds it."""
        loaders = [rng_state.to_tensors(pickle.loads(states)) if isinstance(states, bytes) else states
                   for states in self.loaders]  # pickled by our own processes
        return {**vars(self), 'begun': rng_state.to_tensors(self.begun), 'loaders': loaders}


class DataError(UserError):
    """What is wrong with the data of this process."""


class _RestoreRng:
    """Stands where an index does: the random states that a loading process is to go on with, or None for its own.

    Pickled here: tensors would travel in shared memory, which a thread of this process sets up, and a loading process
    that was forked in that moment would hang, with a lock that the thread held (of `tempfile`).
    """

    def __init__(self, states):
        self.states = states and pickle.dumps(states)


class BatchInfo:
    """What comes with a batch; a class of its own, so that `pin_memory` leaves it as it is."""

    def __init__(self, states=None, passed_over=(), error=None):
        self.states, self.passed_over, self.error = states, passed_over, error
        self.place = None


class _ResumeSampler(Sampler):
    """A sampler that begins one epoch at a place in it, and every other one at its beginning."""

    def __init__(self, sampler):
        self.sampler, self.start = sampler, None  # what `Place.plain` made
        self.batch_size = self.num_workers = None  # of the loader that reads here

    def __len__(self):
        return len(self.sampler)

    def resumed(self):
        """The place where the epoch at hand begins; None at its beginning."""
        return self.start if self.start is not None and self.start['epoch'] == self.sampler.epoch else None

    def fillers(self):
        """How many batches come before the first one of images, so that each is made by whom it would have been."""
        loaders = len(self.start['loaders'])
        return loaders + self.start['seen'] // self.batch_size % loaders

    def __iter__(self):
        indices, seen = list(self.sampler), 0
        if self.resumed():
            seen, states = self.start['seen'], self.start['loaders']
            for number in range(self.fillers()):
                yield from [_RestoreRng(states[number] if number < len(states) else None)] * self.batch_size
        yield from indices[seen:]


class _RngTrackingDataset:
    """Gives with each batch what is in `_Note`; hands errors over, of which DataLoader would make a traceback."""

    def __init__(self, dataset):
        self.dataset, self.opt = dataset, dataset.opt

    def __len__(self):
        return len(self.dataset)

    def __getitems__(self, indices):
        if isinstance(indices[0], _RestoreRng):
            if indices[0].states is not None:
                rng_state.restore(pickle.loads(indices[0].states))
            return [], BatchInfo()
        items, passed_over = [], []
        try:
            for index in indices:
                item, problems = self.dataset.load(index)
                items.append(item)
                passed_over += problems
        except UserError as err:
            return [], BatchInfo(error=str(err))
        # as a tensor, which travels in shared memory: 10 kB each would fill the pipe between the processes
        states = torch.frombuffer(bytearray(pickle.dumps(rng_state.capture())), dtype=torch.uint8)
        return items, BatchInfo(states, passed_over)


def _collate(loaded):
    items, note = loaded
    return {**(default_collate(items) if items else {}), NOTE: note}


class ResumableDataLoader:
    """Upstream's DataLoader for training; its batches have a `Place` at `batch['note'].place`.

    Args:
        build (Callable): `build(dataset, sampler)`, as upstream's `build_dataloader` with all else given.
        dataset (CheckedDataset): Of the training.
        sampler (EnlargedSampler): Upstream's; upstream sets its `epoch`.
        lock_file (int | None): Number of an open file that loading processes close, so that this process alone holds
            the lock on it.

    Raises:
        UserError: there are too few images for one batch. In the loop: a record is bad.
    """

    def __init__(self, build, dataset, sampler, lock_file=None):
        self.dataset, self.sampler = dataset, _ResumeSampler(sampler)
        self.loader = build(_RngTrackingDataset(dataset), self.sampler)
        self.loader.collate_fn, self.loader.worker_init_fn = _collate, _Init(self.loader.worker_init_fn, lock_file)
        self.loader.timeout = TIMEOUT if self.loader.num_workers else 0
        self.sampler.batch_size, self.sampler.num_workers = self.loader.batch_size, self.loader.num_workers
        # upstream's CUDAPrefetcher has one batch more drawn than is trained with
        self.ahead = not self.loader.num_workers and dataset.opt.get('prefetch_mode') == 'cuda'
        self.held = False  # signals, from the first batch on: see udl_plugin/training/signals.py
        self.main = None  # random states of this process at the place where it goes on
        self.loaders = [None] * max(1, self.loader.num_workers)  # see Place
        self.passed_over = 0
        if not len(self.loader):
            raise UserErrors([too_few_images(len(sampler), self.loader.batch_size)])

    def __len__(self):
        return len(self.loader)

    def go_on(self, place, main):
        """Begins at a place.

        Args:
            place (dict): What `Place.plain` made, in as many loading processes with the same batches or in others.
            main (dict): `random_states.plain` of this process there.

        Returns:
            str: What is not as it would have been; empty where all of it is.
        """
        if place['images'] != len(self.sampler):
            return 'the training set, or the number of GPUs, is another one: the epoch begins anew'
        self.main, workers, note = main, max(1, self.sampler.num_workers), ''
        if place['batch_size'] != self.sampler.batch_size or len(place['loaders']) != workers:
            place = {**place, 'loaders': [None] * workers}
            note = 'the size of a batch, or num_worker_per_gpu, is another one: images come in the same order, with ' \
                   'other crops'
        elif self.loader.persistent_workers and None in place['loaders']:
            note = 'not every loading process had made a batch: those of the others have other crops'
        self.sampler.start = place
        return note

    def __iter__(self):
        if not self.held:
            signals.hold()
            self.held = True
        place = self.sampler.resumed()
        if place:
            rng_state.restore(place['begun'])
        begun = rng_state.capture()
        # here, and not when the first batch is wanted: upstream begins to load here
        return self._batches(iter(self.loader), begun, place)

    def _batches(self, batches, begun, place):
        epoch, seen = self.sampler.sampler.epoch, 0
        if not self.loader.persistent_workers:
            self.loaders = [None] * max(1, self.sampler.num_workers)
        if place:
            seen, self.loaders = place['seen'], list(place['loaders'])
            for _ in range(self.sampler.fillers()):
                _next(batches)
            rng_state.restore(self.main)
            if self.ahead and self.loaders[0]:
                rng_state.restore(self.loaders[0], pytorch=False)
        while True:
            batch = _next(batches)
            if batch is None:
                return
            note = batch[NOTE]
            if note.error:
                raise DataError(note.error)
            for problem in note.passed_over:
                self.passed_over += 1
                logger = get_root_logger()  # which tells no warnings of others than the first process
                log = logger.error if self.sampler.sampler.rank else logger.warning
                log(f'Passed over, {self.passed_over} so far: {problem}')
            self.loaders[seen // self.sampler.batch_size % len(self.loaders)] = note.states.numpy().tobytes()
            seen += self.sampler.batch_size
            note.place = LoaderState(epoch, seen, len(self.sampler), self.sampler.batch_size, begun, tuple(self.loaders))
            yield batch


class _Init:
    """Upstream's `worker_init_fn`, and what Ctrl-C does in a loading process."""

    def __init__(self, upstream, lock_file):
        self.upstream, self.lock_file = upstream, lock_file

    def __getstate__(self):  # a process that is not forked has no such file
        return {**vars(self), 'lock_file': None}

    def __call__(self, worker_id):
        signals.ignore_signals_in_worker()
        if self.lock_file is not None:
            os.close(self.lock_file)
        if self.upstream is not None:
            self.upstream(worker_id)


def _next(batches):
    """The next batch, None behind the last one; also of upstream's thread that prefetches, which may end silently."""
    while isinstance(batches, threading.Thread):
        try:
            return batches.queue.get(timeout=1)
        except queue.Empty:
            if not batches.is_alive() and batches.queue.empty():
                raise UserError('prefetch_mode: cpu: the thread that loads data has ended; what it said stands '
                                 'above.') from None
    return next(batches, None)
