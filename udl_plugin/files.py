"""The one writer of files: nothing half-written ever stands under a final name."""
import contextlib
import os
import shutil
import tempfile
from pathlib import Path


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
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path):
    """Gives the path of a folder to make; it becomes `path` when the block ends well, and vanishes otherwise.

    It bears the same name, in a temporary folder beside `path`.

    Raises:
        FileExistsError: `path` exists.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f'{path} exists already; remove it to have it written anew.')
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
    try:
        unfinished = temporary / path.name
        yield unfinished
        unfinished.rename(path)
    finally:
        shutil.rmtree(temporary)
