"""Memory that runs out: recognising it, explaining it, and how much there is."""
from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from udl_plugin.errors import UserError

T = TypeVar('T')
CGROUPS = Path('/sys/fs/cgroup')
# of torch's OutOfMemoryError, its CPU allocator (on Windows: not enough), MPS, cuBLAS, and oneDNN, which says no more
OUT_OF_MEMORY = re.compile(
    'out of memory|allocate memory|not enough memory|Invalid buffer size|ALLOC_FAILED|could not create a primitive$')


class NotEnoughMemory(UserError):
    """Memory does not suffice for what the user asked for."""


def is_out_of_memory(err: BaseException) -> bool:
    """Whether an error says that there is not enough memory, on a GPU or on the CPU."""
    return isinstance(err, MemoryError) or (isinstance(err, RuntimeError) and bool(OUT_OF_MEMORY.search(str(err))))


def explain_out_of_memory(message: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Returns `function(*args, **kwargs)`.

    Raises:
        NotEnoughMemory: with `message`, if there is not enough memory for it.
    """
    try:
        return function(*args, **kwargs)
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
    raise NotEnoughMemory(message)  # after the `except`, which releases the tensors of the failed call


def available_memory() -> int | None:
    """Bytes of main memory that this process can still get; None if unknown, as on systems other than Linux.

    The limit of a container or batch job, and of `ulimit -v`, counts too.
    """
    try:
        lines = _read('/proc/meminfo').splitlines()
        free = [1024 * int(line.split()[1]) for line in lines if line.startswith('MemAvailable:')]
        group = CGROUPS / _read('/proc/self/cgroup').split('0::/')[-1].strip()
        limit_of_process = re.search(r'^Max address space +(\d+)', _read('/proc/self/limits'), re.MULTILINE)
        if limit_of_process:
            pages = int(_read('/proc/self/statm').split()[0])
            free.append(int(limit_of_process[1]) - pages * os.sysconf('SC_PAGE_SIZE'))
    except OSError:
        return None
    for folder in (group, *group.parents):
        try:
            limit, used = (_read(folder / name) for name in ('memory.max', 'memory.current'))
            cache = re.search(r'^inactive_file (\d+)', _read(folder / 'memory.stat'), re.MULTILINE)
            free.append(int(limit) - int(used) + int(cache[1] if cache else 0))
        except (OSError, ValueError):  # not there; or `max`, no limit
            pass
    return min(free, default=None)


def _read(path: str | Path) -> str:
    return Path(path).read_text(encoding='utf-8')
