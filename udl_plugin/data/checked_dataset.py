"""Corrupted samples during training: name the file and record, or skip the sample."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lmdb
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils import FileClient
from torch.utils.data import Dataset

from udl_plugin.data.image_io import check_pixel_limit, decode
from udl_plugin.data.lmdb_io import BACKENDS, open_lmdb, used_bytes
from udl_plugin.errors import UserError, describe_exception

MAX_SKIPPED = 100  # records in a row


class CorruptSampleError(UserError):
    """One image, or pair of images, cannot be used. Others may be fine."""


class CheckedDataset(Dataset):
    """Wraps a data set of BasicSR. Its errors are one line and name the file and the record.

    Args:
        dataset: Any data set of BasicSR, with its options as `opt`.
        where: Its name in the option file, for messages, such as `datasets.train`.
        on_bad_record: `stop` raises; `skip` falls back to the next good sample.

    Raises:
        UserError: `io_backend` is neither `disk` nor `lmdb`, or the data set has no `opt`.
    """

    def __init__(self, dataset: Any, where: str, on_bad_record: str = 'stop'):
        self.dataset, self.where, self.skip = dataset, where, on_bad_record == 'skip'
        if not hasattr(dataset, 'opt'):  # BasicSR's validation reads it
            raise UserError(f'{where}: type: {type(dataset).__name__} must keep its options: self.opt = opt.')
        self.opt = dataset.opt
        self.is_own = type(dataset).__module__.split('.')[0] not in ('basicsr', 'udl_plugin')  # a user's class
        self.client: _RecordingClient | None = None
        backend = (self.opt.get('io_backend') or {}).get('type', BACKENDS[0])  # BasicSR has added other keys
        if backend not in BACKENDS:  # BasicSR's `memcached` imports code from paths in its options
            raise UserError(f"{where}.io_backend.type: '{backend}' is not supported; use lmdb or disk.")

    def __getattr__(self, name: str) -> Any:
        """Attributes of the data set, such as `data_info`, which BasicSR's video models read."""
        if name == 'dataset' or name.startswith('__'):  # not set yet while a copy is made
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.load(index)[0]

    def load(self, index: int) -> tuple[dict[str, Any], list[str]]:
        """
        Returns:
            The item, and one line for each sample that was skipped for it.

        Raises:
            UserError: the sample is corrupted and `on_bad_record` is `stop`, or its LMDB is missing or truncated.
        """
        skipped: list[str] = []
        for offset in range(min(len(self), MAX_SKIPPED)):
            try:
                return self._load((index + offset) % len(self)), skipped
            except CorruptSampleError as err:
                if not self.skip:
                    hint = ' on_bad_record: skip skips such samples.' if self.opt.get('phase') == 'train' else \
                        '' if self.is_own else \
                        ' Restore the image, or remove it from GT and LQ: validation and test skip none.'
                    raise UserError(f'{self.where}: {err}{hint}') from err
                skipped.append(str(err))
        raise UserError(f'{self.where}: {len(skipped)} samples in a row are corrupted; the last one: {skipped[-1]}')

    def check_lmdbs(self) -> None:
        """
        Raises:
            UserError: an LMDB of the data set is missing or truncated.
        """
        if (self.opt.get('io_backend') or {}).get('type', 'lmdb') == 'lmdb':  # BasicSR removes it at the first item
            for root in [value for key, value in self.opt.items() if key.startswith('dataroot_')]:
                _Lmdb(root, self.where).file.close()

    def _load(self, index: int) -> dict[str, Any]:
        options = getattr(self.dataset, 'io_backend_opt', None)
        if self.client is None and options is not None and getattr(self.dataset, 'file_client', self) is None:
            # BasicSR's data sets make their FileClient at the first item; ours takes its place
            self.client = self.dataset.file_client = _RecordingClient(options.pop('type'), options, self.where)
        read = self.client.read if self.client is not None else {}
        read.clear()
        try:
            item = self.dataset[index]
            if isinstance(self.dataset, PairedImageDataset) and 'lq' in item:  # not if the GPU cuts the patches
                _check_sizes(item, self.opt['scale'])
            return item
        except (UserError, MemoryError):
            raise
        except Exception as err:  # BasicSR's readers and OpenCV raise exceptions of many types
            for name, data in read.items():
                try:
                    decode(data)
                except ValueError as reason:
                    raise CorruptSampleError(f'{name} cannot be decoded: {reason}') from err
            name = ' and '.join(read) or f'image {index}'
            # BasicSR's errors of sizes have their message in parts
            message = ''.join(err.args) if all(isinstance(part, str) for part in err.args) else str(err)
            message = ' '.join(message.split()) or type(err).__name__
            if self.is_own:
                message = f'{describe_exception(err)}.'  # it may be the code of the user's data set
            raise CorruptSampleError(f'{name}: {message}') from err


def _check_sizes(item: dict[str, Any], scale: int) -> None:
    lq, gt = (tuple(item[side].shape[-2:]) for side in ('lq', 'gt'))
    if gt != tuple(scale * length for length in lq):
        raise ValueError(f'GT is {gt[1]} x {gt[0]} and LQ {lq[1]} x {lq[0]} pixels, which is not a scale of {scale}.')


class _RecordingClient:
    """BasicSR's `FileClient`, which also records what it read for the current sample."""

    def __init__(self, backend: str, options: dict[str, Any], where: str):
        keys, roots = ([value] if isinstance(value, str) else value for value in  # one path or several, as in BasicSR
                       (options.get('client_keys', 'default'), options.get('db_paths', [])))
        self.lmdbs = {key: _Lmdb(root, where) for key, root in zip(keys, roots)}
        self.client = FileClient(backend, **options)
        self.read: dict[str, bytes] = {}  # name for messages -> content

    def get(self, filepath: str, client_key: str = 'default') -> bytes:
        name = f"'{filepath}'"
        if client_key in self.lmdbs:
            self.lmdbs[client_key].check()
            name = f"'{self.lmdbs[client_key].root}': {name}"
        try:
            data = self.client.get(filepath, client_key)
        except (OSError, lmdb.Error) as err:
            raise CorruptSampleError(f'{name} cannot be read: {getattr(err, "strerror", None) or err}.') from err
        if data is None:
            raise CorruptSampleError(f'{name} is listed in meta_info.txt, but not in data.mdb.')
        self.read[name] = data
        check_pixel_limit(data)
        return data


class _Lmdb:
    """Notices when an LMDB becomes shorter: reading beyond its end would kill the process with SIGBUS.

    Raises:
        UserError: it is missing or truncated already.
    """

    def __init__(self, root: str, where: str):
        self.root, self.where = root, where
        try:
            with open_lmdb(root) as env:
                self.needed = used_bytes(env)
        except UserError as err:
            raise UserError(f'{where}: {err}') from err
        self.file = open(Path(root, 'data.mdb'), 'rb')  # noqa: SIM115  # stays the file that is read, if replaced

    def check(self) -> None:
        found, path = os.fstat(self.file.fileno()), self.file.name
        if not found.st_nlink:
            raise UserError(f"{self.where}: '{path}' was deleted or replaced while the training ran. Restore it and "
                            'resume with --auto_resume.')
        if found.st_size < self.needed:
            raise UserError(f"{self.where}: '{path}' was truncated while the training ran: it has {found.st_size} of "
                            f'{self.needed} bytes. Write it again and resume with --auto_resume.')
