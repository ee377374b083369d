"""Checkpoints on disk: atomic, the latest ones and the best one kept; and schedules that follow the yml on resume."""
from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from os import path as osp
from pathlib import Path
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from torch import Tensor

from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.utils.atomic_io import atomic_write
from udl_plugin.utils.plain import to_builtins

# options of an optimizer that change no result
NO_CHANGE = ('initial_lr', 'foreach', 'fused', 'capturable', 'differentiable')


class CheckpointManager:
    """Writes networks and training states of one experiment. A full disk is logged and does not end the training.

    Args:
        models, states: The experiment's folders.
        network_g: Config of the network, recorded in each checkpoint.
        uncertainty_loss: Loss that trained the variance head, recorded too; None: there is no head, or it is unknown.
        keep_latest: How many networks and states to keep; None: all.
    """

    def __init__(self, models: str, states: str, network_g: dict[str, Any], uncertainty_loss: str | None = None,
                 keep_latest: int | None = None):
        self.models, self.states, self.keep_latest = models, states, keep_latest
        self.network_g, self.uncertainty_loss = network_g, uncertainty_loss

    def save_network(self, label: str, iteration: int | str, state_dicts: dict[str, dict[str, Tensor]]) -> bool:
        """Writes LABEL_ITERATION.pth with the state dicts by key; see `save_checkpoint`. Returns whether it did."""
        path = osp.join(self.models, f'{label}_{iteration}.pth')
        return write_or_log(save_checkpoint, path, state_dicts, self.network_g, self.uncertainty_loss)

    def save_state(self, state: dict[str, Any]) -> bool:
        """Writes ITERATION.state; returns whether it did."""
        return write_or_log(atomic_torch_save, osp.join(self.states, f'{state["iter"]}.state'), state)

    def has(self, iteration: int) -> bool:
        """Whether network and state of this iteration are in this experiment."""
        return osp.exists(osp.join(self.states, f'{iteration}.state')) and osp.exists(
            osp.join(self.models, f'net_g_{iteration}.pth'))

    def remove_old(self, iteration: int) -> None:
        """Keeps the latest `keep_latest` pairs of network and state up to this iteration, removes older ones."""
        if not self.keep_latest:
            return
        states, networks = ({int(match[1]): path for path in Path(folder).iterdir()
                             if (match := re.fullmatch(pattern, path.name)) and int(match[1]) <= iteration}
                            for folder, pattern in ((self.states, r'(\d+)\.state'), (self.models, r'net_g_(\d+)\.pth')))
        kept = sorted(states.keys() & networks.keys())[-self.keep_latest:]
        for paths in (states, networks):  # a state goes before its network
            for old in sorted(paths.keys() - kept):
                write_or_log(lambda path: path.unlink(missing_ok=True), paths[old])


def write_or_log(write: Callable, path: str | Path, *content: Any) -> bool:
    """Calls `write(path, *content)`. Returns False, and logs why, if the system does not let it."""
    try:
        write(path, *content)
    except OSError as err:
        get_root_logger().error(f"'{path}' cannot be written: {err}. Training continues.")
        return False
    return True


def atomic_torch_save(path: str | Path, content: Any) -> None:
    """Like `torch.save`, but atomic."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    atomic_write(path, buffer.getvalue())


@contextlib.contextmanager
def schedule_of_options(model: BaseModel, iteration: int) -> Iterator[None]:
    """Keeps optimizer options and learning-rate schedule as the yml says while the block loads a training state.

    BasicSR resumes with those of the state, whatever the yml says. What the state has instead is logged.

    Args:
        model: Freshly built. BasicSR's own schedulers are replayed.
        iteration: As if this many iterations were done.
    """
    train_opt = model.opt['train']
    with warnings.catch_warnings():  # PyTorch warns that the optimizer makes no steps
        warnings.simplefilter('ignore', UserWarning)
        for number in range(1, min(iteration, int(train_opt['total_iter'])) + 1):
            model.update_learning_rate(number, train_opt.get('warmup_iter', -1))
    groups = [{key: value for key, value in group.items() if key != 'params'} for group in _param_groups(model)]
    schedules = [scheduler.state_dict() for scheduler in model.schedulers]
    yield
    changed = {}
    for group, options in zip(_param_groups(model), groups):
        for key, value in to_builtins(options).items():
            found = to_builtins(group.get(key))
            if found != value and key not in NO_CHANGE:
                changed[key] = f'{key} {_short(value)} (the state has {_short(found)})'
        group.update(options)
    for scheduler, schedule in zip(model.schedulers, schedules):
        scheduler.load_state_dict(schedule)
    if changed:
        get_root_logger().warning(f'Following the yml from iteration {iteration}: {", ".join(changed.values())}.')


def fit_state_to_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Brings a loaded state to where and as the optimizer would have made it: for PyTorch, the device of `step` is that
    of the optimizer that was saved, and the memory format of the averages too."""
    for group in optimizer.param_groups:
        for parameter in group['params']:
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if key == 'step' and torch.is_tensor(value):
                    on_device = group.get('fused') or group.get('capturable')
                    state[key] = value.to(parameter.device if on_device else 'cpu', torch.float32)
                elif torch.is_tensor(value) and value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def _param_groups(model: BaseModel) -> list[dict[str, Any]]:
    return [group for optimizer in model.optimizers for group in optimizer.param_groups]


def _short(value: Any) -> Any:
    return f'{value:.4g}' if isinstance(value, float) else value
