"""Hooks: checkpoints of BasicSR and mmengine, and pictures of the uncertainty."""
from __future__ import annotations

import math
from os import path as osp
from typing import Any

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS

from udl_plugin.archs.build import build_network
from udl_plugin.archs.two_step import TwoStep
from udl_plugin.checkpoints.mmengine_format import from_mmengine, is_mmengine_checkpoint
from udl_plugin.checkpoints.state_dict import DEFAULT_KEY, describe_contradiction, describe_mismatch, match_state_dict
from udl_plugin.errors import UserError, raise_errors
from udl_plugin.inference.visualize import describe_owner, expected_error_picture, swap_red_blue
from udl_plugin.integrations.mmengine.checkpoints import can_be_resumed
from udl_plugin.integrations.mmengine.config_checks import check_training
from udl_plugin.integrations.mmengine.model import get_model
from udl_plugin.losses.build import get_head_loss
from udl_plugin.utils.plain import to_builtins

# what a scheduler's state says of the past; all else in it is its options
PROGRESS = ('last_step', '_global_step', '_last_value', 'base_values', 'best', 'num_bad_epochs', 'cooldown_counter')


@HOOKS.register_module()
class NetworkCheckpointHook(Hook):
    """Checkpoints of BasicSR (`net_g_latest.pth`), mmengine and step 1 as `load_from` and for a test; safe resume.

    - Checkpoints that do not fit raise an error, where mmengine would load nothing and train on; so does a training
      that makes no sense, such as step 2 without step 1.
    - A resumed training follows the schedule of the config, and keeps other trainings' best checkpoints.
    - A loss that is not finite ends the training before the next checkpoint.
    - Each checkpoint records its network and the loss that its variance head was trained with.

    Args:
        param_key: `params`, the trained weights, or `params_ema`, their moving average. Default: the average if the
            checkpoint has one, because its validation used it.
    """

    priority = 'VERY_HIGH'  # before EMAHook, which copies the weights that it finds

    def __init__(self, param_key: str | None = None):
        self.param_key = param_key
        self.done: int | None = None
        self.uncertainty_loss: str | None = None

    def before_train(self, runner: Any) -> None:
        """Raises a `UserError` for what `check_training` finds."""
        raise_errors(check_training(get_model(runner.model), runner.train_dataloader.dataset, runner._has_loaded))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Raises a `UserError` if the loss is not finite; mmengine has read its value for the log already."""
        loss = (outputs or {}).get('loss')
        if loss is not None and not math.isfinite(loss):
            raise UserError(f'iteration {runner.iter + 1}: the loss is {float(loss)}. All checkpoints are from before. '
                            'Resume one with --resume, with a lower lr or without --amp.')
        self.done = runner.iter + 1

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Raises a `UserError` if the checkpoint does not fit the generator, or cannot be resumed."""
        self.uncertainty_loss = checkpoint.get('uncertainty_loss')  # of step 1, which a step 2 keeps
        with torch.random.fork_rng(devices=[]):
            net = build_network(get_model(runner.model).network_g)  # the runner's own may be sharded
        if runner._resume:
            check_resumable(runner, net, checkpoint)
            keep_foreign_best(runner, checkpoint)
            apply_config_schedule(runner, checkpoint)
            return
        content = from_mmengine(checkpoint) if is_mmengine_checkpoint(checkpoint) else checkpoint
        state_dict, found_key, _ = match_state_dict(net, content, runner._load_from, self.param_key or DEFAULT_KEY,
                                                    option='generator')
        contradiction = describe_contradiction(content.get('network_g'), get_model(runner.model).network_g, 'generator')
        if contradiction:
            raise UserError(f"'{runner._load_from}' {contradiction}. Write what it was trained with.")
        runner.logger.info(f'NetworkCheckpointHook: {found_key} of {runner._load_from}')
        checkpoint.pop('ema_state_dict', None)
        checkpoint['state_dict'] = {f'generator.{name}': value for name, value in state_dict.items()}

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        model = get_model(runner.model)
        checkpoint['network_g'] = to_builtins(model.network_g)
        uncertainty_loss = get_head_loss(model.pixel_loss) or self.uncertainty_loss
        if uncertainty_loss is not None:
            checkpoint['uncertainty_loss'] = uncertainty_loss
        if self.done is not None:  # FlexibleRunner counts one too many with `save_best`, and would skip it in a resume
            checkpoint['meta']['iter'] = self.done


