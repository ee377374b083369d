"""Hooks: checkpoints of BasicSR and mmengine, and pictures of the uncertainty."""
from __future__ import annotations

from os import path as osp
from typing import Any

import cv2
import torch
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop

from udl_plugin.archs.build import build_network
from udl_plugin.checkpoints.mmengine_format import from_mmengine, is_mmengine_checkpoint
from udl_plugin.checkpoints.state_dict import describe_mismatch, match_state_dict
from udl_plugin.errors import UserError, truncate_repr
from udl_plugin.inference.visualize import uncertainty_picture
from udl_plugin.integrations.mmengine.checkpoints import can_be_resumed
from udl_plugin.integrations.mmengine.config_checks import check_training
from udl_plugin.integrations.mmengine.model import get_model
from udl_plugin.utils.plain import to_builtins

# what a scheduler's state says of the past; all else in it is its options
PROGRESS = ('last_step', '_global_step', '_last_value', 'base_values', 'best', 'num_bad_epochs', 'cooldown_counter')


@HOOKS.register_module()
class NetworkCheckpointHook(Hook):
    """Checkpoints of BasicSR (`net_g_latest.pth`), mmengine and step 1 as `load_from` and for a test; safe resume.

    - Checkpoints that do not fit raise an error, where mmengine would load nothing and train on; so does a training
      that makes no sense, such as step 2 without step 1.
    - A resumed training follows the schedule of the config, and keeps other trainings' best checkpoints.
    - Each checkpoint records its network, the loss that its variance head was trained with, and the number of finished
      iterations: with `save_best`, `FlexibleRunner` counts one too many and would skip it after a resume.

    Args:
        param_key: `params`, the trained weights, or `params_ema`, their moving average. Default: `params`, but in a
            test of a mmengine checkpoint the average, if there is one, because its validation used it.
    """

    priority = 'VERY_HIGH'  # before EMAHook, which copies the weights that it finds

    def __init__(self, param_key: str | None = None):
        self.param_key = param_key
        self.loaded = False
        self.done: int | None = None
        self.uncertainty_loss: str | None = None

    def before_train(self, runner: Any) -> None:
        """
        Raises:
            UserError: see `check_training`.
        """
        resumed = runner._resume and runner.iter  # by an engine that reads its own checkpoints
        check_training(runner, bool(self.loaded or resumed or get_model(runner.model).has_pretrained))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.done = runner.iter + 1

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """
        Raises:
            UserError: the checkpoint does not fit the generator, or cannot be resumed.
        """
        self.loaded = True
        self.uncertainty_loss = checkpoint.get('uncertainty_loss')  # of step 1, which a step 2 keeps
        with torch.random.fork_rng(devices=[]):
            net = build_network(get_model(runner.model).network_g)  # the runner's own may be sharded
        if runner._resume:
            check_resumable(runner, net, checkpoint)
            keep_foreign_best(runner, checkpoint)
            apply_config_schedule(runner, checkpoint)
            return
        is_test, is_mmengine = not isinstance(runner._train_loop, BaseLoop), is_mmengine_checkpoint(checkpoint)
        key = self.param_key or ('params_ema' if is_test and is_mmengine else 'params')
        content = from_mmengine(checkpoint) if is_mmengine else checkpoint
        state_dict, found_key, _ = match_state_dict(net, content, runner._load_from, key, option='generator')
        runner.logger.info(f'NetworkCheckpointHook: {found_key} of {runner._load_from}')
        checkpoint.pop('ema_state_dict', None)
        checkpoint['state_dict'] = {f'generator.{name}': value for name, value in state_dict.items()}

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        model = get_model(runner.model)
        checkpoint['network_g'] = to_builtins(model.network_g)
        uncertainty_loss = type(model.pixel_loss).__name__ if getattr(
            model.pixel_loss, 'trains_log_var', None) else self.uncertainty_loss
        if uncertainty_loss is not None:
            checkpoint['uncertainty_loss'] = uncertainty_loss
        if self.done is not None:
            checkpoint['meta']['iter'] = self.done


def check_resumable(runner: Any, net: torch.nn.Module, checkpoint: dict[str, Any]) -> None:
    """
    Raises:
        UserError: not a training state, one of another network, or one with a moving average but without EMAHook.
    """
    path = runner._load_from or runner.work_dir
    if not can_be_resumed(checkpoint):
        raise UserError(f"'{path}' holds no training state of mmengine that can be resumed (best checkpoints and "
                        "BasicSR's networks have none). Set it as load_from to start from its weights.")
    mismatch = describe_mismatch(net, from_mmengine(checkpoint)['params'])
    if mismatch:
        raise UserError(f"'{path}' is of another network than generator and cannot be resumed: {type(net).__name__}: "
                        f'{mismatch}.')
    if 'ema_state_dict' in checkpoint and not any(isinstance(hook, EMAHook) for hook in runner.hooks):
        raise UserError(f"'{path}' is of a training with a moving average. Resume it with EMAHook in custom_hooks.")


