"""Checkpoints under mmengine: written atomically, read safely, and found for a resume."""
from __future__ import annotations

import locale
from os import path as osp
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend

from udl_plugin.checkpoints.mmengine_format import is_mmengine_checkpoint
from udl_plugin.checkpoints.safe_load import load_tensors_only
from udl_plugin.errors import UserError
from udl_plugin.utils.atomic_io import atomic_write


class AtomicLocalBackend(LocalBackend):
    """Writes checkpoints atomically. mmengine writes in place, so that a kill truncates the previous checkpoint."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        atomic_write(filepath, obj)


def load_file(filename: str, map_location: Any = None) -> Any:
    """Replaces mmengine's checkpoint loaders; returns tensors on the CPU.

    The loader of onedl-mmengine unpickles any object, and `Runner.resume` of either executes the config that a
    checkpoint holds as text: it is dropped.

    Raises:
        UserError: not a local file, or it holds more than tensors and builtin types.
    """
    content = load_tensors_only(osp.expanduser(filename))
    if isinstance(content, dict) and isinstance(content.get('meta'), dict):
        content['meta'].pop('config', None)
    return content


def can_be_resumed(content: Any) -> bool:
    """Whether a checkpoint holds a training state of mmengine."""
    return is_mmengine_checkpoint(content) and content.keys() >= {'optimizer', 'message_hub'} and content[
        'meta'].keys() >= {'epoch', 'iter'}


def find_last_checkpoint(work_dir: str) -> str | None:
    """Finds the checkpoint that `last_checkpoint` names, also if the work dir was moved; None if there is none yet.

    It is complete, because it was written atomically. Removes unfinished files of a training that was killed.

    Raises:
        UserError: the checkpoint is gone.
    """
    last = Path(work_dir, 'last_checkpoint')
    if not last.is_file():
        return None
    for unfinished in last.parent.glob('.*.tmp'):
        unfinished.unlink(missing_ok=True)
    # mmengine writes it in the encoding of the system
    named = Path(last.read_text(encoding=locale.getpreferredencoding(False)).strip())
    for path in (last.parent / named.name, named):  # the second with CheckpointHook's out_dir
        if path.is_file():
            return str(path)
    raise UserError(f"--resume: '{last}' names '{named}', which does not exist. Name another one with --resume "
                    'CHECKPOINT, or move the folder away to start a new training.')
