"""The training loop, and the test: BasicSR's folders, files, log lines and order of random numbers.

What they call besides BasicSR's builders is in this folder: `resume` finds the training state, `resumable_loader`
continues within an epoch, `signals` says when to stop, `logs` opens the log file and the curves.
"""
from __future__ import annotations

import contextlib
import datetime
import math
import os
import time
from collections.abc import Callable, Iterator
from os import path as osp
from pathlib import Path
from typing import Any

from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.utils import AvgTimer, MessageLogger, get_root_logger, make_exp_dirs, mkdir_and_rename

from udl_plugin.config.cross_checks import check_network, get_param_key, network_errors
from udl_plugin.data.checked_dataset import CheckedDataset
from udl_plugin.errors import raise_errors
from udl_plugin.models.udl_model import UDLModel
from udl_plugin.training import rng_state
from udl_plugin.training.logs import Curves, held_back, open_curves, open_log
from udl_plugin.training.resumable_loader import ResumableDataLoader
from udl_plugin.training.signals import StoppableLoader, Stopped, StopSignal
from udl_plugin.utils.atomic_io import exclusive_lock
from udl_plugin.utils.memory import NotEnoughMemory, explain_out_of_memory

MEMORY_OF_TRAINING = ('out of memory in training. Use a smaller datasets: train: batch_size_per_gpu, or train: '
                      'accumulate: 2 (the same result in less memory), or train: amp: bf16.')
MEMORY_OF_VALIDATION = ('out of memory in validation or test. Use val: tile: 256, or less: the network then runs on '
                        'tiles of 256 x 256 LR pixels.')


def train(opt: dict[str, Any], state: dict[str, Any] | None, messages: list[str],
          copy_option_file: Callable[[str], None], last_message: str = '') -> None:
    """Trains as `opt` says.

    Args:
        opt: Complete and validated options.
        state: Training state to resume from; None starts a new training.
        messages: What the log should say first.
        copy_option_file: Copies the yml into a folder.
        last_message: What the log should say at the end.

    Raises:
        UserError: network or checkpoint do not fit; before any folder is made.
        StoppedEarly: a signal or an error ended the training; what was reached is saved.
    """
    with held_back() as model_log:  # the model is built first: it is the last check of the options
        model = _build_model(opt)
    with _experiment_folder(opt, resumed=state is not None), StopSignal() as stop:
        copy_option_file(opt['path']['experiments_root'])
        with open_log(opt) as logger, contextlib.closing(open_curves(opt)) as curves:
            loader, val_loaders = _build_loaders(opt, stop)
            for record in model_log:
                logger.handle(record)
            for message in messages:
                logger.warning(message)
            training = _Training(opt, model, loader, val_loaders, curves, stop)
            try:
                if state:
                    training.resume(state)
                training.run()
                if last_message:
                    logger.info(last_message)
            except (Exception, Stopped) as err:
                raise StoppedEarly(training.save_on_exit(), stop.number) from err


