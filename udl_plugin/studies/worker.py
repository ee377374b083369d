"""One run of a study, in its own process: `python -m udl_plugin.studies.worker NAME`, in the study's folder.

Writes the uncertainty maps that options/NAME.yml names, if any; trains it, or resumes it; scores the network on the
benchmarks in options/NAME.benchmarks.json; writes scores/NAME.json. Exits when its standard input closes, that is,
together with the process that started it.
"""
from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import yaml

from udl_plugin.archs.wrapping import network_stage
from udl_plugin.checkpoints.safe_load import load_checkpoint
from udl_plugin.checkpoints.state_dict import get_uncertainty_loss, read_state_dict
from udl_plugin.inference.cost import machine
from udl_plugin.studies.config import Config
from udl_plugin.studies.evaluate import Scores, build_test_opt, evaluate
from udl_plugin.training.run import Arguments, run
from udl_plugin.utils.atomic_io import atomic_write
from udl_plugin.utils.user_imports import get_imports, import_user_modules


def main() -> int:
    # a copy of the file descriptor: data-loader processes close sys.stdin, and would wait for its lock
    stdin = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # on Windows, processes started here would wait for that read
    threading.Thread(target=_exit_with_parent, args=(stdin,), daemon=True).start()
    name = sys.argv[1]
    yml, experiment, curves = Path('options', f'{name}.yml'), Path('experiments', name), Path('tb_logger', name)
    opt = yaml.safe_load(yml.read_text(encoding='utf-8'))
    import_user_modules(get_imports(opt))
    if not (experiment / 'models' / 'net_g_latest.pth').exists():  # written last
        if not list(experiment.glob('training_states/*.state')):
            for folder in (experiment, curves):  # BasicSR would rename it and start a new one
                shutil.rmtree(folder, ignore_errors=True)
        write_maps(opt)
        status = run(True, Arguments(str(yml), auto_resume=True))
        if status:
            return status
    scores, maps = score(opt, json.loads(Path('options', f'{name}.benchmarks.json').read_text(encoding='utf-8')))
    curve = read_curve(curves, opt['datasets']['val']['name'], opt['train']['total_iter'])
    atomic_write(Path('scores', f'{name}.json'), json.dumps(
        {'seconds': read_seconds(experiment), 'machine': machine(), 'scores': scores, 'maps': maps, 'curve': curve},
        indent=1).encode())
    shutil.rmtree(experiment / 'training_states')  # large, and only needed to resume
    for path in experiment.glob('models/net_g_[0-9]*.pth'):
        path.unlink()
    shutil.rmtree(Path('maps', name), ignore_errors=True)  # large too
    return 0


def write_maps(opt: Config) -> None:
    """Writes the maps that a run's dataset reads, if it reads any."""
    train_set, path = opt['datasets']['train'], opt['path']
    out = train_set.get('dataroot_uncertainty')
    if out is not None and not Path(out).exists():
        from udl_plugin.prepare.uncertainty_maps import prepare_uncertainty
        prepare_uncertainty(path['pretrain_network_g'], train_set['dataroot_gt'], train_set['dataroot_lq'], out,
                            force=True)  # one may have been killed here


def score(opt: Config, benchmarks: list[Config]) -> tuple[Scores, Scores]:
    """The scores of a finished run, and those of its uncertainty maps; without a map, of no image."""
    path = {'pretrain_network_g': f'experiments/{opt["name"]}/models/net_g_latest.pth'}
    content = load_checkpoint(path['pretrain_network_g'])
    has_map = network_stage(read_state_dict(path['pretrain_network_g'])[0]) != 'plain'
    scores: Scores = {benchmark['name']: {} for benchmark in benchmarks}
    maps: Scores = {benchmark['name']: {} for benchmark in benchmarks}
    for image in evaluate(build_test_opt(opt['name'], opt['network_g'], path, opt['scale']), benchmarks, has_map):
        scores[image.benchmark][image.name] = image.compute_scores(opt['scale'])
        if has_map:
            maps[image.benchmark][image.name] = image.compute_map_scores(
                opt['scale'], get_uncertainty_loss(content) or 'ESU')
    return scores, maps


def read_seconds(experiment: Path) -> float:
    """Seconds of training in all processes together, from the log files."""
    return sum(log.stat().st_mtime - time.mktime(time.strptime(log.stem[-15:], '%Y%m%d_%H%M%S'))
               for log in experiment.glob('train_*.log'))


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
