"""`map` over worker processes, in order and with bounded memory.

concurrent.futures' ProcessPoolExecutor is not used for it: its workers share one pipe, and when one of them is killed
while it writes a result of some MB into it, the executor waits for ever. Here each has a pipe of its own.
"""
import collections
import contextlib
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker

import cv2

from udl_plugin.errors import UserError

INTERRUPTS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]


def available_cores():
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


@contextlib.contextmanager
def parallel_map(function, items, workers):
    """Gives an iterator over the results of `function` for each of `items`, computed ahead in worker processes.

    At most two items for each worker are under way or waiting to be taken, however many there are. The processes end
    with the block, and with this process, however it ends.

    Args:
        function (Callable): And its results and exceptions, can be pickled.
        items (Iterable): As well.
        workers (int): Processes; with 0, this one computes.

    Raises:
        UserError: from the iterator, when a worker process died. What `function` raises comes through.
    """
    if not workers:
        yield map(function, items)
        return
    items = iter(items)
    ahead = list(itertools.islice(items, 2 * workers))
    pipes, processes, free = [], [], queue.SimpleQueue()
    spawn = multiprocessing.get_context('spawn')  # a forked copy of a process with threads (torch, OpenCV) may hang
    threads = ThreadPoolExecutor(workers)  # each hands an item to a free process and waits for its result
    try:
        with _interrupts_held():
            for _ in range(min(workers, len(ahead))):
                ours, theirs = spawn.Pipe()
                processes.append(spawn.Process(target=_work, args=(theirs, function), daemon=True))
                processes[-1].start()
                theirs.close()  # so that ours tells when the process ends
                pipes.append(ours)
                free.put(ours)
        yield _results(threads, free, itertools.chain(ahead, items), 2 * workers)
    finally:
        with _interrupts_held():
            for process in processes:
                process.kill()
            threads.shutdown(cancel_futures=True)
            for process, pipe in zip(processes, pipes):
                process.join()
                pipe.close()


def _results(threads, free, items, ahead):
    waiting = collections.deque(threads.submit(_ask, free, item) for item in itertools.islice(items, ahead))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(threads.submit(_ask, free, item) for item in itertools.islice(items, 1))
        yield result


def _ask(free, item):
    pipe = free.get()
    try:
        # not send(item): what that leaves in the error of a broken pipe crashes Python at its end, once in 120 times
        # (SystemError: deallocated BytesIO object has exported buffers)
        pipe.send_bytes(pickle.dumps(item))
        result, error = pipe.recv()
    except (EOFError, OSError):
        raise UserError('a worker process was killed, or crashed over a damaged file. Where memory is short, use '
                         'fewer --workers.') from None
    finally:
        free.put(pipe)
    if error is not None:
        raise error
    return result


def _work(pipe, function):
    """The life of a worker process. It ends when its pipe does."""
    for number in INTERRUPTS:  # the main process hears them too, and ends us
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            item = pipe.recv()
            try:
                answer = function(item), None
            except Exception as err:
                answer = None, err
            pipe.send(answer)


@contextlib.contextmanager
def _interrupts_held():
    """Puts Ctrl-C and `kill` off to the end of the block, so that no process is left half started or half ended. Those
    that are started in the block do not hear them until they are ready."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, 'pthread_sigmask'):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # here, for starting it ends the blocking
    held = []
    handlers = {number: signal.getsignal(number) for number in INTERRUPTS}
    for number in INTERRUPTS:
        if handlers[number] != signal.SIG_IGN:
            signal.signal(number, lambda number, _: held.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)  # which started processes inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for number in held:  # heard by another thread, such as those of OpenBLAS
            signal.raise_signal(number)