class _Training:
    """A model, its data, and how far they are.

    Attributes:
        iteration: The last complete one.
        rng: RNG states behind it, as `rng_state.capture` returns them.
        is_validated: Whether it was validated.
        in_step: Whether the next one is half done: then nothing can be saved.
    """

    def __init__(self, opt: dict[str, Any], model: Any, loader: ResumableDataLoader, val_loaders: list[Any],
                 curves: Curves, stop: StopSignal):
        self.opt, self.model, self.loader, self.val_loaders = opt, model, loader, val_loaders
        self.curves, self.stop, self.logger = curves, stop, get_root_logger()
        self.iteration, self.rng, self.is_validated, self.in_step = 0, rng_state.capture(), False, False

    def run(self) -> None:
        """Trains from `iteration` to the end.

        Raises:
            Stopped: a signal asked for it.
        """
        opt, model, logger = self.opt, self.model, self.logger
        total_iter, warmup_iter = int(opt['train']['total_iter']), opt['train'].get('warmup_iter', -1)
        message_logger = MessageLogger(opt, self.iteration, self.curves)
        logger.info(f'Start training from epoch: {self.loader.epoch}, iter: {self.iteration}')
        data_timer, iter_timer, start_time = AvgTimer(), AvgTimer(), time.time()
        for iteration, batch in self.loader.iterations(self.iteration, total_iter):
            data_timer.record()
            self.in_step = True
            model.update_learning_rate(iteration, warmup_iter=warmup_iter)
            self.step(iteration, batch)
            self.iteration, self.rng = iteration, rng_state.capture()
            self.is_validated = self.in_step = False
            iter_timer.record()
            if iteration == 1:
                message_logger.reset_start_time()
            if iteration % opt['logger']['print_freq'] == 0:
                message_logger({'epoch': self.loader.epoch, 'iter': iteration, 'lrs': model.get_current_learning_rate(),
                                'time': iter_timer.get_avg_time(), 'data_time': data_timer.get_avg_time(),
                                **model.get_current_log()})
            if self.stop.requested(model.device if opt['dist'] else None):
                raise Stopped
            if iteration % opt['logger']['save_checkpoint_freq'] == 0:
                logger.info('Saving models and training states.')
                self.save()
            if self.validation_is_due():
                self.validate()
            data_timer.start()
            iter_timer.start()
        logger.info(f'End of training. Time consumed: {datetime.timedelta(seconds=int(time.time() - start_time))}')
        logger.info('Save the latest model.')
        model.save(epoch=-1, current_iter=-1)
        if opt.get('val') is not None:
            self.validate()

    def step(self, iteration: int, batch: dict[str, Any]) -> None:
        """
        Raises:
            NotEnoughMemory: nothing is half done, if memory ran out before the update.
        """
        try:
            explain_out_of_memory(MEMORY_OF_TRAINING, self.model.feed_data, batch)
            explain_out_of_memory(MEMORY_OF_TRAINING, self.model.optimize_parameters, iteration)
        except NotEnoughMemory:
            is_updating = not isinstance(self.model, UDLModel) or self.model.train_step.is_updating
            self.in_step = is_updating or not self.loader.step_back()
            raise

    def validation_is_due(self) -> bool:
        return self.opt.get('val') is not None and self.iteration % self.opt['val']['val_freq'] == 0

    def validate(self) -> None:
        for loader in self.val_loaders:
            explain_out_of_memory(MEMORY_OF_VALIDATION, self.model.validation, loader, self.iteration, self.curves,
                                  self.opt['val']['save_img'])
        self.rng, self.is_validated = rng_state.capture(), True
        if isinstance(self.model, UDLModel):
            self.model.mark_validated(self.iteration, rng_state.to_tensors(self.rng))

    def save(self) -> None:
        """Saves the last complete iteration, with all that an exact resume requires."""
        if not isinstance(self.model, UDLModel):
            self.model.save(self.loader.epoch, self.iteration)
            return
        rng = rng_state.to_tensors(self.rng)
        self.model.save(self.loader.epoch, self.iteration, {'places': self.loader.state_dict(), 'random': rng})
        if self.is_validated:
            self.model.mark_validated(self.iteration, rng)

    def save_on_exit(self) -> int | None:
        """Saves what was reached, if it is not yet; returns the iteration that a resumed training continues from."""
        together = not self.opt['dist'] or self.stop.number  # after an error, the other ranks do not save with this one
        saved_iter = getattr(self.model, 'saved_iter', None)  # only UDLModel has it
        if together and not self.in_step and self.iteration > 0 and saved_iter != self.iteration:
            self.save()
        return getattr(self.model, 'saved_iter', None)

    def resume(self, state: dict[str, Any]) -> None:
        """Continues from a training state, and makes up for a validation that the interruption prevented."""
        self.model.resume_training(state)
        self.iteration, self.loader.epoch = state['iter'], state['epoch']
        self.logger.info(f'Resuming training from epoch: {state["epoch"]}, iter: {state["iter"]}.')
        positions, rank = state.get('places'), self.opt['rank']
        if not positions:
            self.logger.warning('Training state has no data-loader position (not written by udl-train); restarting '
                                'its epoch.')
        elif len(positions) != self.opt['world_size']:
            self.logger.warning('The number of processes changed; restarting the epoch.')
        else:
            difference = self.loader.load_state_dict(positions[rank], state['random'][rank])
            if difference:
                self.logger.warning(f'This resume is not exact: {difference}.')
        if self.loader.main_rng and not state['validated'] and self.validation_is_due():
            rng_state.restore(self.loader.main_rng)
            self.validate()
            self.loader.main_rng = self.rng


class StoppedEarly(Exception):
    """A training that did not reach its end; an error that ended it is its `__cause__`.

    Attributes:
        saved_iter: The iteration that `--auto_resume` continues from; None if there is none.
        signal_number: Of the signal that ended it; 0 if none did.
    """

    def __init__(self, saved_iter: int | None, signal_number: int):
        super().__init__('the training ended early')
        self.saved_iter, self.signal_number = saved_iter, signal_number


