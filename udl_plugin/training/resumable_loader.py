"""Exact mid-epoch resume of BasicSR's training DataLoader, behind the interface of torchdata's StatefulDataLoader.

Every batch carries the RNG state of the worker that produced it. When an epoch is resumed, the sampler first sends each
worker its saved RNG state, then the remaining indices: the crops are those of the uninterrupted training.
"""
from __future__ import annotations

import functools
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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

POSITION = 'loader_position'  # key of a batch on its way through BasicSR's prefetchers
TIMEOUT = 600  # seconds without a batch after which a worker counts as hung, for example on a lost network drive


class DataError(UserError):
    """The data of this process is unusable; other ranks may not know."""


class _RestoreRng(NamedTuple):
    """Takes the place of an index: the RNG states that a worker continues with, or None to keep its own."""

    states: tuple | None


class _BatchDataset(Dataset):
    """Loads whole batches, and with each one what the main process has to know about it."""

    def __init__(self, dataset: CheckedDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Returns:
            The batch; and `rng`, the RNG states behind it, pickled, and `skipped`, a line for each skipped sample, or
            only `error`: if it were raised in a worker, PyTorch would add its traceback to the message.
        """
        if isinstance(indices[0], _RestoreRng):
            if indices[0].states is not None:
                rng_state.restore(indices[0].states)
            return {}, {}
        items, skipped = [], []
        try:
            for index in indices:
                item, problems = self.dataset.load(index)
                items.append(item)
                skipped += problems
        except UserError as err:
            return {}, {'error': str(err)}
        # as a tensor, which travels in shared memory: 10 kB each would fill the pipe between the processes
        rng = torch.frombuffer(bytearray(pickle.dumps(rng_state.capture())), dtype=torch.uint8)
        return default_collate(items), {'rng': rng, 'skipped': skipped}


class _ResumeSampler(Sampler):
    """Starts one epoch at a saved position, and every other epoch at its beginning."""

    def __init__(self, sampler: EnlargedSampler):
        self.sampler = sampler
        self.start: dict[str, Any] = {}  # position at which to start; see `ResumableDataLoader.state_dict`
        self.restores: list[_RestoreRng] = []  # one for each batch that comes before those with images

    def __len__(self) -> int:
        return len(self.sampler)

    def is_resumed(self) -> bool:
        """Whether the current epoch starts at the saved position."""
        return self.start.get('epoch') == self.sampler.epoch

    def __iter__(self) -> Iterator:
        indices = list(self.sampler)
        if self.is_resumed():
            for restore in self.restores:
                yield from [restore] * self.start['batch_size']
            indices = indices[self.start['seen']:]
        yield from indices


def _init_worker(worker_init_fn: Callable[[int], None], worker_id: int) -> None:
    ignore_signals_in_worker()
    worker_init_fn(worker_id)


class ResumableDataLoader:
    """BasicSR's training DataLoader; `state_dict` is its position behind the last batch it returned.

    BasicSR's thread of `prefetch_mode: cpu` is left out: it ends without a word if loading fails, and the workers load
    ahead anyway.

    Args:
        dataset: Of the training.
        opt: Complete options.

    Raises:
        UserError: too few images for one batch, of which BasicSR would train nothing without a word.
    """

    def __init__(self, dataset: CheckedDataset, opt: dict[str, Any]):
        dataset_opt = opt['datasets']['train']
        self.dataset, self.opt = dataset, opt
        self.sampler = _ResumeSampler(EnlargedSampler(dataset, opt['world_size'], opt['rank'],
                                                      dataset_opt.get('dataset_enlarge_ratio', 1)))
        self.prefetch_on_gpu = dataset_opt.get('prefetch_mode') == 'cuda'
        # from pinned memory, a copy to the GPU does not wait
        loader_opt = {'pin_memory': opt['num_gpu'] > 0, **dataset_opt, 'prefetch_mode': None}
        self.loader = build_dataloader(_BatchDataset(dataset), loader_opt, opt['num_gpu'], opt['dist'], self.sampler,
                                       opt['manual_seed'])
        self.loader.collate_fn = tuple  # `_BatchDataset` collates
        self.loader.worker_init_fn = functools.partial(_init_worker, self.loader.worker_init_fn)
        self.loader.timeout = TIMEOUT if self.loader.num_workers else 0
        self.batch_size, self.num_workers = self.loader.batch_size, max(1, self.loader.num_workers)  # 1: this process
        self.epoch = 0
        self.main_rng: tuple | None = None  # RNG states of this process where the epoch is resumed
        self._state: dict[str, Any] = {}
        self._previous: dict[str, Any] = {}
        self._workers: list[tuple | None] = []  # for each worker its RNG states behind its last batch
        self._num_skipped = 0
        if not len(self.loader):
            raise UserErrors([too_few_images(len(self.sampler), self.batch_size)])

    def __len__(self) -> int:
        return len(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch, for a checkpoint; on each rank its own."""
        return {**self._state, 'begun': rng_state.to_tensors(self._state['begun']),
                'loaders': [states and rng_state.to_tensors(states) for states in self._state['loaders']]}

    def step_back(self) -> bool:
        """Makes `state_dict` the position before the last batch, which could not be used, so that a resume loads it
        again. Returns False if this is the first batch: then there is no such position."""
        self._state = self._previous
        return bool(self._state)

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
        workers, message = [states and rng_state.from_tensors(states) for states in state['loaders']], ''
        if state['batch_size'] != self.batch_size or len(workers) != self.num_workers:
            workers = [None] * self.num_workers
            message = 'batch size or num_worker_per_gpu changed: same image order, different crops'
        elif self.prefetch_on_gpu and not self.loader.num_workers:
            message = 'prefetch_mode: cuda without workers had loaded one batch more: different crops'
        elif self.loader.persistent_workers and None in workers:
            message = 'some workers had not produced a batch yet: theirs have different crops'
        self.main_rng = rng_state.from_tensors(main_rng)
        self.sampler.start = {**state, 'batch_size': self.batch_size, 'loaders': workers,
                              'begun': rng_state.from_tensors(state['begun'])}
        turn = state['seen'] // self.batch_size % self.num_workers  # whose batch is the next one
        self.sampler.restores = [_RestoreRng(states) for states in [*workers, *[None] * turn]]
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
                self._previous, self._state = self._state, batch.pop(POSITION)
                done += 1
                yield done, batch
            if done >= total:
                return

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.sampler.is_resumed():
            rng_state.restore(self.sampler.start['begun'])
        begun = rng_state.capture()
        # here, not when the first batch is fetched: BasicSR starts loading here
        return self._batches(iter(self.loader), begun)

    def _batches(self, batches: Iterator, begun: tuple) -> Iterator[dict[str, Any]]:
        epoch, seen = self.sampler.sampler.epoch, 0
        if self.sampler.is_resumed():
            seen, self._workers = self.sampler.start['seen'], list(self.sampler.start['loaders'])
            for _ in self.sampler.restores:
                self._next(batches)
            assert self.main_rng is not None
            rng_state.restore(self.main_rng)
        elif not (self.loader.persistent_workers and self._workers):
            self._workers = [None] * self.num_workers
        while (loaded := self._next(batches)) is not None:
            batch, info = loaded
            if 'error' in info:
                raise DataError(info['error'])
            for problem in info['skipped']:
                self._num_skipped += 1  # an error, since BasicSR's logger shows nothing else on ranks other than 0
                get_root_logger().error(f'Skipped a sample ({self._num_skipped} so far): {problem}')
            self._workers[seen // self.batch_size % self.num_workers] = pickle.loads(info['rng'].numpy())
            seen += self.batch_size
            batch[POSITION] = {'epoch': epoch, 'seen': seen, 'images': len(self.sampler), 'begun': begun,
                               'batch_size': self.batch_size, 'loaders': tuple(self._workers)}
            yield batch

    def _next(self, batches: Iterator) -> Any:
        """What `_BatchDataset` loads next, or None at the end of the epoch.

        Raises:
            DataError: a worker died or hangs.
        """
        try:
            return next(batches, None)
        except RuntimeError as err:
            if not str(err).startswith(('DataLoader worker', 'DataLoader timed out')):
                raise
            self.dataset.check_lmdbs()
            reason = ' '.join(str(err).split()).partition(' Details are lost')[0].rstrip('.')
            raise DataError(f'datasets.train: {reason}: a worker was lost. It may have run out of memory (try a '
                            'smaller num_worker_per_gpu), or the disk it reads failed.') from err