def check_resumable(runner: Any, net: torch.nn.Module, checkpoint: dict[str, Any]) -> None:
    """Raises a `UserError` if this is no training state, or one of another network or with EMAHook missing now."""
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
    """Drops `best_ckpt` entries outside the work dir: CheckpointHook would delete that file for a better one."""
    info, resumed_keys = (checkpoint['message_hub'].get(name, {}) for name in ('runtime_info', 'resumed_keys'))
    for key in [key for key in info if key.startswith('best_ckpt')]:
        if osp.dirname(osp.realpath(info[key])) != osp.realpath(runner.work_dir):
            del info[key]
            resumed_keys.pop(key, None)


def apply_config_schedule(runner: Any, checkpoint: dict[str, Any]) -> None:
    """Gives the resumed schedulers the options of the config, as `max_iters` is the config's.

    mmengine restores all of a checkpoint's schedule, and keeps the learning rate constant from where that ends.
    """
    for scheduler, state in zip(runner.param_schedulers or (), checkpoint.get('param_schedulers', ())):
        state.update((key, value) for key, value in scheduler.state_dict().items() if key not in PROGRESS)


@HOOKS.register_module()
class UncertaintyVisualizationHook(Hook):
    """Passes a picture of each validated or tested image's expected error to mmengine's `Visualizer`.

    The pictures are those of `expected_error_picture` (`udl_plugin/inference/visualize.py`). With several processes,
    only the first one draws its images, because `Visualizer` ignores the others.

    Args:
        limits: Errors drawn in the first and the last colour, in 8-bit levels, which makes pictures comparable.
            Default: 0 and a round number near the largest of each image.
        interval: Draw every n-th validated image. All tested images are drawn.
        uncertainty_loss: Loss that trained the variance head. Default: the one that trains it in this run, or ESU.

    Raises:
        UserError: wrong limits or interval; before a run, a network without log-variance.
    """

    def __init__(self, limits: tuple[float, float] | None = None, interval: int = 1,
                 uncertainty_loss: str | None = None):
        if interval < 1 or (limits is not None and not 0 <= limits[0] < limits[1]):
            raise UserError('UncertaintyVisualizationHook: limits must be two numbers of 8-bit levels, the lower one '
                            f'first, and interval at least 1, not {limits} and {interval}.')
        self.limits, self.interval, self.uncertainty_loss = limits, interval, uncertainty_loss

    def before_run(self, runner: Any) -> None:
        model = get_model(runner.model)
        if not hasattr(model.generator, 'trains_log_var'):
            raise UserError(f"custom_hooks: {model.network_g['type']} provides no log_var. Remove "
                            'UncertaintyVisualizationHook.')
        model.predict_log_var = True

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if batch_idx % self.interval == 0:
            self._draw(runner, outputs, runner.iter)

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._draw(runner, outputs, 0)

    def _draw(self, runner: Any, outputs: Any, step: int) -> None:
        model = get_model(runner.model)
        loss = self.uncertainty_loss or get_head_loss(model.pixel_loss) or 'ESU'
        owner = describe_owner('step 2' if isinstance(model.generator, TwoStep) else 'step 1')
        for sample in outputs:
            picture = expected_error_picture(sample['log_var'].numpy(), loss, limits=self.limits, owner=owner)
            stem = osp.splitext(osp.basename(sample['lq_path']))[0]
            runner.visualizer.add_image(f'{sample["set"]}_{stem}_expected_error', swap_red_blue(picture), step)
