"""Ctrl-C, SIGTERM and SIGHUP as a request to stop, which the training loop reads where nothing is half done."""
from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

from udl_plugin.utils.distributed import max_over_ranks
from udl_plugin.utils.parallel import INTERRUPTS

REPEAT_WITHIN = 2.0  # seconds in which a repeated signal counts as the first one: batch systems and `timeout` send two


class Stopped(BaseException):  # like KeyboardInterrupt: `except Exception` must not catch it
    """A stop was requested while validating."""


class StopSignal:
    """Context manager that records the first of these signals instead of letting it interrupt the code that runs.

    Nothing is raised in the middle of an iteration or while data is loaded: an exception inside a queue's `put` would
    leave its lock taken. A signal that comes more than `REPEAT_WITHIN` seconds after the first one acts as it would
    without us. SIGHUP stays ignored where it is (nohup).
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal; 0 before there is one
        self._time = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in INTERRUPTS:
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._time = number, time.monotonic()
        elif time.monotonic() - self._time > REPEAT_WITHIN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)

    def requested(self, device: torch.device | None = None) -> bool:
        """Whether a stop was requested.

        Args:
            device: In distributed training, where to put the flag that the processes exchange: all of them stop when
                one was asked to. None: ask this process only.
        """
        agreed = max_over_ranks(self.number, device)
        if agreed:  # otherwise this process may have got a signal meanwhile
            self.number = agreed
        return bool(agreed)


class StoppableLoader:
    """A validation loader that raises `Stopped` between two images once a stop is requested."""

    def __init__(self, loader: Any, stop: StopSignal):
        self.loader, self.dataset, self.stop = loader, loader.dataset, stop

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        for batch in self.loader:
            if self.stop.requested():
                raise Stopped
            yield batch


def ignore_signals_in_worker() -> None:
    """For data-loading workers: they get Ctrl-C and a batch system's SIGTERM too, and the parent still needs them.

    They end with the parent, or by the parent's own SIGTERM, where the system tells who sent it (Linux does).
    """
    for number in INTERRUPTS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        started_by = multiprocessing.parent_process()
        parent = started_by.pid if started_by else os.getppid()  # of a fork server's child, getppid is the server
        threading.Thread(target=_exit_on_sigterm_of, args=(parent,), daemon=True).start()


def _exit_on_sigterm_of(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
