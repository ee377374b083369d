"""Which training state a training resumes from: the newest complete one, or the one that was named."""
from __future__ import annotations

import re
from os import path as osp
from pathlib import Path
from typing import Any

from basicsr.utils import check_resume

from udl_plugin.checkpoints.safe_load import load_checkpoint
from udl_plugin.checkpoints.state_dict import fingerprint, read_state_dict
from udl_plugin.config.cross_checks import is_resumed
from udl_plugin.config.problems import errors_at
from udl_plugin.errors import UserError
from udl_plugin.utils.paths import relative_path

BASICSR_KEYS = {'epoch', 'iter', 'optimizers', 'schedulers'}


def find_resume_state(opt: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """The training state that `--auto_resume` or `path: resume_state` selects, and messages for the log.

    Like `load_resume_state` in `basicsr/train.py`, but read on the CPU (the optimizer moves it to the parameters'
    device). `--auto_resume` takes the newest state that is complete and has its network, and prefers one from before
    iterations were skipped as not finite; if there is none yet, `path: resume_state` counts. No file is deleted. Sets
    `opt['path']` as BasicSR does: the network is loaded from the checkpoint of that iteration.

    Returns:
        The state, or None for a new training; one line for each state that was skipped.

    Raises:
        UserError: the named state is missing, unreadable or of another run; or there are states, and none of them is
            usable.
    """
    state: dict[str, Any] | None = None
    messages: list[str] = []
    if opt['auto_resume']:
        path, state, messages = _newest_complete(Path(opt['path']['training_states']), Path(opt['path']['models']))
        opt['path']['resume_state'] = path or opt['path'].get('resume_state')
    is_named = state is None and opt['path'].get('resume_state')
    if is_named:
        with errors_at('path', 'resume_state'):
            state = read_state(opt['path']['resume_state'])
    if state is not None:
        check_resume(opt, state['iter'])
        if is_named and is_resumed(opt):
            with errors_at('path', 'resume_state'):
                _check_network_of_run(state, opt['path']['resume_state'], opt['path']['pretrain_network_g'])
        if opt['path'].get('param_key_g', 'params') is None:  # of the file that the training started from
            opt['path']['param_key_g'] = 'params'
    elif opt['auto_resume']:
        messages.append('--auto_resume: no training state yet; starting a new training.')
    return state, messages


def _newest_complete(states: Path, models: Path) -> tuple[str | None, dict[str, Any] | None, list[str]]:
    found = {int(path.stem): path for path in states.glob('*.state') if re.fullmatch(r'\d+', path.stem)}
    messages: list[str] = []
    doubtful = None  # its last iterations were skipped
    for iteration in sorted(found, reverse=True):
        path = found[iteration]
        try:
            state = read_state(path)
            if state['iter'] != iteration:
                raise UserError(f"'{path}' is the state of iteration {state['iter']}.")
            network = models / f'net_g_{iteration}.pth'
            _check_network(state, network)
            if not state.get('skips_in_row'):
                return str(path), state, messages
            doubtful = doubtful or (str(path), state, [*messages])
            raise UserError('the iterations before it were skipped as not finite, possibly because of its weights. To '
                            'resume from it, name it as path: resume_state.')
        except UserError as err:
            messages.append(f"--auto_resume skips '{path}': {err}")
    if doubtful:
        return doubtful
    if messages:
        raise UserError('; '.join(messages) + f' No usable state is left in {states}. Without --auto_resume a new '
                        'training starts, and this one is kept under another name.')
    return None, None, []


def _check_network(state: dict[str, Any], network: str | Path) -> None:
    """Raises a `UserError` if the network's file is missing, unreadable, or not of the state's iteration."""
    state_dict, _ = read_state_dict(network, 'params')
    if state.get('network', '') not in ('', fingerprint(state_dict)):
        raise UserError(f"'{network}' was written by another training than this state.")


def _check_network_of_run(state: dict[str, Any], path: str, network: str) -> None:
    try:
        _check_network(state, network)
    except UserError as err:
        raise UserError(f"{err} A resume reads the network of this run. To continue the run that wrote '{path}', write "
                        f"its name; to start from its weights, set pretrain_network_g to its {osp.basename(network)} "
                        'and resume_state: ~.') from err


def read_state(path: str | Path) -> dict[str, Any]:
    """A training state: builtin types, and tensors on the CPU.

    Raises:
        UserError: the file is missing, truncated, or not a training state.
    """
    state = load_checkpoint(path)
    if not isinstance(state, dict) or not state.keys() >= BASICSR_KEYS or not all(
            type(state[key]) is int and 0 <= state[key] < 10 ** 15 for key in ('iter', 'epoch')):
        raise UserError(f"'{relative_path(path)}' is not a training state; those are in training_states/.")
    return state
