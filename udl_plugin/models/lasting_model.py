"""SRModel for trainings of days: no file is torn, what was reached can be gone on from, what is no number is left out.
"""
import dataclasses
import io
import math
import re
import warnings
from os import path as osp
from pathlib import Path

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only

from udl_plugin.checkpoints.state_dict import fingerprint, save_checkpoint
from udl_plugin.errors import UserError
from udl_plugin.training import rng_state, signals
from udl_plugin.utils.atomic_io import atomic_write
from udl_plugin.utils.plain import to_builtins

MAX_SKIPS = 10


class LastingModel(SRModel):
    """SRModel, and what `UDLModel` adds to it that has nothing to do with uncertainty.

    A subclass's `optimize_parameters` asks `is_finite` and `agreed`, calls `count_skips`, and ends with `finish`.
    """

    network_is_saved = True  # the last time
    reached = None  # of a training under udl-train: the last iteration that was finished
    saved = None  # iteration of the last training state, and whether it knows of its validation
    saved_epoch = None
    of_ranks = ()  # what that state says of places and random numbers, for each process
    holds = False  # an iteration is under way
    place = paths = None  # of the batch in hand
    blamed, own_finite = '', True  # what the loss said of it, and whether it is finite in this process

    def init_training_settings(self):
        super().init_training_settings()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        self.skips = self.skips_in_row = 0
        self.best_metric_results = {}

    def feed_data(self, data):
        super().feed_data(data)
        self.lq_path = data.get('lq_path')
        if 'note' in data:  # of udl-train's loader
            self.place, self.paths = data['note'].place, self.lq_path

    def update_learning_rate(self, current_iter, warmup_iter=-1):
        if not self.holds:  # an iteration is done whole, or not at all
            signals.hold()
            self.holds = True
        super().update_learning_rate(current_iter, warmup_iter)

    def running_statistics(self):
        """Buffers that a pass of the network changes, as those of batch normalisation; most networks have none."""
        return [buffer for module in self.get_bare_model(self.net_g).modules()
                if module.training and isinstance(module, torch.nn.modules.batchnorm._NormBase)
                for buffer in module.buffers(recurse=False)]

    def is_finite(self, losses):
        """Whether the losses of an iteration are, and the gradients; those under fp16 are the scaler's to judge."""
        values = list(losses.values())
        if not self.scaler.is_enabled():
            parameters = (parameter for group in self.optimizer_g.param_groups for parameter in group['params'])
            values += [torch.linalg.vector_norm(parameter.grad, math.inf) for parameter in parameters
                       if parameter.grad is not None]
        return bool(torch.stack([value.float() for value in values]).isfinite().all())

    def agreed(self, told, finite):
        """What all processes of a training do: end where one was told to, skip where it is not finite for one."""
        self.own_finite = finite
        if self.opt['dist']:
            both = torch.tensor([told, not finite], device=self.device)
            torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
            told, finite = int(both[0]), not both[1]
        return told, finite

    def count_skips(self, current_iter, finite):
        """Notes whether an iteration was left out.

        Raises:
            FloatingPointError: it is one too many in a row.
        """
        if finite:
            self.skips_in_row = 0
            return
        self.skips, self.skips_in_row = self.skips + 1, self.skips_in_row + 1
        told = _of_all_ranks(self.opt, (self.own_finite, self.paths or ['unknown'], self.blamed))
        told = [one for one in told if not one[0]] or told  # gradients are those of all
        get_root_logger().warning(
            f'Iteration {current_iter} is skipped: loss or gradients not finite: {dict(self.log_dict)}.{told[0][2]} '
            f'{self.skips_in_row} in a row, {self.skips} in all. Its images: '
            f'{", ".join(path for _, paths, _ in told for path in paths)}.')
        self.blamed = ''
        most = self.opt['train'].get('max_skips') or MAX_SKIPS
        if self.skips_in_row < most:
            return
        batch = io.BytesIO()
        torch.save({'iter': current_iter, 'paths': self.paths, 'lq': self.lq.cpu(), 'gt': self.gt.cpu()}, batch)
        path = osp.join(self.opt['path']['training_states'], f'not_finite_{current_iter}_{self.opt["rank"]}.pth')
        _try(atomic_write, path, batch.getvalue())
        fp16 = self.amp is torch.float16
        advice = ' Under amp: fp16, values beyond 65504 are not finite; write bf16.' if fp16 else ''
        raise FloatingPointError(
            f'{most} iterations in a row had a loss or gradients that are not finite, the last one {current_iter}. Its '
            f"batch is in '{path}' (torch.load gives lq, gt, paths). The checkpoints are of before. A lower lr may "
            f'help; train: max_skips allows more.{advice}')

    def finish(self, current_iter, told):
        """Ends an iteration: what was reached can be saved from here on, and a signal may end the training."""
        if self.place is not None:
            self.reached = Reached(current_iter, self.place, rng_state.capture())
        if told:
            signals.pend(told)
        # several processes end together, or one would wait for the others forever
        if self.holds and (told or not self.opt['dist']):
            self.holds = False
            signals.release()
            signals.check()

    def save(self, epoch, current_iter):
        with signals.held():
            super().save(epoch, current_iter)
        if not self.network_is_saved and current_iter == -1:
            raise UserError(f"'{self.opt['path']['models']}': net_g_latest.pth could not be written, see above. When "
                             'there is room, --auto_resume goes on from the last state.')

    @master_only
    def save_network(self, net, net_label, current_iter, param_key='params'):
        """As upstream's, but the file also says what network it is of, and is never torn: see `write_checkpoint`."""
        nets, keys = (value if isinstance(value, list) else [value] for value in (net, param_key))
        iteration = 'latest' if current_iter == -1 else current_iter
        path = osp.join(self.opt['path']['models'], f'{net_label}_{iteration}.pth')
        state_dicts = {key: self.get_bare_model(net).state_dict() for net, key in zip(nets, keys)}
        self.network_is_saved = _try(save_checkpoint, path, state_dicts, self.opt['network_g'])

    def save_training_state(self, epoch, current_iter):
        """As upstream's, with all that `resume_training` takes; never torn, nor without the network that belongs to it.
        """
        if current_iter == -1:
            return
        reached = self.reached if self.reached and self.reached.iter == current_iter else None
        self.of_ranks = _of_all_ranks(self.opt, reached and reached.plain())
        self._write_state(epoch, current_iter, validated=False)

    @master_only
    def _write_state(self, epoch, current_iter, validated):
        if not self.network_is_saved:
            return
        state = {'epoch': epoch, 'iter': current_iter, 'optimizers': [part.state_dict() for part in self.optimizers],
                 'schedulers': [part.state_dict() for part in self.schedulers], 'scaler': self.scaler.state_dict(),
                 'best_metric_results': _plain(self.best_metric_results), 'skips': self.skips,
                 'skips_in_row': self.skips_in_row, 'validated': validated,
                 'network': fingerprint(self.get_bare_model(self.net_g).state_dict())}
        if all(self.of_ranks):
            state.update({key: [rank[key] for rank in self.of_ranks] for key in ('places', 'random')})
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path = osp.join(self.opt['path']['training_states'], f'{current_iter}.state')
        if _try(atomic_write, path, buffer.getvalue()):
            self.saved, self.saved_epoch = (current_iter, validated), epoch
            self._remove_old(current_iter)

    def _remove_old(self, current_iter):
        """Keeps the last `save_keep` networks with their states up to this iteration; a state goes before its network.
        """
        keep = (self.opt.get('logger') or {}).get('save_keep')
        if not keep or self.skips_in_row:  # then the new weights may be what is wrong
            return
        found = [{int(match[1]): path for path in Path(self.opt['path'][folder]).iterdir()
                  if (match := re.fullmatch(name, path.name)) and int(match[1]) <= current_iter}
                 for folder, name in (('training_states', r'(\d+)\.state'), ('models', r'net_g_(\d+)\.pth'))]
        kept = sorted(found[0].keys() & found[1].keys())[-keep:]
        for paths in found:
            for iteration in sorted(paths.keys() - kept):
                _try(lambda path: path.unlink(missing_ok=True), paths[iteration])

    def save_reached(self):
        """Saves what was reached, between two iterations.

        Returns:
            int | None: The iteration to go on from: an earlier one where this one is half done.
        """
        if self.reached is None or self.holds:
            return self.saved and self.saved[0]
        with signals.held():
            current_iter, validated = self.reached.iter, self.reached.validated
            if self.saved not in ((current_iter, validated), (current_iter, True)):
                super().save(self.reached.place.epoch, current_iter)
                if validated:
                    self._write_state(self.reached.place.epoch, current_iter, validated)
        return self.saved and self.saved[0]

    def resume_training(self, resume_state):
        """As upstream's, and what was reached beside: the best results, the scale under fp16, what was skipped. The
        place in the data, and random numbers, are the entry point's to restore. Learning rate, schedule and options of
        the optimizer are those of the yml, at that iteration; upstream takes the state's, whatever the yml says."""
        groups, schedules = self._as_the_yml_has_it(resume_state['iter'])
        try:
            super().resume_training(resume_state)
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as err:
            raise UserError(f'The training state of iteration {resume_state["iter"]} does not fit this training: '
                             f'{type(err).__name__}: {err}') from err
        differ = {}
        for group, options in zip(self._groups(), groups):
            wanted, found = to_builtins(options), to_builtins(group)
            differ.update({key: f'{key} {_shown(value)} (the state has {_shown(found.get(key))})'
                           for key, value in wanted.items() if key != 'initial_lr' and found.get(key) != value})
            group.update(options)
        for scheduler, schedule in zip(self.schedulers, schedules):
            scheduler.load_state_dict(schedule)
        if differ:
            get_root_logger().warning(f'As the yml has it, at iteration {resume_state["iter"]}: '
                                      f'{", ".join(differ.values())}.')
        if resume_state.get('scaler') and self.scaler.is_enabled():  # not in a state of BasicSR, nor of another amp
            self.scaler.load_state_dict(resume_state['scaler'])
        self.skips, self.skips_in_row = resume_state.get('skips', 0), resume_state.get('skips_in_row', 0)
        self.of_ranks = [{'places': place, 'random': random} for place, random in
                         zip(resume_state.get('places', ()), resume_state.get('random', ()))]
        current_iter = resume_state['iter']
        if len(self.of_ranks) == self.opt['world_size'] and self._is_ours(current_iter):
            self.saved, self.saved_epoch = (current_iter, resume_state['validated']), resume_state['epoch']
        metrics = ((self.opt.get('val') or {}).get('metrics') or {}).keys()
        self.best_metric_results = {name: record for name, record in resume_state.get('best_metric_results', {}).items()
                                    if record.keys() == metrics}

    def _as_the_yml_has_it(self, iteration):
        """Options of the optimizers' groups and states of the schedulers, as if `iteration` iterations were done."""
        train_opt = self.opt['train']
        with warnings.catch_warnings():  # PyTorch's, that the optimizer makes no steps
            warnings.simplefilter('ignore', UserWarning)
            for number in range(1, min(iteration, int(train_opt['total_iter'])) + 1):
                super().update_learning_rate(number, train_opt.get('warmup_iter', -1))
        return ([{key: value for key, value in group.items() if key != 'params'} for group in self._groups()],
                [scheduler.state_dict() for scheduler in self.schedulers])

    def _groups(self):
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def keep_best(self, dataset_name, current_iter):
        """Writes net_g_best.pth where this validation is the best by the metric of `save_best`."""
        metric = self.opt['val'].get('save_best')
        if not metric:
            return
        wanted, metric = metric.rsplit('/', 1) if '/' in metric else (self._validated_sets()[0], metric)
        if dataset_name != wanted or self.best_metric_results[wanted][metric]['iter'] != current_iter:
            return
        parts = {'params': self.net_g, **({'params_ema': self.net_g_ema} if self.ema_decay > 0 else {})}
        state_dicts = {key: self.get_bare_model(net).state_dict() for key, net in parts.items()}
        _try(save_checkpoint, osp.join(self.opt['path']['models'], 'net_g_best.pth'), state_dicts,
             self.opt['network_g'])

    def note_validation(self, dataset_name, current_iter):
        """After the last set, has the state of this iteration say that its validation is done, and with what result."""
        if dataset_name not in self._validated_sets()[-1:]:
            return
        random = rng_state.capture()
        if self.reached and self.reached.iter == current_iter:
            self.reached.random, self.reached.validated = random, True
        if self.saved == (current_iter, False) and all(self.of_ranks):  # of this run, or of the one that it resumes
            self.of_ranks[self.opt['rank']]['random'] = rng_state.to_tensors(random)
            self._write_state(self.saved_epoch, current_iter, validated=True)

    def _is_ours(self, current_iter):
        """Whether state and network of this iteration are where this training writes its own."""
        return osp.exists(osp.join(self.opt['path']['training_states'], f'{current_iter}.state')) and osp.exists(
            osp.join(self.opt['path']['models'], f'net_g_{current_iter}.pth'))

    def _validated_sets(self):
        return [part['name'] for phase, part in self.opt['datasets'].items() if phase.split('_')[0] == 'val']


@dataclasses.dataclass
class Reached:
    """What a process goes on with, and no file has, behind an iteration."""

    iter: int
    place: object  # udl_plugin.training.resumable_loader.Place
    random: tuple  # random_states.read
    validated: bool = False  # where a validation is due

    def plain(self):
        return {'places': self.place.plain(), 'random': rng_state.to_tensors(self.random)}


def _plain(best_metric_results):
    """Without NumPy's numbers, which a checkpoint of tensors must not hold."""
    return {name: {metric: {**best, 'val': float(best['val'])} for metric, best in record.items()}
            for name, record in best_metric_results.items()}


def _shown(value):
    return f'{value:.4g}' if isinstance(value, float) else value


def _of_all_ranks(opt, value):
    if not opt['dist']:
        return [value]
    values = [None] * opt['world_size']
    torch.distributed.all_gather_object(values, value)
    return values


def _try(write, path, *content):
    """Whether it could be written: a full disk ends no training upstream either."""
    try:
        write(path, *content)
    except OSError as err:
        get_root_logger().error(f"'{path}' cannot be written: {err}. Training goes on.")
        return False
    return True
