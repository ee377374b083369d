"""Hooks: checkpoints of either host, and pictures of the uncertainty."""
from os import path as osp

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
from udl_plugin.integrations.mmengine.config_checks import bare, check_training
from udl_plugin.utils.plain import to_builtins

OF_THE_PAST = ('last_step', '_global_step', '_last_value', 'base_values', 'best', 'num_bad_epochs', 'cooldown_counter')


@HOOKS.register_module()
class NetworkCheckpointHook(Hook):
    """Lets `load_from`, and a test, take a checkpoint of BasicSR's side (`net_g_latest.pth`) or of mmengine's, and step
    2 one of step 1, for both branches; refuses one that does not fit, or that nothing can be resumed from, where
    mmengine would load nothing and go on, and parts that do not fit, such as a step 2 without a step 1. A training that
    is resumed follows the schedule of the config. Says in each checkpoint of what network it is, and after how many
    iterations: `FlexibleRunner` counts one too many beside `save_best`, and would leave it out on resume.

    Args:
        param_key (str): Which weights: `params`, those that were trained, or `params_ema`, their moving average. None:
            `params`, as on BasicSR's side; but a test of a checkpoint of mmengine takes the average, as its validation
            did, where there is one.
    """

    priority = 'VERY_HIGH'  # before EMAHook, which takes the weights that it finds

    def __init__(self, param_key=None):
        self.param_key = param_key
        self.loaded = False
        self.done = None

    def before_train(self, runner):
        """
        Raises:
            UserError: parts that do not fit.
        """
        begun = self.loaded or (runner._resume and runner.iter) or bare(runner.model).begins_with_checkpoint
        check_training(runner, begun)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.done = runner.iter + 1

    def after_load_checkpoint(self, runner, checkpoint):
        """
        Raises:
            UserError: the checkpoint does not fit the generator, or is none to resume from.
        """
        self.loaded = True
        with torch.random.fork_rng(devices=[]):
            net = build_network(bare(runner.model).network_g)  # the runner's own may be spread over GPUs
        if runner._resume:
            check_resumable(runner, net, checkpoint)
            keep_foreign_best(runner, checkpoint)
            apply_config_schedule(runner, checkpoint)
            return
        tested = not isinstance(runner._train_loop, BaseLoop) and is_mmengine_checkpoint(checkpoint)
        key = self.param_key or ('params_ema' if tested else 'params')
        state_dict, found, _ = match_state_dict(net, checkpoint, runner._load_from, key, option='generator')
        runner.logger.info(f'NetworkCheckpointHook: {found} of {runner._load_from}')
        checkpoint.pop('ema_state_dict', None)
        checkpoint['state_dict'] = {f'generator.{name}': value for name, value in state_dict.items()}

    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint['network_g'] = to_builtins(bare(runner.model).network_g)
        if self.done is not None:
            checkpoint['meta']['iter'] = self.done


def check_resumable(runner, net, checkpoint):
    path = runner._load_from or runner.work_dir
    if not can_be_resumed(checkpoint):
        raise UserError(f"'{path}' holds no state of a training under mmengine to go on from (a best checkpoint has "
                         'none, nor has one of BasicSR): name it as load_from, to begin with its weights.')
    mismatch = describe_mismatch(net, from_mmengine(checkpoint)['params'])
    if mismatch:
        raise UserError(f"'{path}' is of another network than generator, and cannot be resumed: {type(net).__name__}: "
                         f'{mismatch}.')
    if 'ema_state_dict' in checkpoint and not any(isinstance(hook, EMAHook) for hook in runner.hooks):
        raise UserError(f"'{path}' is of a training with a moving average: resume it with EMAHook in custom_hooks.")


