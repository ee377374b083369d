import os
import signal
import subprocess
import sys
import time

import pytest

from udl_plugin.training import signals


@pytest.mark.parametrize('number', signals.SIGNALS)
def test_signal_is_raised(number):
    before = signal.getsignal(number)
    with pytest.raises(signals.Interrupted, match=number.name) as caught, signals.raised():
        os.kill(os.getpid(), number)
        time.sleep(5)
        pytest.fail('nothing was raised')
    assert caught.value.signal == number
    assert signal.getsignal(number) is before


@pytest.mark.skipif(not hasattr(signal, 'SIGHUP'), reason='this system has no SIGHUP')
def test_what_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.raised():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.pending() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signal_waits_for_the_end_of_what_is_held():
    done = []
    with pytest.raises(signals.Interrupted), signals.raised():
        with signals.held():
            with signals.held():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append('inner')
            assert signals.pending() == signal.SIGTERM
            done.append('outer')
        done.append('behind')
    assert done == ['inner', 'outer']
    assert signals.pending() is None


def test_second_ctrl_c_is_as_ever(monkeypatch):
    """But what comes at once is the first one, told twice."""
    with pytest.raises(KeyboardInterrupt), signals.raised(), signals.held():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(signals, 'AGAIN', 0)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail('nothing was raised')


class Leaving:
    """Python drops what is raised here, with a word on stderr."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


def test_what_python_drops_is_raised_again(monkeypatch):
    dropped = []
    monkeypatch.setattr(sys, 'unraisablehook', lambda one: dropped.append(one.exc_type))
    with pytest.raises(signals.Interrupted), signals.raised():
        leaving = Leaving()
        del leaving
        assert dropped == [signals.Interrupted]
        with signals.held():
            assert signals.pending() == signal.SIGTERM
        pytest.fail('nothing was raised')


def test_places_to_end_at():
    """Within the outermost block alone."""
    with pytest.raises(signals.Interrupted), signals.raised(), signals.held():
        signals.check()
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            signals.check()
        signals.check()
        pytest.fail('nothing was raised')


def test_saving_is_not_interrupted():
    with signals.raised():
        with pytest.raises(signals.Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        signals.settle()
        os.kill(os.getpid(), signal.SIGTERM)
        with signals.held():
            os.kill(os.getpid(), signal.SIGINT)


def test_next_block_begins_afresh():
    """Whatever ended the one before."""
    with pytest.raises(ZeroDivisionError), signals.raised():
        signals.hold()
        signals.pend(signal.SIGTERM)
        _ = 1 / 0
    with pytest.raises(signals.Interrupted), signals.raised():
        assert signals.pending() is None
        os.kill(os.getpid(), signal.SIGTERM)


CHILD = """
import os, signal, sys, time
from udl_plugin import interrupt
interrupt.let_the_parent_decide()
print('ready', flush=True)
time.sleep(30)
"""


@pytest.mark.skipif(not hasattr(signal, 'sigwaitinfo'), reason='this system does not tell whose a signal is')
def test_loading_process_obeys_its_parent_alone():
    with subprocess.Popen([sys.executable, '-c', CHILD], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == 'ready\n'
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGHUP)
        subprocess.run(['/bin/sh', '-c', f'kill -TERM {child.pid}'], check=True)  # of another process
        time.sleep(0.5)
        assert child.poll() is None
        child.terminate()
        assert child.wait(5) == 0
