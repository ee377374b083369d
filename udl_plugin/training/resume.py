"""One run of upstream's pipelines: functions that they call by name, replaced by ours while they run.

Upstream's loop stays upstream's. What it lacks hangs on the names that it looks up in its own module: where a training
resumes, and in the very place; data that tells what is bad in it; logs that a full disk does not end; and what was
under way when it was interrupted.
"""
import re
from os import path as osp
from pathlib import Path

from udl_plugin.checkpoints.safe_load import load_checkpoint
from udl_plugin.checkpoints.state_dict import fingerprint, read_state_dict
from udl_plugin.errors import UserError
from udl_plugin.training import rng_state

IN_STATE = {'epoch', 'iter', 'optimizers', 'schedulers'}  # upstream's own
IN_PLACE = {'epoch', 'seen', 'images', 'batch_size', 'begun', 'loaders'}  # see udl_plugin/training/resumable_loader.py


def load_resume_state(opt):
    """The training state that `--auto_resume` or `path: resume_state` asks for, or None, and lines on what was passed
    over.

    As `basicsr/train.py` has it, but read on the CPU, for the optimizer moves its state to the parameters' device; and
    `--auto_resume` takes the newest state that is whole and has a whole network, if it can be one of before iterations
    were skipped; before there is one, that of `path: resume_state`. Nothing is deleted.

    Raises:
        UserError: the file is missing or not one of tensors; there are states, and none is whole.
    """
    from basicsr.utils import check_resume
    state, passed_over = None, []
    if opt['auto_resume']:
        path, state, passed_over = _newest_whole(Path(opt['path']['training_states']), Path(opt['path']['models']))
        opt['path']['resume_state'] = path or opt['path'].get('resume_state')
    if state is None and opt['path'].get('resume_state'):
        try:
            state = read_state(opt['path']['resume_state'])
        except UserError as err:
            raise UserError(f'path: resume_state: {err}') from err.__cause__
    if state is not None:
        check_resume(opt, state['iter'])
        if opt['path'].get('param_key_g', 'params') is None:  # of the file that the training began with
            opt['path']['param_key_g'] = 'params'
    return state, passed_over


def _newest_whole(states, models):
    found = {int(path.stem): path for path in states.glob('*.state') if re.fullmatch(r'\d+', path.stem)}
    passed_over, in_doubt = [], None
    for iteration in sorted(found, reverse=True):
        path = found[iteration]
        try:
            state = read_state(path)
            if state['iter'] != iteration:
                raise UserError(f"'{path}' is the state of iteration {state['iter']}.")
            network = models / f'net_g_{iteration}.pth'
            state_dict, _ = read_state_dict(network)
            if state.get('network', '') not in ('', fingerprint(state_dict)):
                raise UserError(f"'{network}' is of another run than it.")
            if not state.get('skips_in_row'):
                return str(path), state, passed_over
            in_doubt = in_doubt or (str(path), state, [*passed_over])
            raise UserError('its last iterations were skipped, and its weights may be why (path: resume_state takes '
                             'it all the same).')
        except UserError as err:
            passed_over.append(f"--auto_resume passes over '{path}': {err}")
    if in_doubt:
        return in_doubt
    if passed_over:
        raise UserError('; '.join(passed_over) + f' None is left in {states}. Without --auto_resume a new training '
                         'begins, and this one is kept under another name.')
    return None, None, []


def read_state(path):
    """A training state, as plain data and tensors on the CPU.

    Raises:
        UserError: the file is missing, torn, or no training state.
    """
    state = load_checkpoint(path)
    if not isinstance(state, dict) or not state.keys() >= IN_STATE or not all(
            type(state[key]) is int and 0 <= state[key] < 10 ** 15 for key in ('iter', 'epoch')):
        raise UserError(f"'{osp.relpath(path)}' is not a training state; those are in training_states/.")
    try:
        _refuse_spoilt(state)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as err:
        raise UserError(f"'{osp.relpath(path)}' is not a training state of this version: "
                         f'{type(err).__name__}: {" ".join(str(err).split())}.') from err
    return state


def _refuse_spoilt(state):
    """Stumbles over what udl-train adds to a state, where that is not what it adds."""
    for place, random in zip(state.get('places', ()), state.get('random', ())):
        numbers = [place[name] for name in ('epoch', 'seen', 'images', 'batch_size')]
        if place.keys() != IN_PLACE or not place['loaders'] or not place['batch_size'] or not all(
                type(number) is int and number >= 0 for number in numbers):
            raise ValueError('places')
        for states in (random, place['begun'], *(states for states in place['loaders'] if states is not None)):
            rng_state.refuse_wrong(states)
    if len(state.get('places', ())) != len(state.get('random', ())) or ('places' in state and 'validated' not in state):
        raise ValueError('random')
    for records in state.get('best_metric_results', {}).values():
        for best in records.values():
            float(best['val']), int(best['iter']), {'higher': 1, 'lower': 1}[best['better']]
    if not all(type(state.get(key, 0)) is int for key in ('skips', 'skips_in_row')):
        raise ValueError('skips')
