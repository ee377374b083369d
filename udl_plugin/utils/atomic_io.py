"""Atomic writes of files and folders: nothing incomplete ever appears under its final name. And a lock on a folder."""
from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from udl_plugin.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

UNFINISHED = '.unfinished'  # where atomic_folders has folders made
REPLACED = '.replaced'  # in it: the old folders that new ones replace

_lock_descriptors: set[int] = set()


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes bytes to a file: to a temporary name beside it, sync, rename. Makes missing folders.

    Raises:
        OSError: with the final `path` as `filename`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name[:40]}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as err:  # the error of a full disk has no file name; others have that of the temporary file
        err.filename, err.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folders(parent: str | Path, names: Iterable[str], force: bool = False) -> Iterator[Path]:
    """Creates several folders atomically: they move into `parent` when the `with` block ends without error.

    If the block raises, none of them appears. If the process is killed, each folder under a final name is complete;
    the next call for `parent` removes unfinished ones.

    Args:
        parent: Made if missing.
        names: Names of the folders, which the block has to make.
        force: Whether to replace existing folders of these names, once the new ones are complete.

    Yields:
        An empty folder; make the folders `names` in it.

    Raises:
        UserError: a folder exists and `force` is not given, or another process is making folders in `parent`.
    """
    parent, names = Path(parent), list(names)
    unfinished = parent / UNFINISHED
    parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(parent):
        if unfinished.is_symlink():  # rmtree's own error has no text on Python 3.13
            raise OSError(f"'{unfinished}' is a symbolic link; remove it.")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir()
        try:
            _check_targets(parent, names, force)
            yield unfinished
            existing = _check_targets(parent, names, force)  # again: another program may have made one meanwhile
            (unfinished / REPLACED).mkdir()
            # all old ones first: a kill leaves no old folder next to a new one
            moves = [*((parent / name, unfinished / REPLACED / name) for name in existing),
                     *((unfinished / name, parent / name) for name in names)]
            for done, (source, target) in enumerate(moves):
                try:
                    source.rename(target)
                except OSError:  # Windows renames no folder in which a file is open
                    for old_source, old_target in reversed(moves[:done]):
                        old_target.rename(old_source)
                    raise
        finally:
            shutil.rmtree(unfinished)
            with contextlib.suppress(OSError):  # not empty
                parent.rmdir()


def _check_targets(parent: Path, names: list[str], force: bool) -> list[str]:
    """Returns the names that exist."""
    existing = [name for name in names if os.path.lexists(parent / name)]
    if existing and not force:
        raise UserError(f"{', '.join(str(parent / name) for name in existing)}: exists already. Choose another "
                        'folder, or pass --force (in Python: force=True) to write all of it again.')
    return existing


@contextlib.contextmanager
def exclusive_lock(folder: str | Path) -> Iterator[int | None]:
    """Exclusive lock on a folder; the OS releases it when the process exits.

    Forked Python processes, such as workers of a DataLoader, do not hold it. On a file system without locks there is
    no lock and no error.

    Yields:
        The file descriptor that holds the lock. A program that inherits it (`subprocess.Popen(..., pass_fds=[fd])`)
        holds the lock as well until it ends. None on Windows.

    Raises:
        UserError: another process, or another block in this one, holds the lock.
    """
    error = UserError(f"'{folder}': another process is writing there now; wait until it has ended.")
    if fcntl is None:
        from filelock import FileLock, Timeout

        try:  # beside the folder: Windows renames no folder with an open file in it
            with FileLock(f'{Path(folder).resolve()}.lock', timeout=0):
                yield None
        except Timeout:
            raise error from None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _lock_descriptors.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise error from None
        except OSError:  # no locks on this file system
            pass
        yield descriptor
    finally:
        if descriptor in _lock_descriptors:
            _lock_descriptors.remove(descriptor)
            os.close(descriptor)


def _close_inherited_locks() -> None:
    """Runs in a forked process: with an open copy of the descriptor, it would hold the lock beyond its parent's end."""
    while _lock_descriptors:
        os.close(_lock_descriptors.pop())


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_close_inherited_locks)
