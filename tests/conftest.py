"""What the tests share: a small network, small data, and a way to run an entry point as a user would."""
import copy
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from forked_python import PATIENCE, run_module

import udl_plugin.archs  # noqa: F401 (first: makes basicsr importable and registers our names)
from udl_plugin.data.lmdb_io import encode, open_writer, shape_of
from udl_plugin.prepare.datasets import prepare_benchmark
from udl_plugin.prepare.demo_data import validation_photos, write_demo_data

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ROOT / 'options'
TINY = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2, 'upscale': 2}

THREADS = 1 if 'PYTEST_XDIST_WORKER' in os.environ else 2  # two tests at a time: a core each
os.environ['OMP_NUM_THREADS'] = str(THREADS)  # of the processes that tests start
torch.set_num_threads(THREADS)
logging.raiseExceptions = False  # BasicSR's handler keeps the stderr of the test that first made it


def pytest_collection_modifyitems(items):
    """Skips tests marked `gpu` where there is none."""
    for item in items:
        if item.get_closest_marker('gpu') and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason='needs a CUDA GPU'))


def random_images(count=3, height=12, width=None):
    """`image_0` and so on to uint8 images."""
    generator = np.random.default_rng(0)
    return {f'image_{number}': generator.integers(0, 256, (height, width or height, 3), dtype=np.uint8)
            for number in range(count)}


def write_images(path, images):
    """Writes an LMDB where `path` ends in `.lmdb`, otherwise a folder of PNG files. Returns `path`."""
    with open_writer(path) as records:
        for name, img in images.items():
            records.put(name, encode(img), shape_of(img))
    return path


def read_pairs(gt, lq, scale=2):
    """Key to GT and LQ image of two LMDBs, as BasicSR's PairedImageDataset reads them."""
    from basicsr.data import build_dataset
    pairs = build_dataset({'name': 'x', 'type': 'PairedImageDataset', 'phase': 'val', 'scale': scale,
                           'io_backend': {'type': 'lmdb'}, 'dataroot_gt': str(gt), 'dataroot_lq': str(lq)})

    def image(tensor):
        return (tensor * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1]

    return {pair['lq_path']: (image(pair['gt']), image(pair['lq']))
            for pair in (pairs[number] for number in range(len(pairs)))}


class Malicious:
    """As pickle reads it: a call of any function."""

    def __reduce__(self):
        return exec, ("open('payload', 'w').write('it ran')",)


def write_malicious(path, content=None):
    """Writes a checkpoint that, where it is unpickled, leaves a file `payload`. Returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**(content or {}), 'params': {'weight': torch.rand(2)}, 'x': Malicious()}, path)
    return path


# kills the process at the n-th call of a function of a module, or of a class in it
KILLER = """
import importlib, os, signal, sys
owner, name, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
del sys.argv[1:4]
module, _, cls = owner.partition(':')
owner = importlib.import_module(module)
owner = getattr(owner, cls) if cls else owner
function, calls = getattr(owner, name), []
def killer(*args, **kwargs):
    calls.append(1)
    if len(calls) == n:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)
setattr(owner, name, killer)
"""


def run_killed(moment, script, *arguments):
    """Runs `script` in a process of its own, up to a moment such as `pathlib:Path rename 2`, where it is killed."""
    killed = subprocess.run([sys.executable, '-c', KILLER + script, *moment.split(), *map(str, arguments)],
                            capture_output=True, check=False)
    assert killed.returncode == -9


@pytest.fixture(autouse=True)
def fresh_mmengine():
    """mmengine tells the runs of one process by the second in which they begin, and tests are quicker."""
    yield
    manager = sys.modules.get('mmengine.utils.manager')
    for kind in manager.ManagerMixin.__subclasses__() if manager else ():
        kind._instance_dict.clear()


@pytest.fixture
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def demo_data(tmp_path_factory):
    """The folder with the demo's data sets, written once."""
    root = tmp_path_factory.mktemp('demo_data')
    write_demo_data(root)
    return root


@pytest.fixture(scope='session')
def small_data(tmp_path_factory, demo_data):
    """The demo's data sets with a part of its validation photo: validation takes longer than a short training."""
    root = tmp_path_factory.mktemp('small_data')
    for path in demo_data.glob('*.lmdb'):
        (root / path.name).symlink_to(path)
    write_images(root / 'photos', {name: photo[80:176, 176:272] for name, photo in validation_photos().items()})
    prepare_benchmark(root / 'photos', [2], root, name='val')
    return root


def lively(net):
    """Makes a DPDNN as after training: a fresh denoiser adds next to nothing, and a test would not see it."""
    for module in net.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
    with torch.no_grad():
        x = net.up(torch.rand(1, net.denoiser.conv_last.out_channels, 16, 16))
        net.denoiser.conv_last.weight /= net.denoiser(x).std() / 0.3
    return net


