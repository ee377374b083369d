"""Sets of images as BasicSR reads them: an LMDB with its meta_info.txt, or a folder of files. Both are written with
`put(name, data, shape)`. In an LMDB, each image is a PNG file, or a BMP file: without loss, either."""
import contextlib
import os
import re
import shutil
from pathlib import Path
from urllib.parse import quote

import cv2
import lmdb
import numpy as np

from udl_plugin.data.image_io import decode
from udl_plugin.errors import UserError, did_you_mean, truncate_repr
from udl_plugin.utils.atomic_io import atomic_write

BACKENDS = ('disk', 'lmdb')


def check_io_backend(backend, where):
    """Yields what is wrong with an `io_backend`: of upstream's others, `memcached` runs the code that its options name.
    """
    if not isinstance(backend, dict):
        yield f'{where}: io_backend: is missing; write type: lmdb or type: disk in it.'
    elif backend.get('type') not in BACKENDS:
        kind = truncate_repr(backend.get('type'))
        yield f"{where}: io_backend: type: '{kind}' is not read{did_you_mean(kind, BACKENDS)}; write lmdb or disk."
    elif len(backend) > 1:
        yield (f"{where}: io_backend: '{sorted(map(str, backend.keys() - {'type'}))[0]}' is not an option that is "
               'taken; write the type alone.')


COMPRESS_LEVEL = 1  # of the PNGs; higher ones are slower to write and hardly smaller
BATCH_BYTES = 64 << 20  # of one transaction
MAP_BYTES = 16 << 20  # to start with
MAX_KEY_BYTES = 511  # of LMDB as it is built
ASCII = ''.join(map(chr, range(32, 127))).replace('%', '')
MAX_LINE = 300  # characters; a file system takes names of 255
META_LINE = re.compile(r'(?P<key>[^.]*)\..* \((?P<shape>\d+,\d+,\d+)\) \d+\s*')  # 0001_s001.png (480,480,3) 1


def encode(img, compress=True):
    """Image, uint8 `(H, W, 3)`, BGR, or `(H, W)`, to the bytes of a PNG file; else BMP, which is read much faster."""
    if not compress:
        return cv2.imencode('.bmp', img)[1].tobytes()
    return cv2.imencode('.png', img, [cv2.IMWRITE_PNG_COMPRESSION, COMPRESS_LEVEL])[1].tobytes()


def shape_of(img):
    """`(height, width, channels)`, as meta_info.txt lists it."""
    return (*img.shape, 1)[:3]


def lmdb_key(name):
    """The key of an image: its name where that is ASCII without dots; other characters as in a URL (ä is %C3%A4).

    BasicSR encodes keys as ASCII and takes what stands before the first dot of a line in meta_info.txt.
    """
    key = quote(name, safe=ASCII, errors='surrogateescape').replace('.', '%2E')
    if len(key) > MAX_KEY_BYTES:
        raise UserError(f"'{name}': the name is too long for an LMDB, {len(key)} bytes as a key; shorten it to "
                         f'{MAX_KEY_BYTES} or less.')
    return key


