"""Curves and log files that cannot be written do not end the training."""
import errno
import logging
import time

import basicsr
import pytest
from basicsr.utils import get_root_logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

import udl_plugin
from udl_plugin.training.logs import Curves, held_back, open_log

pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')


@pytest.fixture
def logged(monkeypatch):
    """What is logged."""
    lines = []
    monkeypatch.setattr(logging.getLogger('basicsr'), 'error', lines.append)
    return lines


def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')


def test_curves_continue_when_there_is_space_again(tmp_path, monkeypatch, logged):
    writer, write = Curves(SummaryWriter(tmp_path)), RecordWriter.write
    writer.add_scalar('loss', 1, 1)
    writer.writer.flush()
    monkeypatch.setattr(RecordWriter, 'write', full)
    thread = writer.writer.file_writer.event_writer._async_writer._worker
    writer.add_scalar('loss', 2, 2)
    thread.join(10)
    for iteration in (3, 4):
        writer.add_scalar('loss', iteration, iteration)
    assert logged == [f"'{tmp_path}' cannot be written: [Errno 28] No space left on device. Training continues; the "
                      'curves miss a part.']
    monkeypatch.setattr(RecordWriter, 'write', write)
    writer.add_scalar('loss', 5, 5)
    writer.retry_at = time.monotonic()
    writer.add_scalar('loss', 6, 6)
    writer.close()
    curves = EventAccumulator(str(tmp_path))
    curves.Reload()
    assert [event.step for event in curves.Scalars('loss')] == [1, 6]


def test_end_on_a_full_disk(tmp_path, monkeypatch, logged):
    writer = Curves(SummaryWriter(tmp_path))
    monkeypatch.setattr(RecordWriter, 'write', full)
    writer.add_scalar('loss', 1, 1)
    writer.close()
    assert len(logged) == 1


def test_no_curves():
    writer = Curves(None)
    writer.add_scalar('loss', 1, 1)
    writer.close()
    assert not writer


@pytest.fixture
def opt(tmp_path):
    return {'name': 'x', 'is_train': True, 'rank': 0, 'path': {'log': str(tmp_path)}}


@pytest.mark.parametrize('is_foreign', [True, False])
def test_basicsr_of_the_current_folder(tmp_path, opt, monkeypatch, is_foreign):
    folder = tmp_path / 'basicsr'
    if is_foreign:
        monkeypatch.setattr(basicsr, '__file__', str(folder / '__init__.py'))
    monkeypatch.chdir(tmp_path)
    with open_log(opt):
        pass
    path, = tmp_path.glob('train_x_*.log')
    assert (f"Using the basicsr of the current folder, '{folder}', not an installed" in path.read_text()) == is_foreign


def test_log_file(tmp_path, opt, capsys, monkeypatch):
    with open_log(opt) as logger:
        logger.info('one')
        handler = logger.handlers[-1]
        with monkeypatch.context() as patch:
            patch.setattr(handler, 'flush', full)
            for _ in range(3):
                logger.info('two')
    assert handler not in logger.handlers
    path, = tmp_path.glob('train_x_*.log')
    text = path.read_text()
    assert f'udl_plugin {udl_plugin.__version__}, BasicSR ' in text and 'name: x' in text and 'INFO: one\n' in text
    reported = [line for line in capsys.readouterr().err.splitlines() if 'cannot be written' in line]
    assert len(reported) == 1
    assert reported[0].startswith(f"'{path}' cannot be written: ")


def test_lines_held_back_are_logged_later(tmp_path, opt):
    get_root_logger().setLevel(logging.INFO)  # udl-compare, run by another test, has it at WARNING
    with held_back() as records:
        get_root_logger().info('built')
    with open_log(opt) as logger:
        logger.info('first')
        for record in records:
            logger.handle(record)
    path, = tmp_path.glob('*.log')
    assert [line.split(': ')[1] for line in path.read_text().splitlines()[-2:]] == ['first', 'built']
