"""One run of upstream's pipelines: functions that they call by name, replaced by ours while they run.

Upstream's loop stays upstream's. What it lacks hangs on the names that it looks up in its own module: where a training
resumes, and in the very place; data that tells what is bad in it; logs that a full disk does not end; and what was
under way when it was interrupted.
"""
import contextlib
import functools
import math
import re
from os import path as osp
from pathlib import Path

from udl_plugin import random_states
from udl_plugin.checkpoints import fingerprint, load_tensors, read_checkpoint
from udl_plugin.errors import InputError
from udl_plugin.files import alone

IN_STATE = {'epoch', 'iter', 'optimizers', 'schedulers'}  # upstream's own
IN_PLACE = {'epoch', 'seen', 'images', 'batch_size', 'begun', 'loaders'}  # see udl_plugin/place.py


class Session:
    """
    Args:
        module (module): `basicsr.train` or `basicsr.test`.
        resume (Callable): `load_resume_state`, or one that also checks what it is given.
    """

    def __init__(self, module, resume):
        self.module, self.resume = module, resume
        self.state = self.model = self.train_loader = None
        self.val_loaders, self.notes = [], []
        self.lock, self.lock_file = contextlib.ExitStack(), None
        self.upstream = {name: getattr(module, name) for name in self.names() if hasattr(module, name)}

    @staticmethod
    def names():
        return ('load_resume_state', 'init_tb_loggers', 'create_train_val_dataloader', 'build_dataloader',
                'build_model', 'MessageLogger')

    def __enter__(self):
        for name in self.upstream:
            setattr(self.module, name, getattr(self, name))
        return self

    def __exit__(self, *_):
        self.lock.close()
        for name, function in self.upstream.items():
            setattr(self.module, name, function)

    def _keep_others_out(self, opt):
        """
        Raises:
            InputError: another process trains in this folder.
        """
        self.lock.close()
        if opt['rank'] == 0 and osp.isdir(opt['path']['experiments_root']):
            self.lock_file = self.lock.enter_context(alone(opt['path']['experiments_root']))

    def load_resume_state(self, opt):
        self.state, self.notes = self.resume(opt)
        if opt.get('auto_resume') and self.state is None:
            self.notes.append('--auto_resume: there is no state to go on from yet; a new training begins.')
        self._keep_others_out(opt)  # before it gets another name, as a folder of another training
        return self.state

    def init_tb_loggers(self, opt):
        from basicsr.utils import get_root_logger

        self._keep_others_out(opt)  # it may be a new one
        from udl_plugin.lasting_logs import LastingWriter, outlast
        outlast(get_root_logger())
        writer = self.upstream['init_tb_loggers'](opt)
        return writer and LastingWriter(writer)

    def create_train_val_dataloader(self, opt, logger):
        *loaders, _, iterations = self.upstream['create_train_val_dataloader'](opt, logger)
        # upstream counts an epoch's last, smaller batch, which it leaves out, and not that DataParallel's are larger:
        # it would end before total_iter, and not say so
        done, begun = (self.state['epoch'], self.state['iter']) if self.state else (0, 0)  # by batches of any size
        return *loaders, done + math.ceil((iterations - begun) / len(self.train_loader)), iterations

    def build_dataloader(self, dataset, dataset_opt, num_gpu=1, dist=False, sampler=None, seed=None):
        from udl_plugin.data.careful import CarefulDataset
        from udl_plugin.place import KeepingLoader
        build = functools.partial(self.upstream['build_dataloader'], dataset_opt=dataset_opt, num_gpu=num_gpu,
                                  dist=dist, seed=seed)
        if dataset_opt['phase'] != 'train':
            where = f'datasets: {dataset_opt["name"]}'
            self.val_loaders.append(build(CarefulDataset(dataset, where), sampler=sampler))
            return self.val_loaders[-1]
        careful = CarefulDataset(dataset, 'datasets: train', dataset_opt.get('on_bad_record') or 'stop')
        self.train_loader = KeepingLoader(lambda *args: build(args[0], sampler=args[1]), careful, sampler,
                                          self.lock_file)
        self._go_on(sampler)
        return self.train_loader

    def _go_on(self, sampler):
        """Has the data go on where the state says."""
        places = self.state.get('places') if self.state else None
        if not places:
            if self.state:
                self.notes.append('The state is not of udl-train, and tells no place: its epoch begins anew.')
        elif len(places) != sampler.num_replicas:
            self.notes.append('The state is of another number of processes: its epoch begins anew.')
        else:
            note = self.train_loader.go_on(places[sampler.rank], self.state['random'][sampler.rank])
            self.notes += [f'Not as it would have been without the interruption: {note}.'] if note else []

    def build_model(self, opt):
        self.model = self.upstream['build_model'](opt)
        return self.model

    def MessageLogger(self, opt, start_iter=1, tb_logger=None):
        from basicsr.utils import get_root_logger
        for note in self.notes:
            get_root_logger().warning(note)
        for folder in ('models', 'training_states') if opt['rank'] == 0 and 'models' in opt['path'] else ():
            for path in Path(opt['path'][folder]).glob('.*.tmp'):  # of `write_whole`, in a process that was killed
                path.unlink(missing_ok=True)
        if self.state and self.state.get('validated') is False and self.train_loader.main:
            self._validate(opt, tb_logger)
        return self.upstream['MessageLogger'](opt, start_iter, tb_logger)

    def _validate(self, opt, tb_logger):
        """The validation that the interruption took away; with random numbers as it would have had."""
        current_iter = self.state['iter']
        if opt.get('val') is None or current_iter % opt['val']['val_freq']:
            return
        random_states.restore(self.train_loader.main)
        for loader in self.val_loaders:
            self.model.validation(loader, current_iter, tb_logger, opt['val']['save_img'])
        self.train_loader.main = random_states.plain(random_states.read())

    def explain(self, err):
        """Why a process that loads data was lost, as far as that can be found out; None where `err` is of another kind.
        """
        if self.train_loader is None:
            return None
        if self.train_loader.sampler.sampler.num_replicas > 1 and re.search('gloo|NCCL|by peer', str(err)):
            return 'another process of the training has ended, and said why; this one ends too.'
        if not re.match('DataLoader (worker|timed out)', str(err)):
            return None
        try:
            self.train_loader.dataset.refuse_damaged()
        except InputError as found:
            return str(found)
        said = ' '.join(str(err).split()).partition(' Details are lost')[0].rstrip('.')  # of either of two wordings
        return f'datasets: train: {said}: a loading process was lost, for want of memory ' \
               '(a smaller num_worker_per_gpu helps), or of the disk that it reads.'

    def save(self):
        """Saves what was reached, if there is something that is not saved yet.

        Returns:
            str: What is there to go on from.
        """
        reached = self.model.save_reached() if hasattr(self.model, 'save_reached') else None
        return f' Iteration {reached} is saved; --auto_resume goes on from there.' if reached else ''


