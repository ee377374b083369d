"""`map` over worker processes, in order and with bounded memory."""
import collections
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker

import cv2

from udl_plugin.errors import InputError

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def available_cores():
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


@contextlib.contextmanager
def in_order(function, items, workers):
    """Gives an iterator over the results of `function` for each of `items`, computed ahead in worker processes.

    At most two items for each worker are under way or waiting to be taken, however many there are. The processes end
    with the block, and with this process, however it ends.

    Args:
        function (Callable): And its results and exceptions, can be pickled.
        items (Iterable): As well.
        workers (int): Processes; with 0, this one computes.

    Raises:
        InputError: from the iterator, when a worker process died. What `function` raises comes through.
    """
    if not workers:
        yield map(function, items)
        return
    items, waiting = iter(items), collections.deque()
    with contextlib.ExitStack() as stack:
        with _interrupts_held(), _death_explained():
            # spawn: a forked copy of a process with threads (torch, OpenCV) may hang
            spawn = multiprocessing.get_context('spawn')
            pool = stack.enter_context(ProcessPoolExecutor(workers, spawn, initializer=_start_worker))
            stack.callback(pool.shutdown, cancel_futures=True)
            waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 2 * workers))
        yield _results(pool, function, items, waiting)


def _results(pool, function, items, waiting):
    with _death_explained():
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result


@contextlib.contextmanager
def _death_explained():
    try:
        yield
    except BrokenProcessPool:
        raise InputError('a worker process was killed, or crashed while reading a damaged file. Where memory is '
                         'short, use fewer --workers.') from None


@contextlib.contextmanager
def _interrupts_held():
    """Puts Ctrl-C and `kill` off to the end of the block, so that no process is left half started. Those that are
    started in the block do not hear them until they are ready."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, 'pthread_sigmask'):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # here, for starting it ends the blocking
    held = []
    handlers = {number: signal.signal(number, lambda number, _: held.append(number)) for number in INTERRUPTS}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)  # which started processes inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for number in held:  # heard by another thread, such as those of OpenBLAS
            signal.raise_signal(number)


def _start_worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process hears Ctrl-C too, and ends us
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
