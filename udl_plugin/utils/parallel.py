"""`map` over worker processes, in order and with bounded memory.

concurrent.futures.ProcessPoolExecutor does not serve: its workers share one result pipe, and if one of them is killed
while it writes a result of some MB, the executor waits forever. Here each worker has a pipe of its own.
"""
from __future__ import annotations

import collections
import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from udl_plugin.errors import UserError

Item = TypeVar('Item')
Result = TypeVar('Result')
Worker = tuple[Connection, BaseProcess]

INTERRUPTS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGBREAK') if hasattr(signal, name)]


def available_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@contextlib.contextmanager
def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Iterator[Result]]:
    """Yields an iterator over `function(item)` for each item, computed ahead in worker processes.

    At most two items per worker are being computed or wait to be consumed. The workers end with the `with` block, and
    with this process, even if it is killed.

    Args:
        function: Must be picklable, and so must its results and exceptions.
        items: Must be picklable, and small, since they wait in a pipe behind results: names rather than images.
        workers: Number of processes; 0 computes in this process.

    Raises:
        UserError: from the iterator: a worker died. Exceptions of `function` are raised there too.
    """
    if not workers:
        yield map(function, items)
        return
    items = iter(items)
    first = list(itertools.islice(items, workers))
    pipes: list[Connection] = []
    processes: list[BaseProcess] = []
    spawn = multiprocessing.get_context('spawn')  # a forked copy of a process with threads (torch, OpenCV) may hang
    try:
        with _signals_deferred():
            for _ in first:
                ours, theirs = spawn.Pipe()
                processes.append(spawn.Process(target=_work, args=(theirs, function), daemon=True))
                processes[-1].start()
                theirs.close()  # otherwise `ours` would not see the end of the worker
                pipes.append(ours)
        yield _results(list(zip(pipes, processes)), itertools.chain(first, items))
    finally:
        with _signals_deferred():
            for process in processes:
                process.kill()
            for process, pipe in zip(processes, pipes):
                process.join()
                pipe.close()


def _results(workers: list[Worker], items: Iterable) -> Iterator:
    """Yields the results in order. The workers take turns: each has one item to compute and one that waits."""
    pending: collections.deque[Worker] = collections.deque()
    for item, worker in zip(items, itertools.cycle(workers)):
        if len(pending) == 2 * len(workers):
            yield _receive(*pending.popleft())
        with contextlib.suppress(OSError):  # of a worker that died; `_receive` reports it
            # not send(item): what it leaves in the exception of a broken pipe crashed Python at exit, once in 120 times
            # (SystemError: deallocated BytesIO object has exported buffers)
            worker[0].send_bytes(pickle.dumps(item))
        pending.append(worker)
    while pending:
        yield _receive(*pending.popleft())


def _receive(pipe: Connection, process: BaseProcess) -> Any:
    try:
        # on Windows, a worker that ends while it starts leaves its end of the pipe open in this process
        if pipe not in connection.wait([pipe, process.sentinel]):
            raise EOFError
        result, error = pipe.recv()
    except (EOFError, OSError):
        raise UserError('a worker process was killed, or crashed on a damaged file. If memory is short, use fewer '
                        '--workers.') from None
    if error is not None:
        raise error
    return result


def _work(pipe: Connection, function: Callable) -> None:
    """Main function of a worker process. Returns when its pipe is closed."""
    import cv2  # here, as a tenth of a second is much for a command that only prints its help
    for number in INTERRUPTS:  # the terminal sends them to the main process too, which ends the workers
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            item = pipe.recv()
            answer: tuple[Any, Exception | None]
            try:
                answer = function(item), None
            except Exception as err:
                answer = None, err
            pipe.send(answer)


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Defers signals to the end of the block, so that no process is left half started or half ended.

    Processes started in the block do not receive them until they are ready.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, 'pthread_sigmask'):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # now, because starting it unblocks signals
    deferred: list[int] = []
    handlers = {number: signal.getsignal(number) for number in INTERRUPTS}
    for number in INTERRUPTS:
        if handlers[number] != signal.SIG_IGN:
            signal.signal(number, lambda number, _: deferred.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)  # child processes inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for number in deferred:  # they reached another thread, such as one of OpenBLAS
            signal.raise_signal(number)
