"""One run of a study, in a process of its own: python -m udl_plugin.studies.worker NAME, in the study's folder.

Writes the maps that options/NAME.maps.json asks for, if that is there, trains options/NAME.yml, goes on where an
earlier process was killed, scores the network on the benchmarks that are named in options/NAME.benchmarks.json, and
writes scores/NAME.json. Ends when its standard input does: with whoever started it.
"""
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import yaml

from udl_plugin.errors import UserError
from udl_plugin.inference.cost import machine
from udl_plugin.training import run
from udl_plugin.utils.atomic_io import atomic_write


def main():
    # by number: the lock of sys.stdin would be held, and the processes that load data want to close that
    threading.Thread(target=_end_with_the_parent, args=(os.dup(0),), daemon=True).start()
    name = sys.argv[1]
    yml, experiment = Path('options', f'{name}.yml'), Path('experiments', name)
    if not (experiment / 'models' / 'net_g_latest.pth').exists():  # written last, and whole
        if not list(experiment.glob('training_states/*.state')):
            for folder in (experiment, Path('tb_logger', name)):  # upstream would rename it and begin beside it
                shutil.rmtree(folder, ignore_errors=True)
        sys.argv = ['udl-train', '-opt', str(yml), '--auto_resume']
        status = write_maps(name) or run.run('basicsr.train', 'train_pipeline')
        if status:
            return status
    opt = yaml.safe_load(yml.read_text())
    scores = score(opt, json.loads(Path('options', f'{name}.benchmarks.json').read_text()))
    atomic_write(Path('scores', f'{name}.json'), json.dumps({
        **history(experiment), 'machine': machine(), 'scores': scores,
        'curve': curve(Path('tb_logger', name), opt['datasets']['val']['name'], opt['train']['total_iter'])},
        indent=1).encode())
    shutil.rmtree(experiment / 'training_states')  # to go on from the middle, which is done; and large
    for path in experiment.glob('models/net_g_[0-9]*.pth'):
        path.unlink()
    shutil.rmtree(Path('maps', name), ignore_errors=True)  # large as well
    return 0


def write_maps(name):
    """Writes the maps that a run's data set names; returns the exit status."""
    path = Path('options', f'{name}.maps.json')
    if not path.exists():
        return 0
    from udl_plugin.prepare.uncertainty_maps import prepare_uncertainty
    maps = json.loads(path.read_text())
    if not Path(maps['out']).exists():
        try:
            prepare_uncertainty(**maps, force=True)  # a kill may have left some that are moved first
        except UserError as err:
            print(err, file=sys.stderr)
            return 2
    return 0


def score(opt, benchmarks):
    """Benchmark to image to PSNR and SSIM."""
    from udl_plugin.studies.evaluate import evaluate, scores_of, test_options
    scores = {benchmark['name']: {} for benchmark in benchmarks}

    def on_image(set_name, image):
        scores[set_name][image.name] = scores_of(image.sr, image.gt, opt['scale'])

    path = {'pretrain_network_g': f'experiments/{opt["name"]}/models/net_g_latest.pth',
            'param_key_g': 'params_ema' if opt['train'].get('ema_decay') else 'params'}
    evaluate(test_options(opt['name'], opt['network_g'], path, opt['scale'], benchmarks), on_image)
    return scores


def history(experiment):
    """Seconds of training, those before a kill included, and how often it went on after one: upstream's logs tell."""
    logs = list(experiment.glob('train_*.log'))
    begun = [time.mktime(time.strptime(log.stem[-15:], '%Y%m%d_%H%M%S')) for log in logs]
    return {'seconds': sum(log.stat().st_mtime - start for log, start in zip(logs, begun)), 'resumed': len(logs) - 1}


def curve(folder, benchmark, total_iter):
    """Iteration to PSNR, as TensorBoard has it. (Upstream's last validation says an iteration two too high.)"""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder)).Reload()
    tag = f'metrics/{benchmark}/psnr'
    values = events.Scalars(tag) if tag in events.Tags()['scalars'] else []
    return {min(event.step, total_iter): event.value for event in values}


def _end_with_the_parent(handle):
    while os.read(handle, 1):
        pass
    os._exit(1)


if __name__ == '__main__':
    sys.exit(main())
