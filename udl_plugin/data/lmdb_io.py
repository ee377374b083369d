"""Reads and writes sets of images as BasicSR reads them: an LMDB with a meta_info.txt, or a folder of PNG files.

Every image of an LMDB is a PNG or BMP file, both lossless.
"""
from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import cv2
import lmdb
import numpy as np

from udl_plugin.errors import UserError
from udl_plugin.utils.atomic_io import atomic_write

BACKENDS = ('disk', 'lmdb')
COMPRESS_LEVEL = 1  # of PNG; higher levels are slower to write and hardly smaller
BATCH_BYTES = 64 << 20  # per transaction
MAP_BYTES = 16 << 20  # initial size of the memory map
MAX_GROWTH = 1 << 30  # of it, at once: on Windows, the file is as large
MAX_KEY_BYTES = 511  # of LMDB as it is built by default
KEY_CHARACTERS = ''.join(map(chr, range(32, 127))).replace('%', '')
META_LINE = re.compile(r'(?P<key>[^.]*)\..* \((?P<shape>\d+,\d+,\d+)\) \d+\s*')  # 0001_s001.png (480,480,3) 1


def encode(img: np.ndarray, compress: bool = True) -> bytes:
    """Encodes an image as a PNG file or, without `compress`, as a BMP file, which is read much faster.

    Args:
        img: uint8 `(H, W, 3)`, BGR, or `(H, W)`.
    """
    if not compress:
        return cv2.imencode('.bmp', img)[1].tobytes()
    return cv2.imencode('.png', img, [cv2.IMWRITE_PNG_COMPRESSION, COMPRESS_LEVEL])[1].tobytes()


def shape_of(img: np.ndarray) -> tuple[int, int, int]:
    """`(height, width, channels)`, as in meta_info.txt."""
    height, width, channels = (*img.shape, 1)[:3]
    return height, width, channels


def lmdb_key(name: str) -> str:
    """The key of an image: its name, with dots and non-ASCII characters percent-encoded as in a URL (ä is %C3%A4).

    BasicSR encodes keys as ASCII, and takes the part of a line in meta_info.txt before the first dot.

    Raises:
        UserError: the key is too long.
    """
    key = quote(name, safe=KEY_CHARACTERS, errors='surrogateescape').replace('.', '%2E')
    if len(key) > MAX_KEY_BYTES:
        raise UserError(f"'{name}': the name is too long for an LMDB: its key has {len(key)} bytes. Shorten it to "
                        f'{MAX_KEY_BYTES} or less.')
    return key


class LmdbWriter:
    """Context manager that writes an LMDB for BasicSR. Its memory map grows as needed.

    `meta_info.txt`, without which BasicSR does not read an LMDB, is written last, if the block ends without error.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.mkdir(parents=True)
        with self._explain_errors():
            self.env = lmdb.open(os.fsencode(path), map_size=MAP_BYTES, lock=False)
        self.batch: list[tuple[bytes, bytes]] = []
        self.batch_bytes = 0
        self.lines: dict[str, str] = {}

    def put(self, name: str, data: bytes, shape: tuple[int, ...], key: str | None = None) -> None:
        """Adds an image.

        Args:
            name: Any name; its key is `lmdb_key(name)`.
            data: PNG or BMP file.
            shape: `(H, W, C)`.
            key: Key to use instead, such as that of an image in another LMDB.

        Raises:
            UserError: a second image of this name, or too long a name. Here or at the end of the block: the disk is
                full.
        """
        key = lmdb_key(name) if key is None else key
        if key in self.lines:
            raise UserError(f"two images are called '{name}'.")
        suffix, level = ('bmp', 0) if data.startswith(b'BM') else ('png', COMPRESS_LEVEL)
        self.lines[key] = f'{key}.{suffix} ({",".join(map(str, shape))}) {level}\n'
        self.batch.append((key.encode(), data))
        self.batch_bytes += len(data)
        if self.batch_bytes >= BATCH_BYTES:
            self._commit()

    def _commit(self) -> None:
        with self._explain_errors():
            while self.batch:
                try:
                    with self.env.begin(write=True) as txn:
                        for key, data in self.batch:
                            txn.put(key, data)
                    self.batch, self.batch_bytes = [], 0
                except lmdb.MapFullError:  # the transaction was rolled back
                    size = self.env.info()['map_size']
                    self.env.set_mapsize(size + min(size, MAX_GROWTH))

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as err:  # on a full disk, the text is only Input/output error
            free = shutil.disk_usage(self.path).free
            reason = 'the disk is full' if free < BATCH_BYTES else str(err)
            raise UserError(f"'{self.path}' cannot be written: {reason} ({free / 1e6:.0f} MB are free).") from err

    def __enter__(self) -> LmdbWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        with contextlib.closing(self.env):
            if error is None:
                self._commit()
                size = used_bytes(self.env)
        if error is None:
            os.truncate(self.path / 'data.mdb', size)  # to what it is everywhere but on Windows
            atomic_write(self.path / 'meta_info.txt', ''.join(self.lines.values()).encode())


class FolderWriter:
    """Writes PNG files into a folder, with the interface of LmdbWriter."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.mkdir(parents=True)

    def put(self, name: str, data: bytes, shape: tuple[int, ...]) -> None:
        """Writes `data`, a PNG file, as `name`.png."""
        atomic_write(self.path / f'{name}.png', data)

    def __enter__(self) -> FolderWriter:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def is_lmdb(path: str | Path) -> bool:
    """Whether `path` names an LMDB. Like BasicSR, this looks only at the suffix."""
    return Path(path).suffix == '.lmdb'


