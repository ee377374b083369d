"""Trains the runs of a study, several at once. Finished runs are skipped, killed ones resume from their checkpoint."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from udl_plugin.config.cross_checks import check_network, check_options
from udl_plugin.config.schema import validate_file
from udl_plugin.errors import UserError, UserErrors, raise_errors
from udl_plugin.studies.config import PATHS, Config, Run, Study
from udl_plugin.studies.evaluate import complete_dataset_opt
from udl_plugin.utils.atomic_io import atomic_write, exclusive_lock
from udl_plugin.utils.paths import relative_path


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
        return _train_runs(study, jobs, report, lock)


def _check_runs(study: Study) -> None:
    """Raises errors now that a run would raise at its start or, worse, at its end."""
    for run in {(run.network, run.scale, run.losses): run for run in study.runs}.values():
        try:
            raise_errors(validate_file(run.opt, is_train=True))
            if run.parent is None:
                check_network({**run.opt, 'is_train': True})
                datasets = _build_datasets(study, run)
            else:  # of the data that its parent is checked with
                datasets = {'train': {'batch_size_per_gpu': run.opt['datasets']['train'].get('batch_size_per_gpu', 0)}}
            check_options({**run.opt, 'datasets': datasets, 'is_train': True})
        except UserError as err:
            where = f'{run.network}, x{run.scale}, {" then ".join(run.losses)}'
            raise UserErrors(f'{where}: {message}' for message in err.messages) from err


def _build_datasets(study: Study, run: Run) -> dict[str, Config]:
    """Options of a run's training set and of the benchmarks, as `parse_options` returns them, seen from here."""
    datasets = {'train': {**run.opt['datasets']['train'], 'phase': 'train', 'scale': run.scale}}
    for name in study.config['benchmarks']:
        datasets[name] = complete_dataset_opt(study.get_benchmark(name, run.scale), run.scale)
    for dataset_opt in datasets.values():  # in the file, paths are relative to the study's folder
        dataset_opt.update({key: relative_path(os.path.join(os.path.realpath(study.folder), dataset_opt[key]))
                            for key in PATHS if key in dataset_opt})
    return datasets


def is_finished(study: Study, run: Run) -> bool:
    return (study.folder / 'scores' / f'{run.name}.json').exists()


def _build_option_files(study: Study) -> dict[Path, str]:
    """Path to content of the files that define the runs."""
    texts = {}
    for run in study.runs:
        benchmarks = [study.get_benchmark(name, run.scale) for name in study.config['benchmarks']]
        texts[study.folder / 'options' / f'{run.name}.yml'] = yaml.safe_dump(run.opt, sort_keys=False)
        texts[study.folder / 'options' / f'{run.name}.benchmarks.json'] = json.dumps(benchmarks, indent=1)
    return texts


def check_same_options(study: Study) -> None:
    """Checks that runs in the folder were defined by the same options; otherwise their results would be mixed up.

    Raises:
        UserError: names the file and a difference.
    """
    for path, text in _build_option_files(study).items():
        existing = path.read_text(encoding='utf-8') if path.exists() else text
        if existing != text:
            changed = sorted(set(text.splitlines()) ^ set(existing.splitlines()))[0].strip()
            raise UserError(f"'{path}' belongs to a study with other options ({changed}). Give another --out, or "
                            'remove that folder.')


def _train_runs(study: Study, jobs: int, report: Callable[[str], object], lock: int | None) -> dict[str, str]:
    """Starts runs whose parents are finished, `jobs` at once, until there are no more; see `run_study`."""
    waiting = [run for run in study.runs if not is_finished(study, run)]
    total, started = len(waiting), 0
    running: dict[int, _Worker] = {}  # by slot, from 0 to jobs - 1
    failed: dict[str, str] = {}
    report(f'{len(study.runs)} trainings, {total} to do, in {study.folder}')
    try:
        while waiting or running:
            for slot in set(range(jobs)) - running.keys():
                unfinished = {run.name for run in [*waiting, *(worker.run for worker in running.values())]}
                run = next((run for run in waiting if run.parent not in unfinished), None)
                if run is not None:
                    waiting.remove(run)
                    started += 1
                    report(f'{started} of {total}: {run.name}')
                    running[slot] = _Worker(study, run, slot, jobs, lock)
            time.sleep(0.2)
            for slot, worker in list(running.items()):
                has_ended = worker.process.poll() is not None
                worker.report_progress(report)
                if has_ended:
                    del running[slot]
                    if not is_finished(study, worker.run):
                        failed[worker.run.name] = worker.describe_end()
            for run in list(waiting):  # a parent is before its children
                if run.parent in failed:
                    waiting.remove(run)
                    failed[run.name] = f'was not started because {run.parent} failed.'
    finally:
        for worker in running.values():
            worker.process.terminate()
        for worker in running.values():
            worker.process.wait()
    return failed


class _Worker:
    """A run in progress, in a process of its own. Its output is in `logs/NAME.txt` in the study's folder."""

    def __init__(self, study: Study, run: Run, slot: int, jobs: int, lock: int | None):
        self.run, self.log = run, study.folder / 'logs' / f'{run.name}.txt'
        environment = {**os.environ, 'PYTHONIOENCODING': 'utf-8'}  # of the log, on Windows too
        if run.opt.get('imports'):  # modules are searched in the current folder
            environment['PYTHONPATH'] = os.pathsep.join(filter(None, [os.getcwd(), environment.get('PYTHONPATH')]))
        environment.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // jobs)))
        visible = environment.get('CUDA_VISIBLE_DEVICES')
        gpus = list(map(str, range(torch.cuda.device_count()))) if visible is None else visible.split(',')
        if gpus:
            environment['CUDA_VISIBLE_DEVICES'] = gpus[slot % len(gpus)]
        self.log.parent.mkdir(exist_ok=True)
        with open(self.log, 'wb') as output:
            self.process = subprocess.Popen(
                [sys.executable, '-u', '-m', 'udl_plugin.studies.worker', run.name], cwd=study.folder, env=environment,
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
                pass_fds=() if lock is None else (lock,))
        self._position = 0  # in the log, up to where progress is reported

    def report_progress(self, report: Callable[[str], object]) -> None:
        """Reports the iterations that the log has in addition to the last call."""
        with open(self.log, encoding='utf-8', errors='replace') as log:
            log.seek(self._position)
            lines = log.readlines()
            self._position = log.tell()
        for line in lines:
            progress = re.search(r'iter: *([\d,]+),.*(eta: [\d:]+)', line)
            if progress:
                report(f'  {self.run.name}: iteration {progress[1].replace(",", "")} of '
                       f'{self.run.opt["train"]["total_iter"]}, {progress[2]}')

    def describe_end(self) -> str:
        """Why the run is not finished: exit status and last lines."""
        lines = self.log.read_text(encoding='utf-8', errors='replace').splitlines()[-12:]
        return '\n'.join([f'ended with status {self.process.returncode}:', *lines])