def model_options(step, folder, model_type='UDLModel', **train):
    """What parse_options makes of a yml of that step, without data sets."""
    network, loss = ('EDSRVar', 'ESU') if step == 1 else ('EDSRTwo', 'UDL')
    return {
        'name': 'test', 'model_type': model_type, 'scale': 2, 'num_gpu': 0, 'dist': False, 'rank': 0, 'world_size': 1,
        'is_train': True, 'datasets': {}, 'network_g': {'type': network, **TINY},
        'path': {'pretrain_network_g': None, 'models': str(folder), 'training_states': str(folder),
                 'visualization': str(folder / 'visualization')},
        'train': {'optim_g': {'type': 'Adam', 'lr': 1e-2}, 'total_iter': 10,
                  'scheduler': {'type': 'MultiStepLR', 'milestones': [5], 'gamma': 0.5},
                  'pixel_opt': {'type': loss}, **train},
        'val': {'save_img': False, 'suffix': None,
                'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True}}},
    }


def study_config(**changes):
    """A small study; None as value drops a key."""
    train = {'total_iter': 4, 'optim_g': {'type': 'Adam', 'lr': 1e-3},
             'scheduler': {'type': 'MultiStepLR', 'milestones': [2], 'gamma': 0.5}}
    whole = {
        'name': 'tiny', 'baseline': 'L1', 'seeds': [0], 'scales': [2],
        'networks': {'tiny': {'type': 'EDSR', **{key: value for key, value in TINY.items() if key != 'upscale'}}},
        'variants': {'L1': [{'type': 'L1Loss'}, {'type': 'L1Loss'}], 'UDL': [{'type': 'ESU'}, {'type': 'UDL'}]},
        'steps': [train, {**train, 'total_iter': 6}],
        'datasets': {'train': {
            'type': 'PairedImageDataset', 'dataroot_gt': 'datasets/demo/demo_train_HR_sub.lmdb',
            'dataroot_lq': 'datasets/demo/demo_train_LR_bicubic_X{scale}_sub.lmdb', 'io_backend': {'type': 'lmdb'},
            'lq_size': 12, 'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2,
            'dataset_enlarge_ratio': 1}},
        'benchmarks': {'astronaut': 'datasets/demo/val'},
        'val': {'benchmark': 'astronaut', 'val_freq': 2},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 2},
        'num_gpu': 0, **changes,
    }
    return copy.deepcopy({key: value for key, value in whole.items() if value is not None})


class Runner:
    """A folder in which entry points run on shrunken versions of the demo's ymls."""

    def __init__(self, folder, data):
        self.folder = folder
        (folder / 'datasets').mkdir()
        (folder / 'datasets' / 'demo').symlink_to(data)

    def write_yml(self, name, source='demo/train_udl_step1', **changes):
        """Writes `name`.yml: options/`source`.yml with a tiny network, four iterations, on the CPU.

        Changes are given with `__` for each level: `train__total_iter=2`; None as value of a section drops it.
        """
        with open(OPTIONS / f'{source}.yml') as file:
            opt = yaml.safe_load(file)
        opt.update(name=name, num_gpu=0)
        opt['network_g'].update(TINY)
        if 'train' in opt:
            opt['train']['total_iter'] = 4
            opt['logger'].update(print_freq=1, save_checkpoint_freq=2)
            opt['val']['val_freq'] = 4
            opt['datasets']['train'].update(gt_size=24, batch_size_per_gpu=2)
        for path, value in changes.items():
            *sections, key = path.split('__')
            section = opt
            for part in sections:
                section = section[part]
            section[key] = value
        path = self.folder / f'{name}.yml'
        path.write_text(yaml.safe_dump(opt))
        return path

    def run(self, *command, **environment):
        """Runs Python with `command` in the folder; returns the finished process with its text, stderr included.

        One that hangs, or leaves a process behind that does, fails the test with the stacks of all of them.
        """
        if command[0] == '-m' and not environment:
            return run_module(self.folder, *command[1:])
        environment = {**os.environ, 'UDL_PLUGIN_AUTOLOAD': '1', 'PYTHONFAULTHANDLER': '1', **environment}
        command = [sys.executable, *map(str, command)]
        with subprocess.Popen(command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env=environment, start_new_session=True) as process:
            try:
                text, _ = process.communicate(timeout=PATIENCE)
            except BaseException as err:
                os.killpg(process.pid, signal.SIGABRT)
                if isinstance(err, subprocess.TimeoutExpired):
                    pytest.fail(f'{command} hangs: {process.communicate()[0]}')
                raise
        return subprocess.CompletedProcess(command, process.returncode, text)

    def train(self, yml, *arguments):
        return self.run('-m', 'udl_plugin.train', '-opt', yml, *arguments)

    def test(self, yml):
        return self.run('-m', 'udl_plugin.test', '-opt', yml)


@pytest.fixture
def runner(tmp_path, small_data):
    return Runner(tmp_path, small_data)
