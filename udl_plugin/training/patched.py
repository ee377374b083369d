"""Patches `basicsr.train` and `basicsr.test` while a pipeline runs."""
import contextlib
import functools
import math
import re
from os import path as osp
from pathlib import Path

from udl_plugin.errors import UserError
from udl_plugin.training import rng_state
from udl_plugin.utils.atomic_io import exclusive_lock


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
        self.lock = contextlib.ExitStack()
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
            UserError: another process trains in this folder.
        """
        self.lock.close()
        if opt['rank'] == 0 and osp.isdir(opt['path']['experiments_root']):
            self.lock.enter_context(exclusive_lock(opt['path']['experiments_root']))

    def load_resume_state(self, opt):
        self.state, self.notes = self.resume(opt)
        if opt.get('auto_resume') and self.state is None:
            self.notes.append('--auto_resume: there is no state to go on from yet; a new training begins.')
        self._keep_others_out(opt)  # before it gets another name, as a folder of another training
        return self.state

    def init_tb_loggers(self, opt):
        from basicsr.utils import get_root_logger

        self._keep_others_out(opt)  # it may be a new one
        from udl_plugin.training.lasting_logs import LastingWriter, outlast
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
        from udl_plugin.data.checked_dataset import CheckedDataset
        from udl_plugin.training.resumable_loader import ResumableDataLoader
        build = functools.partial(self.upstream['build_dataloader'], dataset_opt=dataset_opt, num_gpu=num_gpu,
                                  dist=dist, seed=seed)
        if dataset_opt['phase'] != 'train':
            where = f'datasets: {dataset_opt["name"]}'
            self.val_loaders.append(build(CheckedDataset(dataset, where), sampler=sampler))
            return self.val_loaders[-1]
        careful = CheckedDataset(dataset, 'datasets: train', dataset_opt.get('on_bad_record') or 'stop')
        self.train_loader = ResumableDataLoader(lambda *args: build(args[0], sampler=args[1]), careful, sampler)
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
            for path in Path(opt['path'][folder]).glob('.*.tmp'):  # of `atomic_write`, in a process that was killed
                path.unlink(missing_ok=True)
        if self.state and self.state.get('validated') is False and self.train_loader.main:
            self._validate(opt, tb_logger)
        return self.upstream['MessageLogger'](opt, start_iter, tb_logger)

    def _validate(self, opt, tb_logger):
        """The validation that the interruption took away; with random numbers as it would have had."""
        current_iter = self.state['iter']
        if opt.get('val') is None or current_iter % opt['val']['val_freq']:
            return
        rng_state.restore(self.train_loader.main)
        for loader in self.val_loaders:
            self.model.validation(loader, current_iter, tb_logger, opt['val']['save_img'])
        self.train_loader.main = rng_state.to_tensors(rng_state.capture())

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
            self.train_loader.dataset.check_lmdbs()
        except UserError as found:
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