def open_writer(path: str | Path) -> LmdbWriter | FolderWriter:
    """An LmdbWriter if `path` ends in `.lmdb`, otherwise a FolderWriter."""
    return LmdbWriter(path) if is_lmdb(path) else FolderWriter(path)


def open_lmdb(path: str | Path) -> lmdb.Environment:
    """Opens an LMDB read-only.

    Raises:
        UserError: `path` is missing, not an LMDB, already open in this process, or truncated: reading beyond the end
            of a truncated one would crash the process.
    """
    data = Path(path, 'data.mdb')
    if not data.is_file():
        raise UserError(f"'{path}' is not an LMDB: it has no data.mdb." if Path(path).exists() else
                        f"there is no LMDB '{path}' (working directory: {Path.cwd()}).")
    try:
        env = lmdb.open(os.fsencode(path), readonly=True, lock=False, create=False)
    except lmdb.Error as err:
        if 'already open' in str(err):
            raise UserError(f"'{path}' is already open in this process, and LMDB opens a file only once per process. "
                            'Load one of the two data sets in worker processes (num_worker_per_gpu: 1), or copy the '
                            'LMDB.') from err
        raise UserError(f"'{data}' is truncated, corrupted or not an LMDB's: {err}") from err
    size, needed = data.stat().st_size, used_bytes(env)
    if size < needed:
        env.close()
        raise UserError(f"'{data}' is truncated: it has {size} of {needed} bytes.")
    return env


def used_bytes(env: lmdb.Environment) -> int:
    """The least size of data.mdb with which all pages of an LMDB can be read."""
    return (env.info()['last_pgno'] + 1) * env.stat()['psize']


def read_meta_info(path: str | Path) -> dict[str, tuple[int, int, int]]:
    """Reads meta_info.txt of an LMDB written for BasicSR.

    Returns:
        Key to `(height, width, channels)`.

    Raises:
        UserError: `path` is not an LMDB written for BasicSR, or is incomplete or empty.
    """
    open_lmdb(path).close()
    file = Path(path, 'meta_info.txt')
    if not file.is_file():
        raise UserError(f"'{path}' has no meta_info.txt: it is incomplete, or was not written for BasicSR.")
    shapes = {}
    for number, line in enumerate(file.read_text(encoding='utf-8', errors='replace').splitlines(), 1):
        match = META_LINE.fullmatch(line)
        if not match:
            raise UserError(f"'{file}', line {number}: {line[:80]!r} is not of the form '0001.png (480,480,3) 1'.")
        height, width, channels = map(int, match['shape'].split(','))
        shapes[match['key']] = height, width, channels
    if not shapes:
        raise UserError(f"the LMDB '{path}' is empty: its meta_info.txt lists no image.")
    return shapes
