"""Ctrl-C, SIGTERM and the loss of the terminal as an exception that comes between two iterations, and never within one.

Nor while data is loaded: what is raised in the midst of a queue's `put` leaves its lock taken, and neither the loading
processes nor the training could be ended any more.
"""
import contextlib
import os
import signal
import sys
import threading
import time

SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]
AGAIN = 2  # seconds in which another signal means the first one: batch systems and `timeout` tell twice
_held = 0  # blocks of `held` that are being run
_pending = None  # the signal that came, until what it raises is settled
_since = None  # when it came


class Interrupted(BaseException):  # as KeyboardInterrupt: no `except Exception` is meant for it
    """The user, or the machine's owner, wants the training to end; `signal` says how it was told."""

    def __init__(self, signal_number):
        self.signal = signal.Signals(signal_number)
        super().__init__(self.signal.name)


@contextlib.contextmanager
def raised():
    """In the block, the first of these signals raises Interrupted; one that comes seconds later ends the process as it
    always did. Where the loss of the terminal is ignored, it stays so."""
    global _held, _pending, _since
    _held, _pending, _since = 0, None, None
    ignored = [number for number in SIGNALS[2:] if signal.getsignal(number) is signal.SIG_IGN]  # as with nohup
    before = {number: signal.signal(number, _handle) for number in SIGNALS if number not in ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _pending = None


def _handle(number, _frame):
    global _pending, _since
    now = time.monotonic()
    if _since is None:
        _pending, _since = number, now
        if not _held:
            raise Interrupted(number)  # where Python drops it, as in `__del__` and while it forks, `release` does again
    elif now - _since > AGAIN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.raise_signal(number)


def settle():
    """From here on, nothing is raised: what ends the training, such as saving, is not interrupted by what ended it."""
    global _held, _pending
    _held, _pending = _held + 1, None


@contextlib.contextmanager
def held():
    """A signal that comes in the block is raised at its end; in a block within a block, at the end of the outer one."""
    global _held
    hold()
    try:
        yield
    except BaseException:
        _held -= 1
        raise
    release()


def hold():
    """Begins what `release` ends, where the two are in different functions."""
    global _held
    _held += 1


def release():
    """
    Raises:
        Interrupted: a signal came meanwhile, and this was the outermost block.
    """
    global _held
    _held -= 1
    if not _held and _pending is not None:
        raise Interrupted(_pending)


def check():
    """For a place within the outermost block, and no other one, where nothing is half done.

    Raises:
        Interrupted: a signal waits for the end of that block, or was lost.
    """
    if _held <= 1 and _pending is not None:
        raise Interrupted(_pending)


def pending():
    """The number of the signal that waits for the end of a block, or was lost; or None."""
    return _pending


def pend(number):
    """As if a signal had come here that came to another process of the training."""
    global _pending
    _pending = number


def ignore_signals_in_worker():
    """For a process that loads data: Ctrl-C and a batch system's SIGTERM come to it too, and the parent still needs it.

    Only the parent's own SIGTERM ends it, as far as the system tells whose it is (Linux does).
    """
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_the_parent, args=(os.getppid(),), daemon=True).start()
    sys.excepthook = _tell  # of threads that hand data to a parent that is gone


def _wait_for_the_parent(parent):
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _tell(kind, err, traceback):
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, err, traceback)