def keep_foreign_best(runner, checkpoint):
    """`CheckpointHook` deletes the best one so far when there is a better, wherever a checkpoint says that it is."""
    known, resumed = (checkpoint['message_hub'].get(name, {}) for name in ('runtime_info', 'resumed_keys'))
    for key in [key for key in known if key.startswith('best_ckpt')]:
        path = known.pop(key)
        name = osp.basename(path)
        here = osp.join(runner.work_dir, name)
        if not osp.exists(path) and not osp.exists(here):
            known.pop(key.replace('ckpt', 'score', 1), None)  # a kill came before the better one was written
        elif name.startswith('best_') and (not osp.exists(path) or osp.realpath(path) == osp.realpath(here)):
            known[key] = here  # wherever the folder was before
    for key in resumed.keys() - known.keys():
        del resumed[key]


def apply_config_schedule(runner, checkpoint):
    """What is ahead of a learning rate is the config's, as `max_iters` is: mmengine would take all of a checkpoint's
    schedule, and keep the learning rate still from where that ends."""
    if not isinstance(runner.param_schedulers, list):
        return
    for number, (scheduler, state) in enumerate(zip(runner.param_schedulers, checkpoint.get('param_schedulers', ()))):
        own = {key: value for key, value in scheduler.state_dict().items() if key not in OF_THE_PAST}
        changed = [f'{key}: {_shown(own[key])} (in the checkpoint: {_shown(state.get(key))})' for key in own
                   if own[key] != state.get(key)]
        if changed:
            runner.logger.warning(f"param_scheduler.{number}: goes on as the config has it: {', '.join(changed)}")
        state.update(own)


def _shown(value):
    return truncate_repr(list(value) if isinstance(value, dict) else value)  # milestones, which mmengine counts


@HOOKS.register_module()
class UncertaintyVisualizationHook(Hook):
    """Hands the uncertainty map of each validated or tested image to mmengine's `Visualizer`, as a picture: Y of the
    map in OpenCV's JET (`udl_plugin/inference/visualize.py`). Asks the model for the variance.

    Args:
        limits (tuple[float]): What is shown in full blue and in full red, so that pictures can be compared; None: each
            map's own minimum and maximum.
        interval (int): Of validated images; of tested ones, all are drawn.

    Raises:
        UserError: limits that are not in order, an interval below 1; before a run, a network without variance.
    """

    def __init__(self, limits=None, interval=1):
        if limits is not None and not (
                isinstance(limits, (list, tuple)) and len(limits) == 2 and all(
                    isinstance(limit, (int, float)) for limit in limits) and limits[0] < limits[1]):
            raise UserError(f'UncertaintyVisualizationHook: limits is a lower and a higher number, not {limits}.')
        if interval < 1:
            raise UserError(f'UncertaintyVisualizationHook: interval is 1 or more, not {interval}.')
        self.limits, self.interval, self.waiting = limits, interval, []

    def before_run(self, runner):
        model = bare(runner.model)
        if not model.gives_log_var:
            raise UserError(f"custom_hooks: {model.network_g['type']} gives no log_var: delete "
                             'UncertaintyVisualizationHook.')
        model.wants_log_var = True

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx % self.interval == 0:
            self._draw(runner, outputs, runner.iter)

    def after_val_epoch(self, runner, metrics=None):
        self._gather(runner)

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._draw(runner, outputs, 0)

    def after_test_epoch(self, runner, metrics=None):
        self._gather(runner)

    def _draw(self, runner, outputs, step):
        for sample in outputs or ():
            picture = uncertainty_picture(sample['log_var'].numpy(), self.limits)
            name = f'{sample["set"]}_{_stem(sample)}_uncertainty'
            drawn = name, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), step
            if is_main_process():
                runner.visualizer.add_image(*drawn)
            else:
                self.waiting.append(drawn)

    def _gather(self, runner):
        """`Visualizer` takes the pictures of the first process alone. Once an epoch, however many each process has."""
        for pictures in all_gather_object(self.waiting):
            for drawn in pictures:
                runner.visualizer.add_image(*drawn)
        self.waiting = []


def _stem(sample):
    return sample['lq_path'].replace('\\', '/').rpartition('/')[2].rpartition('.')[0] or sample['lq_path']
