import collections
import os
import signal
import sys
import threading
import time

import pytest

from udl_plugin.errors import UserError
from udl_plugin.utils.parallel import parallel_map

both = pytest.mark.parametrize('workers', [0, 2])


def slow_if_even(number):
    time.sleep(0.05 * (number % 2 == 0))
    return number


def raise_at_three(number):
    if number == 3:
        raise UserError('three')
    return number


def die(number):
    os._exit(1)


def die_while_sending(number):
    """As the system kills a process when memory runs out: at any time, even while it sends a large result."""
    threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGKILL]).start()
    return bytes(100 << 20)


def process_id(_):
    time.sleep(0.02)
    return os.getpid()


@both
def test_order(workers):
    with parallel_map(slow_if_even, range(20), workers) as results:
        assert list(results) == list(range(20))


def test_two_worker_processes():
    with parallel_map(process_id, range(60), 2) as results:
        assert len({os.getpid(), *results}) == 3


def test_consumes_at_most_two_items_per_worker_ahead():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    with parallel_map(slow_if_even, items(), 2) as results:
        for done, _ in zip(range(1, 11), results):
            assert len(taken) <= done + 4


@both
def test_exception_is_raised_by_the_iterator(workers):
    with parallel_map(raise_at_three, range(100), workers) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(UserError, match='three'):
            next(results)


@pytest.mark.parametrize('function', [die, die_while_sending])
def test_dead_worker_raises(function):
    with parallel_map(function, range(30), 2) as results, pytest.raises(UserError, match='--workers'):
        collections.deque(results, maxlen=0)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_processes_end_with_the_block():
    with parallel_map(process_id, range(1000), 2) as results:
        running = {next(results) for _ in range(20)}
    assert not any(os.path.exists(f'/proc/{number}') for number in running)