def load_resume_state(opt):
    """The training state that `--auto_resume` or `path: resume_state` asks for, or None, and lines on what was passed
    over.

    As `basicsr/train.py` has it, but read on the CPU, for the optimizer moves its state to the parameters' device; and
    `--auto_resume` takes the newest state that is whole and has a whole network, if it can be one of before iterations
    were skipped; before there is one, that of `path: resume_state`. Nothing is deleted.

    Raises:
        InputError: the file is missing or not one of tensors; there are states, and none is whole.
    """
    from basicsr.utils import check_resume
    state, passed_over = None, []
    if opt['auto_resume']:
        path, state, passed_over = _newest_whole(Path(opt['path']['training_states']), Path(opt['path']['models']))
        opt['path']['resume_state'] = path or opt['path'].get('resume_state')
    if state is None and opt['path'].get('resume_state'):
        try:
            state = read_state(opt['path']['resume_state'])
        except InputError as err:
            raise InputError(f'path: resume_state: {err}') from err.__cause__
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
                raise InputError(f"'{path}' is the state of iteration {state['iter']}.")
            network = models / f'net_g_{iteration}.pth'
            state_dict, _ = read_checkpoint(network)
            if state.get('network', '') not in ('', fingerprint(state_dict)):
                raise InputError(f"'{network}' is of another run than it.")
            if not state.get('skips_in_row'):
                return str(path), state, passed_over
            in_doubt = in_doubt or (str(path), state, [*passed_over])
            raise InputError('its last iterations were skipped, and its weights may be why (path: resume_state takes '
                             'it all the same).')
        except InputError as err:
            passed_over.append(f"--auto_resume passes over '{path}': {err}")
    if in_doubt:
        return in_doubt
    if passed_over:
        raise InputError('; '.join(passed_over) + f' None is left in {states}. Without --auto_resume a new training '
                         'begins, and this one is kept under another name.')
    return None, None, []


def read_state(path):
    """A training state, as plain data and tensors on the CPU.

    Raises:
        InputError: the file is missing, torn, or no training state.
    """
    state = load_tensors(path)
    if not isinstance(state, dict) or not state.keys() >= IN_STATE or not all(
            type(state[key]) is int and 0 <= state[key] < 10 ** 15 for key in ('iter', 'epoch')):
        raise InputError(f"'{osp.relpath(path)}' is not a training state; those are in training_states/.")
    try:
        _refuse_spoilt(state)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as err:
        raise InputError(f"'{osp.relpath(path)}' is not a training state of this version: "
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
            random_states.refuse_wrong(states)
    if len(state.get('places', ())) != len(state.get('random', ())) or ('places' in state and 'validated' not in state):
        raise ValueError('random')
    for records in state.get('best_metric_results', {}).values():
        for best in records.values():
            float(best['val']), int(best['iter']), {'higher': 1, 'lower': 1}[best['better']]
    if not all(type(state.get(key, 0)) is int for key in ('skips', 'skips_in_row')):
        raise ValueError('skips')
