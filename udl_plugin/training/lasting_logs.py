"""Curves and log files that end no training: where they cannot be written, it goes on without them until they can."""
import functools
import logging
import sys
import time

from basicsr.utils import get_root_logger

PAUSE = 60  # seconds between two tries


class LastingWriter:
    """TensorBoard's SummaryWriter as upstream uses it. The original's thread ends with its first error, and every call
    from then on raises it: here, a new writer takes its place, with a file of its own, which TensorBoard shows as one.

    Args:
        writer (SummaryWriter): What upstream made.
    """

    def __init__(self, writer):
        self.writer, self.kind, self.folder, self.failed = writer, type(writer), writer.log_dir, None

    def _write(self, kind, *args, **kwargs):
        if self.writer is None and time.monotonic() < self.failed + PAUSE:
            return
        try:
            if self.writer is None:
                self.writer = self.kind(self.folder)
            getattr(self.writer, kind)(*args, **kwargs)
        except OSError as err:
            self._give_up(err)

    add_scalar = functools.partialmethod(_write, 'add_scalar')
    add_image = functools.partialmethod(_write, 'add_image')

    def close(self):
        if self.writer is not None:
            try:
                self.writer.flush()  # which raises what its thread met, and does not wait for it
                self.writer.close()
            except OSError as err:
                self._give_up(err)

    def _give_up(self, err):
        get_root_logger().error(f"'{self.folder}' cannot be written: {err}. Training goes on; the curves miss a part.")
        self.writer, self.failed = None, time.monotonic()


def outlast(logger):
    """Has a log file that cannot be written be told of once, in place of a traceback for each line."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = _Told(handler.baseFilename)


class _Told:
    def __init__(self, path):
        self.path, self.told = path, False

    def __call__(self, record):
        if not self.told:
            print(f"'{self.path}' cannot be written: {sys.exc_info()[1]}. Training goes on; the file misses a part.",
                  file=sys.stderr)
        self.told = True
