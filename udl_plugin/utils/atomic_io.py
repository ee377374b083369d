"""The one writer of files: nothing half-written ever stands under a final name."""
import contextlib
import json
import os
import shutil
from pathlib import Path

from udl_plugin.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

UNFINISHED = '.unfinished'  # the folder in which atomic_folders has folders made
COMPLETE = 'complete.json'  # in it: which folders, and whether they replace others; written when all are whole
REPLACED = 'replaced'  # in it: what stood under their names before


def atomic_write(path, data):
    """Writes the bytes `data` to `path`: temporary name beside it, sync, rename. Makes the folder where needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name[:40]}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as err:  # a full disk comes without a name, and others with that of the temporary file
        err.filename, err.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folders(parent, names, force=False):
    """Gives an empty folder to make the folders `names` in; they move to `parent` when the block ends well.

    Whatever ends the block otherwise, none of them appears. Killed at any moment, what stands under each final name is
    whole; the next call for `parent` removes what was left unfinished, or, where the kill came while the folders were
    moving, moves the rest.

    Args:
        parent (str | Path): Made where needed.
        names (Iterable[str]): Names of the folders.
        force (bool): Whether they replace folders of these names. The old ones go when the new ones are whole.

    Raises:
        UserError: one of them exists and `force` is not given, or another process has folders made for `parent`.
    """
    parent, names = Path(parent), list(names)
    is_new = not parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    unfinished = parent / UNFINISHED
    if os.path.lexists(unfinished) and (unfinished.is_symlink() or not unfinished.is_dir()):
        raise UserError(f"'{unfinished}' is in the way: new folders are made in one of this name. Remove it.")
    with exclusive_lock(parent):
        _move_into_place(unfinished)
        if unfinished.exists():
            shutil.rmtree(unfinished)
        _refuse_existing(parent, names, force)
        unfinished.mkdir()
        try:
            yield unfinished
            _refuse_existing(parent, names, force)  # of the time since then
            atomic_write(unfinished / COMPLETE, json.dumps({'names': names, 'force': force}).encode())
        except BaseException:
            (unfinished / COMPLETE).unlink(missing_ok=True)  # first: what is half removed is not complete
            shutil.rmtree(unfinished)
            if is_new:
                with contextlib.suppress(OSError):  # not empty any more
                    parent.rmdir()
            raise
        _move_into_place(unfinished)  # not in the try: an interrupt here must not remove what is whole
        shutil.rmtree(unfinished)


def _refuse_existing(parent, names, force):
    existing = [parent / name for name in names if os.path.lexists(parent / name)]
    if existing and not force:
        raise UserError(f"{', '.join(map(str, existing))}: exists already. Choose another place, or give --force (in "
                         'Python: force=True) to have all of it written anew.')
    for path in filter(os.path.ismount, existing):
        raise UserError(f"'{path}' is where a disk is mounted, and cannot be replaced.")


def _move_into_place(unfinished):
    if not (unfinished / COMPLETE).exists():
        return
    complete = _read_complete(unfinished / COMPLETE)
    (unfinished / REPLACED).mkdir(exist_ok=True)
    # each step can be done again after a kill
    for name in complete['names']:
        whole, target, replaced = unfinished / name, unfinished.parent / name, unfinished / REPLACED / name
        if whole.exists():
            if os.path.lexists(target):
                if not complete['force'] or os.path.lexists(replaced):
                    raise UserError(f"'{target}' came up after a run was killed that had finished '{whole}'. Remove "
                                     'one of them.')
                target.rename(replaced)
            whole.rename(target)


def _read_complete(path):
    """What `atomic_folders` wrote there; a stranger's data may have a file of that name."""
    try:
        complete = json.loads(path.read_bytes())
        if complete.keys() == {'names', 'force'} and all(
                name not in ('.', '..', '') and Path(name).name == name for name in complete['names']):
            return complete
    except (ValueError, AttributeError, TypeError, RecursionError):
        pass
    raise UserError(f"'{path.parent}' is in the way: new folders are made in one of this name, and its {path.name} is "
                     'not of ours. Remove it.')


@contextlib.contextmanager
def exclusive_lock(folder):
    """Keeps other processes out of the same block; the system lets them in when this one ends, however it does.

    Gives the number of the open file that holds the lock: processes that inherit it hold it too. None where the system
    has no such locks.

    Raises:
        UserError: another process is in there.
    """
    if fcntl is None:
        yield None
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"'{folder}': another process is writing there now; wait until it has ended.") from None
        except OSError:
            pass  # a network file system without locks
        yield handle
    finally:
        os.close(handle)