def test(opt: dict[str, Any], messages: list[str]) -> None:
    """Tests as `opt` says, on each data set.

    Args:
        opt, messages: As for `train`.

    Raises:
        UserError: network or checkpoint do not fit; before any folder is made.
    """
    with held_back() as model_log:
        model = _build_model(opt)
    make_exp_dirs(opt)
    with open_log(opt) as logger:
        loaders = [_build_test_loader(opt, dataset_opt, f'datasets.{phase}')
                   for phase, dataset_opt in sorted(opt['datasets'].items())]
        for loader in loaders:
            logger.info(f'Number of test images in {loader.dataset.opt["name"]}: {len(loader.dataset)}')
        for record in model_log:
            logger.handle(record)
        for message in messages:
            logger.warning(message)
        for loader in loaders:
            logger.info(f'Testing {loader.dataset.opt["name"]}...')
            explain_out_of_memory(MEMORY_OF_VALIDATION, model.validation, loader, current_iter=opt['name'],
                                  tb_logger=None, save_img=opt['val']['save_img'])


def _build_model(opt: dict[str, Any]) -> Any:
    if opt['model_type'] == 'SRModel':
        check_network(opt)  # UDLModel matches a checkpoint with the network itself
    try:
        # BasicSR's default is `params`; not in `opt`, which is logged as the user wrote it
        return build_model({**opt, 'path': {**opt['path'], 'param_key_g': get_param_key(opt)}})
    except Exception:
        raise_errors(network_errors(opt))  # the reason, as errors of options, if it is one of them
        raise


@contextlib.contextmanager
def _experiment_folder(opt: dict[str, Any], resumed: bool) -> Iterator[None]:
    """The experiment's folders, made as BasicSR makes them, and locked against a second training of the same name."""
    if opt['rank'] != 0:
        yield
        return
    folder = opt['path']['experiments_root']
    if osp.isdir(folder):
        with exclusive_lock(folder):  # before it is renamed, as the folder of an earlier training
            pass
    if not resumed:
        make_exp_dirs(opt)
        if opt['logger'].get('use_tb_logger') and 'debug' not in opt['name']:
            mkdir_and_rename(osp.join(opt['root_path'], 'tb_logger', opt['name']))
    for key in ('experiments_root', 'models', 'training_states', 'visualization'):
        os.makedirs(opt['path'][key], exist_ok=True)
    with exclusive_lock(folder):
        for key in ('models', 'training_states'):
            for path in Path(opt['path'][key]).glob('.*.tmp'):  # of `atomic_write` in a process that was killed
                path.unlink(missing_ok=True)
        yield


def _build_loaders(opt: dict[str, Any], stop: StopSignal) -> tuple[ResumableDataLoader, list[Any]]:
    """Like `create_train_val_dataloader` in `basicsr/train.py`, with loaders that resume and stop."""
    logger = get_root_logger()
    loader, val_loaders = None, []
    for phase, dataset_opt in opt['datasets'].items():
        if phase == 'train':
            dataset = CheckedDataset(build_dataset(dataset_opt), 'datasets.train',
                                     dataset_opt.get('on_bad_record') or 'stop')
            loader = ResumableDataLoader(dataset, opt)
            total_iter = int(opt['train']['total_iter'])
            logger.info('Training statistics:'
                        f'\n\tNumber of train images: {len(dataset)}'
                        f'\n\tDataset enlarge ratio: {dataset_opt.get("dataset_enlarge_ratio", 1)}'
                        f'\n\tBatch size per gpu: {dataset_opt["batch_size_per_gpu"]}'
                        f'\n\tWorld size (gpu number): {opt["world_size"]}'
                        f'\n\tRequire iter number per epoch: {len(loader)}'
                        f'\n\tTotal epochs: {math.ceil(total_iter / len(loader))}; iters: {total_iter}.')
        else:
            val_loader = _build_test_loader(opt, dataset_opt, f'datasets.{phase}')
            logger.info(f'Number of val images/folders in {dataset_opt["name"]}: {len(val_loader.dataset)}')
            val_loaders.append(val_loader if opt['dist'] else StoppableLoader(val_loader, stop))
    assert loader is not None
    return loader, val_loaders


def _build_test_loader(opt: dict[str, Any], dataset_opt: dict[str, Any], where: str) -> Any:
    dataset = CheckedDataset(build_dataset(dataset_opt), where)
    return build_dataloader(dataset, dataset_opt, num_gpu=opt['num_gpu'], dist=opt['dist'], sampler=None,
                            seed=opt['manual_seed'])
