"""Checkpoints on disk: atomic, the latest ones and the best one kept; and schedules that follow the yml on resume."""
from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
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

StateDicts = dict[str, dict[str, Tensor]]  # `params`, `params_ema`


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
        self.network_is_saved = True  # the last time

    def save_network(self, label: str, iteration: int | str, state_dicts: StateDicts) -> None:
        """Writes LABEL_ITERATION.pth with the state dicts by key; see `save_checkpoint`."""
        path = osp.join(self.models, f'{label}_{iteration}.pth')
        self.network_is_saved = write_or_log(save_checkpoint, path, state_dicts, self.network_g, self.uncertainty_loss)

    def save_state(self, iteration: int, state: dict[str, Any]) -> bool:
        """Writes ITERATION.state, unless its network could not be written; returns whether it did."""
        if not self.network_is_saved:
            return False
        content = io.BytesIO()
        torch.save(state, content)
        return write_or_log(atomic_write, osp.join(self.states, f'{iteration}.state'), content.getvalue())

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


class ScheduleFromOptions:
    """Optimizer options and learning-rate schedule as the yml says, at some iteration.

    BasicSR resumes with those of the training state, whatever the yml says. BasicSR's own schedulers are replayed.

    Args:
        model: Freshly built, before its state is loaded.
        iteration: As if this many iterations were done.
    """

    def __init__(self, model: BaseModel, iteration: int):
        train_opt = model.opt['train']
        with warnings.catch_warnings():  # PyTorch warns that the optimizer makes no steps
            warnings.simplefilter('ignore', UserWarning)
            for number in range(1, min(iteration, int(train_opt['total_iter'])) + 1):
                model.update_learning_rate(number, train_opt.get('warmup_iter', -1))
        self.model, self.iteration = model, iteration
        self.groups = [{key: value for key, value in group.items() if key != 'params'} for group in self._groups()]
        self.schedules = [scheduler.state_dict() for scheduler in model.schedulers]

    def apply(self) -> None:
        """Puts them back after the state was loaded; logs what the state had instead."""
        changed = {}
        for group, options in zip(self._groups(), self.groups):
            wanted, found = to_builtins(options), to_builtins(group)
            changed.update({key: f'{key} {_short(value)} (the state has {_short(found.get(key))})'
                            for key, value in wanted.items() if key != 'initial_lr' and found.get(key) != value})
            group.update(options)
        for scheduler, schedule in zip(self.model.schedulers, self.schedules):
            scheduler.load_state_dict(schedule)
        if changed:
            get_root_logger().warning(f'Following the yml from iteration {self.iteration}: '
                                      f'{", ".join(changed.values())}.')

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.model.optimizers for group in optimizer.param_groups]


def _short(value: Any) -> Any:
    return f'{value:.4g}' if isinstance(value, float) else value
