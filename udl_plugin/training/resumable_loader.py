"""Exact mid-epoch resume of BasicSR's training DataLoader, behind the interface of torchdata's StatefulDataLoader.

Every batch carries the RNG state of the worker that produced it. When an epoch is resumed, the sampler first sends each
worker its saved RNG state, then the remaining indices: the crops are those of the uninterrupted training.
"""
from __future__ import annotations

import itertools
import pickle
import queue
import re
import threading
from collections.abc import Iterator
from typing import Any

import torch
from basicsr.data import build_dataloader
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher
from basicsr.utils import get_root_logger
from torch.utils.data import Dataset, Sampler, default_collate

from udl_plugin.config.dataset_checks import too_few_images
from udl_plugin.data.checked_dataset import CheckedDataset
from udl_plugin.errors import UserError, UserErrors
from udl_plugin.training import rng_state
from udl_plugin.training.signals import ignore_signals_in_worker

INFO = 'batch_info'  # key of a batch's `BatchInfo`
TIMEOUT = 600  # seconds without a batch after which a worker counts as hung, for example on a lost network drive
STATE_KEYS = {'epoch', 'seen', 'images', 'batch_size', 'begun', 'loaders'}  # of `ResumableDataLoader.state_dict`


class DataError(UserError):
    """The data of this process is unusable; other ranks may not know."""


class _RestoreRng:
    """Takes the place of an index: the RNG states a worker continues with, or None to keep its own.

    Pickled at once: tensors would travel in shared memory, which a thread of this process sets up, and a worker forked
    at that moment would inherit a taken lock (of `tempfile`) and hang.
    """

    def __init__(self, states: dict | None):
        self.states = pickle.dumps(states) if states is not None else None


class BatchInfo:
    """Metadata of a batch; not a container, so that `pin_memory` leaves it alone.

    Attributes:
        states: The worker's RNG states behind the batch, pickled, as a uint8 tensor.
        skipped: One line for each corrupted sample that was skipped.
        error: What ended the loading of this batch.
    """

    def __init__(self, states: torch.Tensor | None = None, skipped: list[str] | None = None, error: str | None = None):
        self.states, self.skipped, self.error = states, skipped or [], error
        self.position: dict[str, Any] = {}  # see `ResumableDataLoader.state_dict`


class _RngTrackingDataset(Dataset):
    """Loads batches, adds their `BatchInfo`, and returns errors instead of raising them in a worker."""

    def __init__(self, dataset: CheckedDataset):
        self.dataset, self.opt = dataset, dataset.opt

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list) -> tuple[list[dict], BatchInfo]:
        if isinstance(indices[0], _RestoreRng):
            if indices[0].states is not None:
                rng_state.restore(pickle.loads(indices[0].states))
            return [], BatchInfo()
        items, skipped = [], []
        try:
            for index in indices:
                item, problems = self.dataset.load(index)
                items.append(item)
                skipped += problems
        except UserError as err:
            return [], BatchInfo(error=str(err))
        # as a tensor, which travels in shared memory: 10 kB each would fill the pipe between the processes
        states = torch.frombuffer(bytearray(pickle.dumps(rng_state.capture())), dtype=torch.uint8)
        return items, BatchInfo(states, skipped)


def _collate(loaded: tuple[list[dict], BatchInfo]) -> dict[str, Any]:
    items, info = loaded
    return {**(default_collate(items) if items else {}), INFO: info}


class _ResumeSampler(Sampler):
    """Starts one epoch at a saved position, and every other epoch at its beginning."""

    def __init__(self, sampler: EnlargedSampler):
        self.sampler = sampler
        self.batch_size = self.num_workers = 0  # of the DataLoader that reads here
        self.start: dict[str, Any] | None = None  # a `ResumableDataLoader.state_dict`

    def __len__(self) -> int:
        return len(self.sampler)

    def resumed(self) -> dict[str, Any] | None:
        """The position at which the current epoch starts; None: at its beginning."""
        return self.start if self.start is not None and self.start['epoch'] == self.sampler.epoch else None

    def num_restores(self) -> int:
        """How many batches come before the first one with images, so that the right worker produces it."""
        assert self.start is not None
        workers = len(self.start['loaders'])
        return workers + self.start['seen'] // self.batch_size % workers

    def __iter__(self) -> Iterator:
        indices, start = list(self.sampler), self.resumed()
        if start:
            for number in range(self.num_restores()):
                yield from [_RestoreRng((start['loaders'] + [None] * number)[number])] * self.batch_size
        yield from indices[start['seen'] if start else 0:]


class _InitWorker:
    """BasicSR's `worker_init_fn`, and signals left to the parent."""

    def __init__(self, worker_init_fn: Any):
        self.worker_init_fn = worker_init_fn

    def __call__(self, worker_id: int) -> None:
        ignore_signals_in_worker()
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)


