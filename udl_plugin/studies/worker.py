"""One run of a study, in its own process: `python -m udl_plugin.studies.worker NAME`, in the study's folder.

Writes the uncertainty maps that options/NAME.maps.json asks for, if that exists; trains options/NAME.yml, or resumes
it; scores the network on the benchmarks in options/NAME.benchmarks.json; writes scores/NAME.json. Exits when its
standard input closes, that is, together with the process that started it.
"""
from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from udl_plugin.errors import UserError
from udl_plugin.inference.cost import machine
from udl_plugin.training import run
from udl_plugin.utils.atomic_io import atomic_write


def main() -> int:
    # a copy of the file descriptor: data-loader processes close sys.stdin, and would wait for its lock
    threading.Thread(target=_exit_with_parent, args=(os.dup(0),), daemon=True).start()
    name = sys.argv[1]
    yml, experiment = Path('options', f'{name}.yml'), Path('experiments', name)
    if not (experiment / 'models' / 'net_g_latest.pth').exists():  # written last
        if not list(experiment.glob('training_states/*.state')):
            for folder in (experiment, Path('tb_logger', name)):  # BasicSR would rename it and start a new one
                shutil.rmtree(folder, ignore_errors=True)
        status = write_maps(name) or train(yml)
        if status:
            return status
    opt = yaml.safe_load(yml.read_text())
    scores = score(opt, json.loads(Path('options', f'{name}.benchmarks.json').read_text()))
    atomic_write(Path('scores', f'{name}.json'), json.dumps({
        **read_history(experiment), 'machine': machine(), 'scores': scores,
        'curve': read_curve(Path('tb_logger', name), opt['datasets']['val']['name'], opt['train']['total_iter'])},
        indent=1).encode())
    shutil.rmtree(experiment / 'training_states')  # large, and only needed to resume
    for path in experiment.glob('models/net_g_[0-9]*.pth'):
        path.unlink()
    shutil.rmtree(Path('maps', name), ignore_errors=True)  # large too
    return 0


def train(yml: Path) -> int:
    """Trains as `udl-train` does. Returns the exit status."""
    return run.main(True, ['-opt', str(yml), '--auto_resume'])


def write_maps(name: str) -> int:
    """Writes the maps that a run's dataset reads, if any. Returns the exit status."""
    path = Path('options', f'{name}.maps.json')
    if not path.exists():
        return 0
    from udl_plugin.prepare.uncertainty_maps import prepare_uncertainty
    maps = json.loads(path.read_text())
    if not Path(maps['out']).exists():
        try:
            prepare_uncertainty(**maps, force=True)  # replaces maps of a process that was killed
        except UserError as err:
            print(err, file=sys.stderr)
            return 2
    return 0


def score(opt: dict[str, Any], benchmarks: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Benchmark to image to metric."""
    from udl_plugin.studies.evaluate import ImageResult, build_test_opt, compute_scores, evaluate
    scores: dict[str, dict[str, dict[str, float]]] = {benchmark['name']: {} for benchmark in benchmarks}

    def on_image(set_name: str, image: ImageResult) -> None:
        scores[set_name][image.name] = compute_scores(image.sr, image.gt, opt['scale'])

    path = {'pretrain_network_g': f'experiments/{opt["name"]}/models/net_g_latest.pth',
            'param_key_g': 'params_ema' if opt['train'].get('ema_decay') else 'params'}
    evaluate(build_test_opt(opt['name'], opt['network_g'], path, opt['scale'], benchmarks), on_image)
    return scores


def read_history(experiment: Path) -> dict[str, float]:
    """Seconds of training in all processes together, and how often it was resumed, from the log files."""
    logs = list(experiment.glob('train_*.log'))
    starts = [time.mktime(time.strptime(log.stem[-15:], '%Y%m%d_%H%M%S')) for log in logs]
    return {'seconds': sum(log.stat().st_mtime - start for log, start in zip(logs, starts)), 'resumed': len(logs) - 1}


def read_curve(folder: Path, benchmark: str, total_iter: int) -> dict[int, float]:
    """Iteration to PSNR, from TensorBoard. BasicSR's last validation has an iteration above `total_iter`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder)).Reload()
    tag = f'metrics/{benchmark}/psnr'
    values = events.Scalars(tag) if tag in events.Tags()['scalars'] else []
    return {min(event.step, total_iter): event.value for event in values}


def _exit_with_parent(stdin: int) -> None:
    while os.read(stdin, 1):
        pass
    os._exit(1)


if __name__ == '__main__':
    sys.exit(main())
