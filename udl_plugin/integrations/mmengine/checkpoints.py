"""Checkpoints under mmengine: written atomically, read safely, and found for a resume."""
from __future__ import annotations

import re
from os import path as osp
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend

from udl_plugin.checkpoints.mmengine_format import is_mmengine_checkpoint
from udl_plugin.checkpoints.safe_load import load_tensors_only
from udl_plugin.errors import UserError
from udl_plugin.utils.atomic_io import atomic_write


class AtomicLocalBackend(LocalBackend):
    """Writes local files atomically. mmengine writes in place, so that a kill truncates the previous checkpoint."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        atomic_write(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        atomic_write(filepath, obj.encode(encoding))


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


def find_resume_checkpoint(cfg: Any) -> tuple[str | None, list[str]]:
    """Finds the newest complete checkpoint of a work dir, and removes files of a killed training's atomic writes.

    mmengine itself takes the one that `last_checkpoint` names, which may be truncated, or not exist because the folder
    was moved.

    Args:
        cfg: Config with `work_dir` and `default_hooks.checkpoint`.

    Returns:
        The checkpoint, or None if there is none yet; and why newer ones are skipped.

    Raises:
        UserError: there are checkpoints, or `last_checkpoint` names one, but none of them can be resumed.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    folder = Path(cfg.work_dir)
    named = folder / 'last_checkpoint'
    last = osp.basename(named.read_text().strip()) if named.is_file() else ''
    if hook.get('out_dir'):  # as CheckpointHook joins them
        folder = Path(hook['out_dir'], folder.name)
    for unfinished in folder.glob('.*.tmp'):
        unfinished.unlink(missing_ok=True)
    template = hook.get('filename_tmpl') or ('epoch_{}.pth' if hook.get('by_epoch', True) else 'iter_{}.pth')
    pattern = re.compile(re.escape(template).replace(r'\{\}', r'(\d+)'))
    found = {int(match[1]): path for path in folder.glob('*') if (match := pattern.fullmatch(path.name))}
    skipped: list[str] = []
    for _, path in sorted(found.items(), reverse=True):
        reason = _why_not_resumable(path, last)
        if not reason:
            return str(path), skipped
        skipped.append(reason)
    if skipped or last:
        reasons = ' '.join(skipped) or f"last_checkpoint names '{last}'"
        raise UserError(f"--resume: '{folder}' has no {template.format('N')} that can be resumed ({reasons}). "
                        'Name one with --resume CHECKPOINT, or move the folder away to start a new training.')
    return None, []


def _why_not_resumable(path: Path, last: str) -> str:
    if path.is_dir():  # of an engine such as DeepSpeed, which reads it itself
        return '' if path.name == last else f"'{path}' is not the one that last_checkpoint names."
    try:
        return '' if can_be_resumed(load_tensors_only(path)) else f"'{path}' holds no training state."
    except UserError as err:
        return str(err)