def keep_foreign_best(runner: Any, checkpoint: dict[str, Any]) -> None:
    """Keeps CheckpointHook from deleting another run's best checkpoint: drops `best_ckpt` entries outside the work dir.

    The entry of a work dir that was moved follows it. The score of a checkpoint that is gone is dropped.
    """
    info, resumed_keys = (checkpoint['message_hub'].get(name, {}) for name in ('runtime_info', 'resumed_keys'))
    for key in [key for key in info if key.startswith('best_ckpt')]:
        path = info.pop(key)
        here = osp.join(runner.work_dir, osp.basename(path))
        if not osp.exists(path) and not osp.exists(here):
            info.pop(key.replace('ckpt', 'score', 1), None)  # killed before a better one was written
        elif osp.basename(path).startswith('best_') and (not osp.exists(path) or osp.realpath(path) == osp.realpath(
                here)):
            info[key] = here
    for key in resumed_keys.keys() - info.keys():
        del resumed_keys[key]


def apply_config_schedule(runner: Any, checkpoint: dict[str, Any]) -> None:
    """Gives the resumed schedulers the options of the config, as `max_iters` is the config's.

    mmengine restores all of a checkpoint's schedule, and keeps the learning rate constant from where that ends.
    """
    if not isinstance(runner.param_schedulers, list):
        return
    for number, (scheduler, state) in enumerate(zip(runner.param_schedulers, checkpoint.get('param_schedulers', ()))):
        options = {key: value for key, value in scheduler.state_dict().items() if key not in PROGRESS}
        changed = [f'{key}: {_format(value)} (in the checkpoint: {_format(state.get(key))})'
                   for key, value in options.items() if value != state.get(key)]
        if changed:
            runner.logger.warning(f"param_scheduler.{number}: continues with the config's {', '.join(changed)}")
        state.update(options)


def _format(value: Any) -> str:
    return truncate_repr(list(value) if isinstance(value, dict) else value)  # milestones, which mmengine counts


@HOOKS.register_module()
class UncertaintyVisualizationHook(Hook):
    """Passes a picture of each validated or tested image's uncertainty map to mmengine's `Visualizer`.

    The picture is the luma of the map in OpenCV's JET (`udl_plugin/inference/visualize.py`).

    Args:
        limits: Values drawn in full blue and full red, which makes pictures comparable. Default: minimum and maximum of
            each map.
        interval: Draw every n-th validated image. All tested images are drawn.

    Raises:
        UserError: wrong limits or interval; before a run, a network without log-variance.
    """

    def __init__(self, limits: tuple[float, float] | None = None, interval: int = 1):
        if limits is not None and not (
                isinstance(limits, (list, tuple)) and len(limits) == 2 and all(
                    isinstance(limit, (int, float)) for limit in limits) and limits[0] < limits[1]):
            raise UserError('UncertaintyVisualizationHook: limits must be two numbers, the lower one first, not '
                            f'{limits}.')
        if interval < 1:
            raise UserError(f'UncertaintyVisualizationHook: interval must be at least 1, not {interval}.')
        self.limits, self.interval = limits, interval
        self.pending: list[tuple[str, Any, int]] = []  # of other ranks than 0

    def before_run(self, runner: Any) -> None:
        model = get_model(runner.model)
        if not model.provides_log_var:
            raise UserError(f"custom_hooks: {model.network_g['type']} provides no log_var. Remove "
                            'UncertaintyVisualizationHook.')
        model.predict_log_var = True

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if batch_idx % self.interval == 0:
            self._draw(runner, outputs, runner.iter)

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        self._gather(runner)

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._draw(runner, outputs, 0)

    def after_test_epoch(self, runner: Any, metrics: Any = None) -> None:
        self._gather(runner)

    def _draw(self, runner: Any, outputs: Any, step: int) -> None:
        for sample in outputs or ():
            picture = uncertainty_picture(sample['log_var'].numpy(), self.limits)
            stem = osp.splitext(osp.basename(sample['lq_path'].replace('\\', '/')))[0]
            drawn = f'{sample["set"]}_{stem}_uncertainty', cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), step
            if is_main_process():
                runner.visualizer.add_image(*drawn)
            else:
                self.pending.append(drawn)

    def _gather(self, runner: Any) -> None:
        """Hands over the other ranks' pictures, because `Visualizer` ignores them. Called once per epoch: ranks may
        have different numbers of images."""
        for pictures in all_gather_object(self.pending):
            for drawn in pictures:
                runner.visualizer.add_image(*drawn)
        self.pending = []
