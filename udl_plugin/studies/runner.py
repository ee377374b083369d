"""Trains the runs of a study, several at once. Finished runs are skipped, killed ones resume from their checkpoint."""
from __future__ import annotations

import collections
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from udl_plugin.archs.build import build_network, probe_shapes
from udl_plugin.config.cross_checks import check_options
from udl_plugin.config.dataset_checks import check_pairs
from udl_plugin.config.schema import validate_file
from udl_plugin.errors import UserError, UserErrors, raise_errors
from udl_plugin.studies.config import PATHS, Run, Study
from udl_plugin.utils.atomic_io import atomic_write, exclusive_lock


def run_study(study: Study, jobs: int = 1, report: Callable[[str], object] = print) -> dict[str, str]:
    """Trains and scores the unfinished runs of a study, in the study's folder.

    Args:
        study: See `read_study`.
        jobs: How many runs at once. They share the processor's threads; each has a GPU of its own, as far as there are.
        report: Called with lines about the progress.

    Returns:
        Name of each failed run, with the end of its output. Runs that start from a failed one are not started.

    Raises:
        UserError: a network, loss, option or dataset is wrong, the folder has runs with other options, or another
            process is working there.
    """
    _check_runs(study)
    study.folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(study.folder) as lock:
        check_same_options(study)
        for path, text in _build_option_files(study).items():
            if not path.exists():
                atomic_write(path, text.encode())
        return _Queue(study, jobs, report, lock).work()


def _check_runs(study: Study) -> None:
    """Raises errors now that a run would raise at its start or, worse, at its end."""
    checked = set()
    for run in study.runs:
        if (run.network, run.scale, run.losses) in checked:
            continue
        checked.add((run.network, run.scale, run.losses))
        try:
            raise_errors(validate_file(run.opt, is_train=True))
            batch = {'batch_size_per_gpu': run.opt['datasets']['train'].get('batch_size_per_gpu', 0)}
            check_options({**run.opt, 'datasets': {'train': batch}, 'is_train': True})  # datasets are checked below
            if run.parent is None:
                _check_data(study, run)
        except UserError as err:
            where = f'{run.network}, x{run.scale}, {" then ".join(run.losses)}'
            raise UserErrors(f'{where}: {message}' for message in err.messages) from err


def _check_data(study: Study, run: Run) -> None:
    """Checks a run's datasets, and that they have the channels of its network."""
    train_set = run.opt['datasets']['train']
    datasets = {('datasets', 'train'): {**train_set, 'phase': 'train'},
                **{('benchmarks', name): {**study.get_benchmark(name, run.scale), 'phase': 'val'}
                   for name in study.config['benchmarks']}}
    for path, dataset_opt in datasets.items():  # their paths are relative to the study's folder
        roots = {key: os.path.relpath(os.path.join(os.path.realpath(study.folder), dataset_opt[key]))
                 for key in PATHS if key in dataset_opt}
        check_pairs({**dataset_opt, **roots, 'scale': run.scale}, path)
    channels = probe_shapes(build_network(run.opt['network_g']))[0][1]
    if (channels == 1) != (train_set.get('color') == 'y'):
        raise UserError(f'datasets.train.color: the network has {channels} input channels; write color: y for 1 '
                        'channel, and delete it for 3.')


def is_finished(study: Study, run: Run) -> bool:
    return (study.folder / 'scores' / f'{run.name}.json').exists()


def _build_option_files(study: Study) -> dict[Path, str]:
    """Path to content of the files that define the runs."""
    texts = {}
    for run in study.runs:
        benchmarks = [study.get_benchmark(name, run.scale) for name in study.config['benchmarks']]
        texts[study.folder / 'options' / f'{run.name}.yml'] = yaml.safe_dump(run.opt, sort_keys=False)
        texts[study.folder / 'options' / f'{run.name}.benchmarks.json'] = json.dumps(benchmarks, indent=1)
        if run.maps:
            texts[study.folder / 'options' / f'{run.name}.maps.json'] = json.dumps(run.maps, indent=1)
    return texts


