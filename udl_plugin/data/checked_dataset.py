"""Data that goes bad below a running training: what is wrong is told by file and record, or passed over if asked to."""
import os
from pathlib import Path

import lmdb
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils import FileClient
from torch.utils.data import Dataset

from udl_plugin.data.image_io import check_pixel_limit, decode
from udl_plugin.data.lmdb_io import BACKENDS, check_io_backend, open_lmdb
from udl_plugin.errors import UserError, raise_errors

MAX_BAD = 100  # records in a row that are passed over


class CorruptSampleError(UserError):
    """One image, or pair of images, that is of no use; the others may well be."""


class CheckedDataset(Dataset):
    """A data set of BasicSR whose errors are of one line, with the name of the file and the record.

    Args:
        dataset (Dataset): One that has `opt`, as all of BasicSR's have.
        where (str): What it is called in the yml, for messages: `datasets: train`.
        on_bad_record (str): `stop`, or `skip`: the next image that is good is taken in place of a bad one.

    Raises:
        UserError: an `io_backend` that is none of files, nor of LMDBs.
    """

    def __init__(self, dataset, where, on_bad_record='stop'):
        self.dataset, self.where, self.skip = dataset, where, on_bad_record == 'skip'
        self.opt = dataset.opt  # upstream's validation reads it
        self.client = None
        kind = (self.opt.get('io_backend') or {}).get('type', BACKENDS[0])  # by then, upstream has added to it
        raise_errors(check_io_backend({'type': kind}, where))

    def __getattr__(self, name):
        """Of the data set itself: upstream's video models ask for `data_info`."""
        if name == 'dataset' or name.startswith('__'):  # not there yet, in a copy that is being made
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.load(index)[0]

    def load(self, index):
        """
        Returns:
            tuple[dict, list[str]]: The item, and what was passed over for it, a line each.

        Raises:
            UserError: the record is bad, and `on_bad_record` is `stop`; or what it is in is gone or truncated.
        """
        passed_over = []
        for number in range(min(len(self), MAX_BAD)):
            try:
                return self._load((index + number) % len(self)), passed_over
            except CorruptSampleError as err:
                if not self.skip:
                    raise UserError(f'{self.where}: {err} (on_bad_record: skip passes over such images.)') from err
                passed_over.append(str(err))
        raise UserError(f'{self.where}: {len(passed_over)} records in a row are bad; the last one: {passed_over[-1]}')

    def refuse_damaged(self):
        """
        Raises:
            UserError: an LMDB of the data set is gone or truncated.
        """
        if (self.opt.get('io_backend') or {}).get('type', 'lmdb') == 'lmdb':
            for root in [value for key, value in self.opt.items() if key.startswith('dataroot_')]:
                _bytes_needed(root, self.where)

    def _load(self, index):
        try:
            self._watch()
            item = self.dataset[index]
        except (UserError, MemoryError):
            raise
        except Exception as err:  # upstream's readers and OpenCV raise nearly anything
            raise self._explained(index, err) from err
        if isinstance(self.dataset, PairedImageDataset):
            _refuse_other_size(item, self.opt['scale'], self._names(index))
        return item

    def _watch(self):
        """Puts a watch on what the data set reads with, and makes that first, as upstream does at the first item."""
        options = getattr(self.dataset, 'io_backend_opt', None)
        if self.client is None and options is not None and getattr(self.dataset, 'file_client', self) is None and (
                options.get('type') != 'lmdb' or isinstance(options.get('client_keys'), list)):  # FFHQDataset has one
            kind = options.pop('type')
            roots = dict(zip(options['client_keys'], options['db_paths'])) if kind == 'lmdb' else {}
            needed = {key: _bytes_needed(root, self.where) for key, root in roots.items()}
            files = {key: open(Path(root, 'data.mdb'), 'rb') for key, root in roots.items()}  # noqa: SIM115
            self.client = _RecordingClient(FileClient(kind, **options), roots, files, needed, self.where)
            self.dataset.file_client = self.client
        if self.client is not None:
            self.client.read.clear()

    def _names(self, index):
        if self.client is not None and self.client.read:
            return ' and '.join(self.client.read)
        return f'image {index}'

    def _explained(self, index, err):
        for name, data in (self.client.read if self.client is not None else {}).items():
            try:
                decode(data)
            except ValueError as reason:
                return CorruptSampleError(f'{name} cannot be decoded: {reason}')
        return CorruptSampleError(f'{self._names(index)}: {" ".join(str(err).split()) or type(err).__name__}')


class _RecordingClient:
    """A `FileClient` that remembers what it read, and reads no LMDB that has become shorter: that would kill it.

    Args:
        client (FileClient): Upstream's.
        roots (dict[str, str]): Upstream's `client_key` to the path of its LMDB; empty for files.
        files (dict[str, file]): And to its data.mdb, open: the very one that is read, whatever takes its name later.
        needed (dict[str, int]): And to the least number of bytes in it.
        where (str): As of CheckedDataset.
    """

    def __init__(self, client, roots, files, needed, where):
        self.client, self.roots, self.files, self.needed, self.where = client, roots, files, needed, where
        self.read = {}  # of the item in hand: name for messages, and bytes

    def get(self, filepath, client_key='default'):
        name = f"'{filepath}'"
        if client_key in self.roots:
            self._refuse_damaged(client_key)
            name = f"'{self.roots[client_key]}': {name}"
        try:
            data = self.client.get(filepath, client_key)
        except (OSError, lmdb.Error) as err:
            raise CorruptSampleError(f'{name} cannot be read: {getattr(err, "strerror", None) or err}.') from err
        if data is None:
            raise CorruptSampleError(f'{name} is not there, though meta_info.txt lists it.')
        try:
            check_pixel_limit(data)
        except (OSError, ValueError) as err:
            reason = 'truncated, damaged or not an image.' if isinstance(err, OSError) else err
            raise CorruptSampleError(f'{name} cannot be decoded: {reason}') from err
        self.read[name] = data
        return data

    def _refuse_damaged(self, client_key):
        found, data = os.fstat(self.files[client_key].fileno()), self.files[client_key].name
        if not found.st_nlink:
            raise UserError(f"{self.where}: '{data}' was deleted or replaced while the training ran. Put it back; "
                             '--auto_resume goes on.')
        if found.st_size < self.needed[client_key]:
            raise UserError(f"{self.where}: '{data}' was truncated while the training ran: {found.st_size} of "
                             f'{self.needed[client_key]} bytes are there. Have it written anew; --auto_resume goes on.')


def _bytes_needed(root, where):
    try:
        with open_lmdb(root) as env:
            return (env.info()['last_pgno'] + 1) * env.stat()['psize']
    except UserError as err:
        raise UserError(f'{where}: {err}') from err


def _refuse_other_size(item, scale, names):
    lq, gt = (tuple(item[side].shape[-2:]) for side in ('lq', 'gt'))
    if gt != tuple(scale * length for length in lq):
        raise CorruptSampleError(f'{names}: GT is {gt[1]} x {gt[0]} and LQ {lq[1]} x {lq[0]} pixels, which is not a scale of '
                        f'{scale}.')