class ResumableDataLoader:
    """BasicSR's training DataLoader; `state_dict` is its position behind the last batch it returned.

    Args:
        dataset: Of the training.
        sampler: BasicSR's, for this process.
        dataset_opt: Options of the data set, as BasicSR's `build_dataloader` takes them.
        num_gpu, dist, seed: As there.

    Raises:
        UserError: too few images for one batch, of which BasicSR would train nothing without a word.
    """

    def __init__(self, dataset: CheckedDataset, sampler: EnlargedSampler, dataset_opt: dict[str, Any], num_gpu: int = 0,
                 dist: bool = False, seed: int | None = None):
        self.dataset, self.opt, self.sampler = dataset, {'num_gpu': num_gpu}, _ResumeSampler(sampler)
        self.loader = build_dataloader(_RngTrackingDataset(dataset), dataset_opt, num_gpu, dist, self.sampler, seed)
        self.loader.collate_fn, self.loader.worker_init_fn = _collate, _InitWorker(self.loader.worker_init_fn)
        self.loader.timeout = TIMEOUT if self.loader.num_workers else 0
        self.sampler.batch_size, self.sampler.num_workers = self.loader.batch_size, self.loader.num_workers
        self.prefetch_on_gpu = dataset_opt.get('prefetch_mode') == 'cuda'
        self.epoch = 0
        self.main_rng: dict[str, Any] | None = None  # RNG states of this process where the epoch is resumed
        self._state: dict[str, Any] | None = None
        self._workers: list = []  # for each worker its RNG states behind its last batch
        self._num_skipped = 0
        if not len(self.loader):
            raise UserErrors([too_few_images(len(sampler), self.loader.batch_size)])

    def __len__(self) -> int:
        return len(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch, for a checkpoint; on each rank its own."""
        assert self._state is not None
        workers = [rng_state.to_tensors(pickle.loads(states)) if isinstance(states, bytes) else states
                   for states in self._state['loaders']]  # pickled by our own workers
        return {**self._state, 'begun': rng_state.to_tensors(self._state['begun']), 'loaders': workers}

    def load_state_dict(self, state: dict[str, Any], main_rng: dict[str, Any]) -> str:
        """Continues from a position.

        Args:
            state: A `state_dict`.
            main_rng: RNG states of this process at that position, as `rng_state.to_tensors` returned them.

        Returns:
            What differs from the uninterrupted training; empty if nothing does.
        """
        self.epoch = state['epoch']
        if state['images'] != len(self.sampler):
            return 'the number of training images or GPUs changed: restarting the epoch'
        self.main_rng, workers, message = main_rng, max(1, self.sampler.num_workers), ''
        if state['batch_size'] != self.sampler.batch_size or len(state['loaders']) != workers:
            state = {**state, 'loaders': [None] * workers}
            message = 'batch size or num_worker_per_gpu changed: same image order, different crops'
        elif self.loader.persistent_workers and None in state['loaders']:
            message = 'some workers had not produced a batch yet: theirs have different crops'
        self.sampler.start = state
        return message

    def iterations(self, done: int, total: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields `(iteration, batch)` for iterations `done + 1` to `total`, epoch after epoch, through BasicSR's
        prefetchers and with the random numbers that its own loop would draw."""
        prefetcher = CUDAPrefetcher(self, self.opt) if self.prefetch_on_gpu else CPUPrefetcher(self)
        for epoch in itertools.count(self.epoch):
            self.epoch = epoch
            self.sampler.sampler.set_epoch(epoch)
            prefetcher.reset()
            while done < total and (batch := prefetcher.next()) is not None:
                self._state = batch.pop(INFO).position
                done += 1
                yield done, batch
            if done >= total:
                return

    def __iter__(self) -> Iterator[dict[str, Any]]:
        start = self.sampler.resumed()
        if start:
            rng_state.restore(start['begun'])
        begun = rng_state.capture()
        # here, not when the first batch is fetched: BasicSR starts loading here
        return self._batches(iter(self.loader), begun, start)

    def _batches(self, batches: Iterator, begun: tuple, start: dict | None) -> Iterator[dict[str, Any]]:
        epoch, seen, workers = self.sampler.sampler.epoch, 0, max(1, self.sampler.num_workers)
        if start:
            seen, self._workers = start['seen'], list(start['loaders'])
            for _ in range(self.sampler.num_restores()):
                self._next(batches)
            rng_state.restore(self.main_rng or {})
            # BasicSR's CUDAPrefetcher has drawn one batch more than was trained with
            if self.prefetch_on_gpu and not self.sampler.num_workers and self._workers[0]:
                rng_state.restore(self._workers[0], pytorch=False)
        elif not (self.loader.persistent_workers and self._workers):
            self._workers = [None] * workers
        while (batch := self._next(batches)) is not None:
            info = batch[INFO]
            if info.error:
                raise DataError(info.error)
            self._log_skipped(info.skipped)
            self._workers[seen // self.sampler.batch_size % workers] = info.states.numpy().tobytes()
            seen += self.sampler.batch_size
            info.position = {'epoch': epoch, 'seen': seen, 'images': len(self.sampler),
                          'batch_size': self.sampler.batch_size, 'begun': begun, 'loaders': tuple(self._workers)}
            yield batch

    def _next(self, batches: Any) -> dict[str, Any] | None:
        """The next batch, or None; also from BasicSR's prefetching thread, which may end without a word."""
        try:
            while isinstance(batches, threading.Thread):
                try:
                    return batches.queue.get(timeout=1)  # type: ignore[attr-defined]
                except queue.Empty:
                    if not batches.is_alive() and batches.queue.empty():  # type: ignore[attr-defined]
                        raise DataError('datasets.train.prefetch_mode: cpu: the loading thread ended; its error is '
                                        'printed above.') from None
            return next(batches, None)
        except RuntimeError as err:
            if not re.match('DataLoader (worker|timed out)', str(err)):
                raise
            self.dataset.check_lmdbs()
            reason = ' '.join(str(err).split()).partition(' Details are lost')[0].rstrip('.')
            raise DataError(f'datasets.train: {reason}: a worker was lost. It may have run out of memory (try a '
                            'smaller num_worker_per_gpu), or the disk it reads failed.') from err

    def _log_skipped(self, problems: list[str]) -> None:
        logger = get_root_logger()  # on ranks other than 0 it shows errors only
        for problem in problems:
            self._num_skipped += 1
            (logger.error if self.sampler.sampler.rank else logger.warning)(
                f'Skipped a sample ({self._num_skipped} so far): {problem}')