class LmdbWriter:
    """Writes an LMDB of BasicSR's kind. Its map grows with what is put, so no size is ever guessed.

    `meta_info.txt`, without which BasicSR does not read an LMDB, is written last, when the `with` block ends well.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.path.mkdir(parents=True)
        with self._explained():
            self.env = lmdb.open(os.fsencode(path), map_size=MAP_BYTES, lock=False)
        self.batch, self.batch_bytes = [], 0
        self.lines = {}

    def put(self, name, png, shape, key=None):
        """Adds an image.

        Args:
            name (str): Any; `lmdb_key` makes a key of it.
            png (bytes): Its PNG file, or BMP.
            shape (tuple[int]): `(H, W, C)`.
            key (str): That of an image in another LMDB, in place of one made of `name`.

        Raises:
            UserError: a second image of this name; a name too long; a full disk, here or at the end of the block.
        """
        key = lmdb_key(name) if key is None else key
        if key in self.lines:
            raise UserError(f"two images are called '{name}'.")
        kind = 'bmp ({},{},{}) 0' if png.startswith(b'BM') else 'png ({},{},{}) ' + str(COMPRESS_LEVEL)
        self.lines[key] = f'{key}.{kind.format(*shape)}\n'
        self.batch.append((key.encode(), png))
        self.batch_bytes += len(png)
        if self.batch_bytes >= BATCH_BYTES:
            self._commit()

    def _commit(self):
        with self._explained():
            while self.batch:
                try:
                    with self.env.begin(write=True) as txn:
                        for key, png in self.batch:
                            txn.put(key, png)
                    self.batch, self.batch_bytes = [], 0
                except lmdb.MapFullError:  # nothing of the batch is kept
                    self.env.set_mapsize(2 * self.env.info()['map_size'])

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except lmdb.Error as err:  # of a full disk, it says no more than Input/output error
            free = shutil.disk_usage(self.path).free
            reason = 'the disk is full' if free < BATCH_BYTES else str(err)
            raise UserError(f"'{self.path}' cannot be written: {reason} ({free / 1e6:.0f} MB are free).") from err

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        with contextlib.closing(self.env):
            if error is None:
                self._commit()
        if error is None:
            atomic_write(self.path / 'meta_info.txt', ''.join(self.lines.values()).encode())


class LmdbVerifier:
    """Stands for an LmdbWriter where the LMDB is there already: takes what it holds, and nothing else."""

    def __init__(self, path):
        self.path, self.env, self.count = path, open_lmdb(path), 0

    def put(self, name, png, shape):
        with self.env.begin() as txn:
            there = txn.get(lmdb_key(name).encode())
        # another OpenCV may pack the same pixels otherwise
        if there is None or (there != png and not np.array_equal(decode(there), decode(png))):
            self._refuse(f"'{name}' is {'another one' if there else 'not'} there")
        self.count += 1

    def _refuse(self, difference):
        raise UserError(f"'{self.path}' exists already, and holds other images: {difference}. Choose another place, "
                         'or give all scales and --force (in Python: force=True) to have everything written anew.')

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        with contextlib.closing(self.env):
            if error is None and self.count != self.env.stat()['entries']:
                self._refuse(f'{self.env.stat()["entries"]} and not {self.count}')


class FolderWriter:
    """Writes PNG files into a folder, as LmdbWriter does into an LMDB."""

    def __init__(self, path):
        self.path = Path(path)
        self.path.mkdir(parents=True)

    def put(self, name, png, shape):
        atomic_write(self.path / f'{name}.png', png)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def is_lmdb(path):
    """Whether `path` is meant as an LMDB: upstream goes by the suffix as well."""
    return Path(path).suffix == '.lmdb'


def writer(path):
    """An LmdbWriter where `path` ends in `.lmdb`, otherwise a FolderWriter."""
    return LmdbWriter(path) if is_lmdb(path) else FolderWriter(path)


def open_lmdb(path):
    """Opens an LMDB for reading from beginning to end.

    Raises:
        UserError: `path` is missing, no LMDB, or truncated. Whoever reads beyond the end of a truncated one crashes.
    """
    data = Path(path, 'data.mdb')
    if not data.is_file():
        raise UserError(f"there is no LMDB '{path}' (seen from {Path.cwd()})." if not Path(path).exists() else
                         f"'{path}' is not an LMDB: it has no data.mdb.")
    try:
        env = lmdb.open(os.fsencode(path), readonly=True, lock=False, create=False)
    except lmdb.Error as err:
        if 'already open' in str(err):
            raise UserError(f"'{path}' is read by a data set of this process already, and one process opens an LMDB "
                             'but once: give one of the two another process to load (num_workers: 1, of another loader)'
                             ', or name a copy.') from err
        raise UserError(f"'{data}' is truncated, damaged or not of an LMDB: {err}") from err
    there, needed = data.stat().st_size, (env.info()['last_pgno'] + 1) * env.stat()['psize']
    if there < needed:
        env.close()
        raise UserError(f"'{data}' is truncated: {there} of {needed} bytes are there.")
    return env


def read_meta_info(path):
    """Key to `(height, width, channels)`, from the list that BasicSR's LMDBs carry.

    Raises:
        UserError: `path` is not a whole LMDB of BasicSR's kind, or an empty one.
    """
    open_lmdb(path).close()
    if not Path(path, 'meta_info.txt').is_file():
        raise UserError(f"'{path}' has no meta_info.txt; it is not a complete LMDB of BasicSR's kind.")
    lines = Path(path, 'meta_info.txt').read_text(encoding='utf-8', errors='replace').splitlines()
    shapes = {}
    for number, line in enumerate(lines, 1):
        match = META_LINE.fullmatch(line)
        if not match:
            raise UserError(f"'{path}/meta_info.txt', line {number}: '{line[:80]}' is not like "
                             "'0001.png (480,480,3) 1'.")
        if len(line) > MAX_LINE or not match['key'].isprintable():
            raise UserError(f"'{path}/meta_info.txt', line {number}: {line[:80]!r} is longer than {MAX_LINE}, or no "
                             'name.')
        shapes[match['key']] = tuple(map(int, match['shape'].split(',')))
    if not shapes:
        raise UserError(f"the LMDB '{path}' is empty: its meta_info.txt lists no image.")
    return shapes
