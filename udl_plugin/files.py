"""The one writer of files: nothing half-written ever stands under a final name."""
import contextlib
import os
import shutil
from pathlib import Path

from udl_plugin.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

UNFINISHED = '.unfinished'  # the folder in which whole_folders has folders made
COMPLETE = 'complete'  # in it: the list of folders, written when all of them are whole
REPLACED = 'replaced'  # in it: what stood under their names before


def write_whole(path, data):
    """Writes the bytes `data` to `path`: temporary name beside it, sync, rename. Makes the folder where needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as err:  # a full disk comes without the name
        err.filename = err.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folders(parent, names, force=False):
    """Gives an empty folder to make the folders `names` in; they move to `parent` when the block ends well.

    Whatever ends the block otherwise, none of them appears. Killed at any moment, what stands under each final name is
    whole; the next call for `parent` removes what was left unfinished, or, where the kill came while the folders were
    moving, moves the rest.

    Args:
        parent (str | Path): Made where needed.
        names (Iterable[str]): Names of the folders.
        force (bool): Whether they replace folders of these names. The old ones go when the new ones are whole.

    Raises:
        InputError: one of them exists and `force` is not given, or another process has folders made for `parent`.
    """
    parent, names = Path(parent), list(names)
    is_new = not parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    unfinished = parent / UNFINISHED
    with _alone(parent):
        _move_into_place(unfinished)
        if unfinished.exists():
            shutil.rmtree(unfinished)
        if not force:
            _refuse_existing(parent, names)
        unfinished.mkdir()
        try:
            yield unfinished
            if not force:
                _refuse_existing(parent, names)  # of the time since then
            write_whole(unfinished / COMPLETE, os.fsencode('\n'.join(names)))
        except BaseException:
            shutil.rmtree(unfinished)
            if is_new:
                with contextlib.suppress(OSError):  # not empty any more
                    parent.rmdir()
            raise
        _move_into_place(unfinished)  # not in the try: an interrupt here must not remove what is whole
        shutil.rmtree(unfinished)


def _refuse_existing(parent, names):
    existing = [str(parent / name) for name in names if os.path.lexists(parent / name)]
    if existing:
        raise InputError(f"{', '.join(existing)}: exists already. Choose another place, or give --force (in Python: "
                         'force=True) to have all of it written anew.')


def _move_into_place(unfinished):
    if not (unfinished / COMPLETE).exists():
        return
    (unfinished / REPLACED).mkdir(exist_ok=True)
    # each step can be done again after a kill
    for name in os.fsdecode((unfinished / COMPLETE).read_bytes()).split('\n'):
        whole, target = unfinished / name, unfinished.parent / name
        if whole.exists():
            if os.path.lexists(target):
                target.rename(unfinished / REPLACED / name)
            whole.rename(target)


@contextlib.contextmanager
def _alone(folder):
    """Keeps other processes out of the same block; the system lets them in when this one ends, however it does."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"'{folder}': another process is writing there now; wait until it has ended.") from None
        except OSError:
            pass  # a network file system without locks
        yield
    finally:
        os.close(handle)
