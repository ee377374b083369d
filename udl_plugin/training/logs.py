"""Log file and TensorBoard curves: a disk that cannot be written does not end the training."""
from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from os import path as osp
from pathlib import Path
from typing import Any

import basicsr
import torch
import torchvision
from basicsr.train import init_tb_loggers
from basicsr.utils import get_root_logger, get_time_str
from basicsr.utils.options import dict2str

import udl_plugin

RETRY_AFTER = 60  # seconds until curves are tried again


@contextlib.contextmanager
def open_log(opt: dict[str, Any]) -> Iterator[logging.Logger]:
    """BasicSR's root logger, on rank 0 with the run's log file, which begins with the environment and the options."""
    logger = get_root_logger()
    handler = None
    if opt['rank'] == 0:
        name = f'{"train" if opt["is_train"] else "test"}_{opt["name"]}_{get_time_str()}.log'
        handler = _LogFile(osp.join(opt['path']['log'], name), 'w', encoding='utf-8')
        handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s: %(message)s'))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        logger.info(f'udl_plugin {udl_plugin.__version__}, BasicSR {basicsr.__version__}, PyTorch {torch.__version__}, '
                    f'torchvision {torchvision.__version__}')
        logger.info(dict2str(opt))
        folder = Path(basicsr.__file__).parent
        if folder.parent == Path.cwd():  # as of a checkout, which `python -m` and torchrun import first
            logger.warning(f"Using the basicsr of the current folder, '{folder}', not an installed one.")
        yield logger
    finally:
        if handler:
            logger.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()


class _LogFile(logging.FileHandler):
    """Reports once on stderr that it cannot be written, instead of a traceback for each line."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            print(f"'{self.baseFilename}' cannot be written: {sys.exc_info()[1]}. Training continues; the log file "
                  'misses lines.', file=sys.stderr)
        self.failed = True


@contextlib.contextmanager
def held_back() -> Iterator[list[logging.LogRecord]]:
    """In the block, BasicSR's logger keeps its lines in this list. For what is built before the log file is."""
    logger = get_root_logger()
    logger.setLevel(logging.INFO if logger.level == logging.NOTSET else logger.level)
    handlers, buffer = logger.handlers, MemoryHandler(capacity=0)  # without a target it keeps everything
    logger.handlers = [buffer]
    try:
        yield buffer.buffer
    finally:
        logger.handlers = handlers


class Curves:
    """BasicSR's TensorBoard (and wandb) writer, or none. PyTorch's own ends its thread at the first error, and every
    later call raises it: here a new writer takes its place, with a file of its own that TensorBoard joins to the first.

    Args:
        writer: A `SummaryWriter`; None: nothing is written.
    """

    def __init__(self, writer: Any):
        self.writer, self.retry_at = writer, 0.0  # 0: it works

    def __bool__(self) -> bool:
        return self.writer is not None

    def _call(self, method: str, *args: Any, **kwargs: Any) -> None:
        if not self or time.monotonic() < self.retry_at:
            return
        try:
            if self.retry_at:
                self.writer, self.retry_at = type(self.writer)(self.writer.log_dir), 0.0
            getattr(self.writer, method)(*args, **kwargs)
        except OSError as err:
            get_root_logger().error(f"'{self.writer.log_dir}' cannot be written: {err}. Training continues; the curves "
                                    'miss a part.')
            self.retry_at = time.monotonic() + RETRY_AFTER

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        self._call('add_scalar', *args, **kwargs)

    def add_image(self, *args: Any, **kwargs: Any) -> None:
        self._call('add_image', *args, **kwargs)

    def close(self) -> None:
        self._call('flush')  # raises what the writer's thread met
        self._call('close')


def open_curves(opt: dict[str, Any]) -> Curves:
    """What `logger: use_tb_logger` and `wandb` ask for, on rank 0."""
    return Curves(init_tb_loggers(opt))