def check_same_options(study: Study) -> None:
    """Checks that runs in the folder were defined by the same options; otherwise their results would be mixed up.

    Raises:
        UserError: names the file and a difference.
    """
    for path, text in _build_option_files(study).items():
        existing = path.read_text() if path.exists() else text
        if existing != text:
            changed = sorted(set(text.splitlines()) ^ set(existing.splitlines()))[0].strip()
            raise UserError(f"'{path}' belongs to a study with other options ({changed}). Give another --out, or "
                            'remove that folder.')


class _Queue:
    """Runs that wait to be started, and those in progress: each is one worker process, followed by one thread."""

    def __init__(self, study: Study, jobs: int, report: Callable[[str], object], lock: int | None):
        self.study, self.jobs, self.report, self.lock = study, jobs, report, lock
        self.waiting = [run for run in study.runs if not is_finished(study, run)]
        self.total, self.started = len(self.waiting), 0
        self.processes: dict[str, subprocess.Popen] = {}
        self.failed: dict[str, str] = {}
        self.changed = threading.Condition()

    def work(self) -> dict[str, str]:
        self.report(f'{len(self.study.runs)} trainings, {self.total} to do, in {self.study.folder}')
        threads = [threading.Thread(target=self._work_in_slot, args=(slot,), daemon=True) for slot in range(self.jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(1)  # without a timeout it would block Ctrl-C
        finally:
            with self.changed:
                self.waiting.clear()
                for process in self.processes.values():
                    process.terminate()
            for thread in threads:
                thread.join()
        return self.failed

    def _work_in_slot(self, slot: int) -> None:
        """Does one run after the other."""
        while True:
            with self.changed:
                run = self._find_next()
                while run is None and self.waiting:
                    self.changed.wait(1)
                    run = self._find_next()
                if run is None:
                    return
                self.waiting.remove(run)
                self.started += 1
                number = self.started
            reason = self._do(run, number, slot)
            with self.changed:
                if not is_finished(self.study, run):
                    self._fail(run, reason)
                self.changed.notify_all()

    def _do(self, run: Run, number: int, slot: int) -> str:
        """Trains and scores a run. Returns the reason to give if it has not finished."""
        try:
            with self.changed:
                process = self.processes[run.name] = self._start(run, slot)
            self.report(f'{number} of {self.total}: {run.name}')
            last_lines = self._follow(process, run)
            return f'ended with status {process.returncode}:\n{"".join(last_lines)}'.rstrip()
        except Exception as err:  # such as out of memory, or a closed pipe in `report`; the thread has to go on
            return f'failed ({type(err).__name__}: {err}).'
        finally:
            with self.changed:
                self.processes.pop(run.name, None)

    def _find_next(self) -> Run | None:
        """The first run whose parent is finished."""
        finished = {run.name for run in self.study.runs if is_finished(self.study, run)}
        return next((run for run in self.waiting if run.parent is None or run.parent in finished), None)

    def _fail(self, run: Run, reason: str) -> None:
        self.failed[run.name] = reason
        for child in [child for child in self.waiting if child.parent == run.name]:
            self.waiting.remove(child)
            self._fail(child, f'was not started because {run.name} failed.')

    def _start(self, run: Run, slot: int) -> subprocess.Popen:
        environment = dict(os.environ)
        environment.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // self.jobs)))
        visible = environment.get('CUDA_VISIBLE_DEVICES')
        gpus = list(map(str, range(torch.cuda.device_count()))) if visible is None else visible.split(',')
        if gpus:
            environment['CUDA_VISIBLE_DEVICES'] = gpus[slot % len(gpus)]
        return subprocess.Popen(
            [sys.executable, '-u', '-m', 'udl_plugin.studies.worker', run.name], cwd=self.study.folder, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace',
            pass_fds=() if self.lock is None else (self.lock,))

    def _follow(self, process: subprocess.Popen, run: Run) -> list[str]:
        """Reports progress until the process ends. Returns its last lines, for an error message."""
        last_lines: collections.deque[str] = collections.deque(maxlen=12)
        with process:
            for line in process.stdout or ():
                last_lines.append(line)
                progress = re.search(r'iter: *([\d,]+),.*(eta: [\d:]+)', line)
                if progress:
                    self.report(f'  {run.name}: iteration {progress[1].replace(",", "")} of '
                                f'{run.opt["train"]["total_iter"]}, {progress[2]}')
            process.wait()
        return list(last_lines)
