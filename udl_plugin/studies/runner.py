"""Trains what a study lacks, several runs at once, and outlives being killed: what is finished is not done again."""
import collections
import json
import os
import re
import subprocess
import sys
import threading

import torch
import yaml

from udl_plugin.archs.build import build_network, probe_shapes
from udl_plugin.config.cross_checks import check_options
from udl_plugin.config.dataset_checks import check_pairs
from udl_plugin.config.schema import validate_file
from udl_plugin.errors import UserError, raise_errors
from udl_plugin.studies.config import PATHS
from udl_plugin.utils.atomic_io import atomic_write, exclusive_lock


def run_study(study, jobs=1, tell=print):
    """Trains and scores the runs of a study that are not finished, in the study's folder.

    Args:
        study (Study): See `read_study`.
        jobs (int): How many at once. They share the processor's threads; with GPUs each has one.
        tell (Callable): Called with lines on the progress.

    Returns:
        dict[str, str]: Each run that failed, with the end of what it said. What goes on from it was not begun.

    Raises:
        UserError: a network, loss, option or data set is wrong, the folder holds runs of other options, or another
            process is at work there.
    """
    _check(study)
    study.folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(study.folder) as lock:
        refuse_others(study)
        for path, text in _options(study).items():
            if not path.exists():
                atomic_write(path, text.encode())
        return _Queue(study, jobs, tell, lock).work()


def _check(study):
    """What would be found when a run starts or, worse, ends."""
    checked = set()
    for run in study.runs:
        if (run.network, run.scale, run.losses) in checked:
            continue
        checked.add((run.network, run.scale, run.losses))
        try:
            raise_errors(problem.message for problem in validate_file(run.opt, is_train=True))
            batch = {'batch_size_per_gpu': run.opt['datasets']['train'].get('batch_size_per_gpu', 0)}
            check_options({**run.opt, 'datasets': {'train': batch}, 'is_train': True})  # the data itself: below
            if run.parent is None:
                _check_data(study, run)
                channels = probe_shapes(build_network(run.opt['network_g']))[0][1]
                if (channels == 1) != (run.opt['datasets']['train'].get('color') == 'y'):
                    raise UserError(f'the network takes images of {channels} channels: write color: y in datasets: '
                                     'train: for those of one, and for no other.')
        except UserError as err:
            raise UserError(f'{run.network}, x{run.scale}, {" then ".join(run.losses)}: {err}') from err


def _check_data(study, run):
    """Checks the data sets of a run, which are named as seen from the study's folder."""
    sets = [('train', run.opt['datasets']['train']),
            *(('val', study.benchmark(name, run.scale)) for name in study.section['benchmarks'])]
    for phase, section in sets:
        here = {key: os.path.relpath(os.path.join(os.path.realpath(study.folder), section[key]))
                for key in PATHS if key in section}
        check_pairs({**section, **here, 'phase': phase, 'scale': run.scale}, section['name'])


def is_finished(study, run):
    return (study.folder / 'scores' / f'{run.name}.json').exists()


def _options(study):
    """The files that say what the runs are: path to text."""
    texts = {}
    for run in study.runs:
        benchmarks = [study.benchmark(name, run.scale) for name in study.section['benchmarks']]
        texts[study.folder / 'options' / f'{run.name}.yml'] = yaml.safe_dump(run.opt, sort_keys=False)
        texts[study.folder / 'options' / f'{run.name}.benchmarks.json'] = json.dumps(benchmarks, indent=1)
        if run.maps:
            texts[study.folder / 'options' / f'{run.name}.maps.json'] = json.dumps(run.maps, indent=1)
    return texts


def refuse_others(study):
    """Refuses a folder with runs of other options under the same names: their results would be taken for these.

    Raises:
        UserError: names the file and what is different.
    """
    for path, text in _options(study).items():
        before = path.read_text() if path.exists() else text
        if before != text:
            changed = sorted(set(text.splitlines()) ^ set(before.splitlines()))[0].strip()
            raise UserError(f"'{path}' is of a study with other options ({changed}). Give another --out, or remove "
                             'that folder.')


class _Queue:
    """Runs to be started, and those that are under way."""

    def __init__(self, study, jobs, tell, lock):
        self.study, self.jobs, self.tell, self.lock = study, jobs, tell, lock
        self.waiting = [run for run in study.runs if not is_finished(study, run)]
        self.total, self.begun, self.processes, self.failed = len(self.waiting), 0, {}, {}
        self.changed = threading.Condition()

    def work(self):
        self.tell(f'{len(self.study.runs)} trainings, {self.total} of them to be done, in {self.study.folder}')
        threads = [threading.Thread(target=self._slot, args=(slot,), daemon=True) for slot in range(self.jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(1)  # in pieces, for Ctrl-C
        finally:
            with self.changed:
                self.waiting.clear()
                for process in self.processes.values():
                    process.terminate()
            for thread in threads:
                thread.join()
        return self.failed

    def _slot(self, slot):
        """Does one run after the other."""
        while True:
            with self.changed:
                run = self._next()
                while run is None and self.waiting:
                    self.changed.wait(1)
                    run = self._next()
                if run is None:
                    return
                self.waiting.remove(run)
                self.begun += 1
                number = self.begun
            why = self._do(run, number, slot)
            with self.changed:
                if not is_finished(self.study, run):
                    self._fail(run, why)
                self.changed.notify_all()

    def _do(self, run, number, slot):
        """Trains and scores; returns what to say of it if it is not finished then."""
        try:
            with self.changed:
                process = self.processes[run.name] = self._start(run, slot)
            self.tell(f'{number} of {self.total}: {run.name}')
            last = self._follow(process, run)
            return f'ended with status {process.returncode}:\n{"".join(last)}'.rstrip()
        except Exception as err:  # no memory for a process, no reader of what is told: it must not end this thread
            return f'failed ({type(err).__name__}: {err}).'
        finally:
            with self.changed:
                self.processes.pop(run.name, None)

    def _next(self):
        """The first run whose parent is finished."""
        finished = {run.name for run in self.study.runs if is_finished(self.study, run)}
        return next((run for run in self.waiting if run.parent is None or run.parent in finished), None)

    def _fail(self, run, why):
        self.failed[run.name] = why
        for child in [child for child in self.waiting if child.parent == run.name]:
            self.waiting.remove(child)
            self._fail(child, f'was not begun, for {run.name} failed.')

    def _start(self, run, slot):
        environment = dict(os.environ)
        environment.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // self.jobs)))
        gpus = environment.get('CUDA_VISIBLE_DEVICES')
        gpus = list(range(torch.cuda.device_count())) if gpus is None else gpus.split(',')
        if gpus:
            environment['CUDA_VISIBLE_DEVICES'] = str(gpus[slot % len(gpus)])
        return subprocess.Popen(
            [sys.executable, '-u', '-m', 'udl_plugin.studies.worker', run.name], cwd=self.study.folder, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace',
            pass_fds=() if self.lock is None else (self.lock,))

    def _follow(self, process, run):
        """Tells of the progress until the end; returns the last lines, for an error."""
        last = collections.deque(maxlen=12)
        with process:
            for line in process.stdout:
                last.append(line)
                progress = re.search(r'iter: *([\d,]+),.*(eta: [\d:]+)', line)
                if progress:
                    self.tell(f'  {run.name}: iteration {progress[1].replace(",", "")} of '
                              f'{run.opt["train"]["total_iter"]}, {progress[2]}')
            process.wait()
        return last
