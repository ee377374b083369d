"""Files of a training under mmengine: written whole, read safely, and the one to go on from."""
import re
from os import path as osp
from pathlib import Path

from mmengine.fileio import LocalBackend

from udl_plugin.checkpoints.mmengine_format import is_mmengine_checkpoint
from udl_plugin.checkpoints.safe_load import load_tensors_only
from udl_plugin.errors import UserError
from udl_plugin.utils.atomic_io import atomic_write


class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files, which writes in place: a kill would leave torn what was whole before."""

    def put(self, obj, filepath):
        atomic_write(filepath, obj)

    def put_text(self, obj, filepath, encoding='utf-8'):
        atomic_write(filepath, obj.encode(encoding))


def load_file(filename, map_location=None):
    """In place of mmengine's loader of files. That of the fork executes a checkpoint that holds more than tensors, and
    a resume, of either, executes the config that a checkpoint holds as text.
    """
    content = load_tensors_only(osp.expanduser(filename))
    if isinstance(content, dict) and isinstance(content.get('meta'), dict):
        content['meta'].pop('config', None)
    return content


def can_be_resumed(content):
    """Whether a checkpoint holds the state of a training under mmengine."""
    return is_mmengine_checkpoint(content) and content.keys() >= {'optimizer', 'message_hub'} and content[
        'meta'].keys() >= {'epoch', 'iter'}


def find_resume_checkpoint(cfg):
    """The newest checkpoint of a work dir that a training can go on from. mmengine takes the one in `last_checkpoint`,
    which may be torn, or lie where the folder was before it was copied.

    Args:
        cfg (Config): `work_dir`, and `default_hooks.checkpoint`, which says what checkpoints are called.

    Returns:
        tuple[str | None, list[str]]: The checkpoint; None where there is none yet. Why newer ones are passed over.

    Raises:
        UserError: there are checkpoints, or were, and none of them will do.
    """
    folder, hook = _where(cfg)
    named = hook.get('filename_tmpl') or ('epoch_{}.pth' if hook.get('by_epoch', True) else 'iter_{}.pth')
    pattern = re.compile(re.escape(named).replace(r'\{\}', r'(\d+)'))
    found = {int(match[1]): path for path in folder.glob('*') for match in [pattern.fullmatch(path.name)] if match}
    said = Path(cfg.work_dir, 'last_checkpoint')
    last = said.read_text().strip() if said.is_file() else None
    passed_over = []
    for _, path in sorted(found.items(), reverse=True):
        problem = _problem_of(path, last)
        if not problem:
            return str(path), passed_over
        passed_over.append(problem)
    if passed_over or last:
        raise UserError(f"--resume: '{folder}' has no checkpoint {named.format('N')} to go on from ("
                         f"""{' '.join(passed_over) or f"last_checkpoint says '{last}'"}). Name one with --resume """
                         'CHECKPOINT, or move the folder away to begin anew.')
    return None, []


def remove_unfinished(cfg):
    """What `atomic_write` was writing in a training that was killed."""
    for path in _where(cfg)[0].glob('.*.tmp'):
        path.unlink(missing_ok=True)


def _where(cfg):
    """The folder of checkpoints, as `CheckpointHook` has it, and that hook's section."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    return Path(hook['out_dir'], Path(cfg.work_dir).name) if hook.get('out_dir') else Path(cfg.work_dir), hook


def _problem_of(path, last):
    if path.is_dir():  # of engines such as DeepSpeed, who read it themselves
        return '' if path.name == osp.basename(last or '') else f"'{path}' is not what last_checkpoint names."
    try:
        content = load_tensors_only(path)
    except UserError as err:
        return str(err)
    return '' if can_be_resumed(content) else f"'{path}' holds no state of a training."
