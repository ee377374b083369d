import os
import signal
import subprocess
import sys
import time

import pytest

from udl_plugin.training import signals
from udl_plugin.training.signals import StopSignal
from udl_plugin.utils.parallel import INTERRUPTS


@pytest.mark.parametrize('number', INTERRUPTS)
def test_signal_is_recorded(number):
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:  # SIGHUP in tests that run under nohup
        pytest.skip(f'{number.name} is ignored here')
    with StopSignal() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested()
    assert stop.number == number
    assert signal.getsignal(number) is before


@pytest.mark.skipif(not hasattr(signal, 'SIGHUP'), reason='this system has no SIGHUP')
def test_ignored_sighup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ignored_sigint_is_overridden():
    """Shells start background jobs so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested()
    finally:
        signal.signal(signal.SIGINT, before)


def test_second_signal_acts_as_usual(monkeypatch):
    """But one that comes at once repeats the first."""
    with pytest.raises(KeyboardInterrupt), StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        monkeypatch.setattr(signals, 'REPEAT_WITHIN', 0)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail('nothing was raised')


WORKER = """
import time
from udl_plugin.training.signals import ignore_signals_in_worker
ignore_signals_in_worker()
print('ready', flush=True)
time.sleep(30)
"""


@pytest.mark.skipif(not hasattr(signal, 'sigwaitinfo'), reason='this system does not tell who sent a signal')
def test_worker_obeys_its_parent_only():
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}  # one thread, as in a forked worker: others take SIGTERM too
    with subprocess.Popen([sys.executable, '-c', WORKER], stdout=subprocess.PIPE, text=True, env=environment) as worker:
        assert worker.stdout.readline() == 'ready\n'
        worker.send_signal(signal.SIGINT)
        worker.send_signal(signal.SIGHUP)
        subprocess.run(['/bin/sh', '-c', f'kill -TERM {worker.pid}'], check=True)  # sent by another process
        time.sleep(0.5)
        assert worker.poll() is None
        worker.terminate()
        assert worker.wait(5) == 0
