"""What cannot be written of curves and log files ends no training."""
import errno
import logging

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from udl_plugin.training import lasting_logs
from udl_plugin.training.lasting_logs import LastingWriter, outlast

pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')


@pytest.fixture
def told(monkeypatch):
    """What is logged."""
    lines = []
    monkeypatch.setattr(logging.getLogger('basicsr'), 'error', lines.append)
    return lines


def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')


def test_curves_go_on_when_there_is_room_again(tmp_path, monkeypatch, told):
    writer, write = LastingWriter(SummaryWriter(tmp_path)), RecordWriter.write
    writer.add_scalar('loss', 1, 1)
    writer.writer.flush()
    monkeypatch.setattr(RecordWriter, 'write', full)
    thread = writer.writer.file_writer.event_writer._async_writer._worker
    writer.add_scalar('loss', 2, 2)
    thread.join(10)
    for iteration in (3, 4):
        writer.add_scalar('loss', iteration, iteration)
    assert writer.writer is None, 'there was one try'
    assert told == [f"'{tmp_path}' cannot be written: [Errno 28] No space left on device. Training goes on; the curves "
                    'miss a part.']
    monkeypatch.setattr(RecordWriter, 'write', write)
    writer.add_scalar('loss', 5, 5)
    assert writer.writer is None, 'not yet'
    monkeypatch.setattr(lasting_logs, 'PAUSE', 0)
    writer.add_scalar('loss', 6, 6)
    writer.close()
    curves = EventAccumulator(str(tmp_path))
    curves.Reload()
    assert [event.step for event in curves.Scalars('loss')] == [1, 6]


def test_end_on_a_full_disk(tmp_path, monkeypatch, told):
    writer = LastingWriter(SummaryWriter(tmp_path))
    monkeypatch.setattr(RecordWriter, 'write', full)
    writer.add_scalar('loss', 1, 1)
    writer.close()
    assert len(told) == 1


def test_log_file(tmp_path, capsys):
    logger, handler = logging.Logger('x'), logging.FileHandler(tmp_path / 'x.log')
    logger.addHandler(handler)
    outlast(logger)
    logger.info('one')
    handler.stream.close()
    for _ in range(3):
        logger.info('two')
    told = capsys.readouterr().err
    assert told.startswith(f"'{tmp_path}/x.log' cannot be written: ")
    assert told.count('\n') == 1
