"""What Windows, macOS and Python 3.14 do otherwise than Linux, simulated here."""
import ast
import itertools
import multiprocessing
import ntpath
import os
import signal
import subprocess
import sys
import threading
from multiprocessing import connection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, random_images, write_images
from torch.utils._python_dispatch import TorchDispatchMode

from udl_plugin.archs import EDSRVar
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.cli import common, compare, prepare
from udl_plugin.data import image_io, lmdb_io
from udl_plugin.data.checked_dataset import CheckedDataset
from udl_plugin.errors import UserError
from udl_plugin.inference import upscaler
from udl_plugin.training.resumable_loader import ResumableDataLoader
from udl_plugin.utils import parallel, paths
from udl_plugin.utils.atomic_io import atomic_folders

posix = pytest.mark.skipif(sys.platform == 'win32', reason='of POSIX')


def run_python(code, *arguments, **options):
    return subprocess.run([sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True,
                          check=False, timeout=120, **options)


# ---- text

SOURCES = [*ROOT.glob('udl_plugin/**/*.py'), *ROOT.glob('scripts/*.py'), ROOT / 'setup.py']


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_have_an_encoding(path):
    """The default is that of the country on Windows."""
    for call in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, 'attr', getattr(call.func, 'id', ''))
        is_text = name in ('read_text', 'write_text') or (isinstance(call.func, ast.Name) and name == 'open' and not (
            len(call.args) > 1 and 'b' in call.args[1].value))
        assert not is_text or 'encoding' in [word.arg for word in call.keywords], f'line {call.lineno}'


def test_output_without_the_characters_of_a_name():
    """A command whose output goes to a pipe or a file."""
    code = 'import argparse; from udl_plugin.cli.common import run_command; run_command("x", ' \
           'argparse.Namespace(quiet=True), lambda args: print("写真.png"), "")'
    result = run_python(code, env={**os.environ, 'PYTHONIOENCODING': 'cp1252'})
    assert (result.returncode, result.stdout) == (0, '\\u5199\\u771f.png\n'), result.stderr


# ---- signals and processes

WITHOUT_POSIX = """
import asyncio  # before: on Python 3.13 it needs os.sysconf
import os, signal, sys
for module, names in ((signal, ('SIGHUP', 'pthread_sigmask', 'sigwaitinfo')), (os, (
        'sched_getaffinity', 'sysconf', 'statvfs', 'getuid'))):
    for name in names:
        delattr(module, name)
sys.modules.update(dict.fromkeys(('fcntl', 'resource', 'pwd')))
import importlib, pathlib
from udl_plugin.cli.prepare import main
if __name__ == '__main__':
    folder = pathlib.Path(importlib.import_module('udl_plugin').__file__).parent
    for path in folder.rglob('*.py'):
        if 'mmengine' not in path.parts and path.name != 'mm.py':  # their processes import pwd
            importlib.import_module('.'.join(path.relative_to(folder.parent).with_suffix('').parts))
    from udl_plugin.training.signals import StopSignal, ignore_signals_in_worker
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
    assert stop.number == signal.SIGINT
    status = main(['train', '--hr', sys.argv[1], '--out', sys.argv[2], '--scales', '2', '--crop', '12', '--step', '12',
                   '--workers', '2', '--quiet'])
    ignore_signals_in_worker()
    sys.exit(status)
"""


def test_modules_without_posix(tmp_path):
    hr = write_images(tmp_path / 'hr', random_images(3, 24))
    (tmp_path / 'main.py').write_text(WITHOUT_POSIX, encoding='utf-8')
    command = [sys.executable, str(tmp_path / 'main.py'), str(hr), str(tmp_path / 'out')]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120,
                            env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / 'out').glob('*.lmdb/data.mdb'))) == 2


@posix
@pytest.mark.parametrize('method', ['spawn', 'forkserver'])
def test_data_loader_workers(tmp_path, monkeypatch, method):
    """They get the same crops as forked ones, and end when this process ends them, whoever started them."""
    from basicsr.data import build_dataset
    monkeypatch.setenv('OMP_NUM_THREADS', '1')  # a second thread would take SIGTERM
    gt, lq = (write_images(tmp_path / f'{size}.lmdb', random_images(6, size)) for size in (48, 24))

    def build_loader(start):
        dataset_opt = {'name': 'x', 'type': 'PairedImageDataset', 'phase': 'train', 'scale': 2, 'dataroot_gt': str(gt),
                       'dataroot_lq': str(lq), 'io_backend': {'type': 'lmdb'}, 'gt_size': 16, 'use_hflip': True,
                       'use_rot': True, 'batch_size_per_gpu': 2, 'num_worker_per_gpu': 1}
        opt = {'num_gpu': 0, 'dist': False, 'rank': 0, 'world_size': 1, 'manual_seed': 7,
               'datasets': {'train': dataset_opt}}
        loader = ResumableDataLoader(CheckedDataset(build_dataset(dataset_opt), 'datasets.train'), opt)
        loader.loader.multiprocessing_context = start
        return loader

    batches = []
    for start in ('fork', method):
        torch.manual_seed(1)
        iterations = build_loader(start).iterations(0, 4)
        batches.append([batch['gt'] for _, batch in itertools.islice(iterations, 3)])
    assert all(map(torch.equal, *batches))
    if hasattr(signal, 'sigwaitinfo'):
        worker, = multiprocessing.active_children()
        worker.terminate()
        worker.join(20)
        is_alive = worker.is_alive()
        worker.kill()
        assert not is_alive


def end_at_once():
    os._exit(1)


def test_worker_that_ends_while_its_pipe_is_open():
    """On Windows, this process has the worker's end of the pipe until the worker fetches it."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context('spawn').Process(target=end_at_once)
    process.start()
    assert connection.wait([process.sentinel], 60)
    timer = threading.Timer(20, theirs.close)
    timer.start()
    with pytest.raises(UserError, match='a worker process was killed'):
        parallel._receive(ours, process)
    assert timer.is_alive(), 'it waited'
    timer.cancel()
    theirs.close()


def test_process_of_a_study_leaves_its_standard_input_alone(tmp_path):
    """On Windows, a process that it starts would wait for the thread that reads it."""
    code = 'import os\nfrom udl_plugin.studies import worker\ntry: worker.main()\nexcept FileNotFoundError: ' \
           'print(os.read(0, 1), flush=True)'
    with subprocess.Popen([sys.executable, '-c', code, 'NAME'], cwd=tmp_path, stdin=subprocess.PIPE, text=True,
                          stdout=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(ROOT)}) as process:
        reader, = connection.wait([process.stdout], 60) or [None]
        assert reader and reader.readline() == "b''\n"


# ---- files

@pytest.mark.parametrize('fails', range(4))
def test_folder_that_cannot_be_renamed(tmp_path, monkeypatch, fails):
    """Windows renames no folder in which a training has a file open: the old data stays."""
    for name in ('HR', 'LR'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'old').touch()
    rename, calls = Path.rename, []

    def rename_or_fail(path, target):
        calls.append(path)
        if len(calls) == fails + 1:
            raise PermissionError(13, 'Access is denied', str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, 'rename', rename_or_fail)
    with pytest.raises(PermissionError), atomic_folders(tmp_path, ['HR', 'LR'], force=True) as unfinished:
        for name in ('HR', 'LR'):
            (unfinished / name).mkdir()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*')) == [
        'HR', 'HR/old', 'LR', 'LR/old']


def test_lmdb_is_as_large_as_its_data(tmp_path, monkeypatch):
    """On Windows, LMDB makes the file as large as its map."""
    monkeypatch.setattr(lmdb_io, 'MAP_BYTES', 1 << 16)
    monkeypatch.setattr(lmdb_io, 'MAX_GROWTH', 1 << 17)
    data = lmdb_io.encode(random_images(1, 200)['image_0'])
    with lmdb_io.LmdbWriter(tmp_path / 'x.lmdb') as writer:
        for number in range(5):
            writer.put(f'{number}', data, (200, 200, 3))
        writer._commit()
        map_size = writer.env.info()['map_size']
        os.truncate(tmp_path / 'x.lmdb/data.mdb', map_size)
    size = (tmp_path / 'x.lmdb/data.mdb').stat().st_size
    assert size < map_size < size + (1 << 17)
    with lmdb_io.open_lmdb(tmp_path / 'x.lmdb') as env, env.begin() as txn:
        assert [txn.get(b'%d' % number) for number in range(5)] == [data] * 5


def test_names_that_differ_in_case(tmp_path, monkeypatch):
    """Their results would be one file."""
    for name in ('Photo.png', 'photo.jpg'):
        (tmp_path / name).touch()
    assert len(image_io.list_images(tmp_path)) == 2 or image_io.CASE_INSENSITIVE
    monkeypatch.setattr(image_io, 'CASE_INSENSITIVE', True)
    with pytest.raises(UserError, match=r"Photo.png' and '.*photo.jpg' have the same name"):
        image_io.list_images(tmp_path)


def test_path_on_another_drive(monkeypatch):
    monkeypatch.setattr(paths.os, 'path', ntpath)
    monkeypatch.setattr(ntpath, 'abspath', lambda path: path)
    assert paths.relative_path('C:\\a\\b', 'C:\\a') == 'b'
    assert paths.relative_path('D:\\a\\b', 'C:\\a') == 'D:\\a\\b'


def test_patterns_that_the_shell_leaves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('b.png', 'a.png', 'c.jpg', '[1].png'):
        Path(name).touch()
    assert common.expand_globs(['?.png', '[1].png', 'no*', 'L=*.png']) == [
        'a.png', 'b.png', '[1].png', 'no*', 'L=*.png']


def test_commands_expand_patterns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ('one', 'two'):
        write_images(tmp_path / f'hr_{name}', {name: random_images(1, 24)['image_0']})
    assert prepare.main(['train', '--hr', 'hr_*', '--out', 'out', '--scales', '2', '--crop', '12', '--step', '12']) == 0
    assert 'From 2 HR images' in capsys.readouterr().out
    assert compare.main(['net_*.pth', '--sets', 'x']) == 2
    assert "there is no file 'net_*.pth'" in capsys.readouterr().err
    Path('net_1.pth').touch()
    assert compare.main(['net_*.pth', '--sets', 'x']) == 2
    assert "'net_1.pth' cannot be read" in capsys.readouterr().err


# ---- the GPU of a Mac

def test_mps_is_the_default_without_cuda(monkeypatch):
    monkeypatch.setattr(torch, 'zeros', lambda size, device: SimpleNamespace(device=torch.device(device)))
    for cuda, mps, expected in ((True, True, 'cuda'), (False, True, 'mps'), (False, False, 'cpu')):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda mps=mps: mps)
        assert upscaler.find_device('auto') == torch.device(expected)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason='has mps')
def test_mps_where_there_is_none():
    with pytest.raises(UserError, match='^device mps: .*(?i:mps)'):
        upscaler.find_device('mps')


class No64Bit(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        for tensor in (*args, *(out if isinstance(out, (tuple, list)) else [out])):
            assert not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64, function
        return out


@pytest.mark.parametrize('image', [random_images(1)['image_0'], torch.rand(1, 3, 12, 12), np.uint16([[0, 9], [7, 9]])],
                         ids=['array', 'tensor', '16 bits, grey'])
def test_inference_has_no_float64(tmp_path, image):
    """mps has none."""
    net = EDSRVar(**TINY)
    save_checkpoint(tmp_path / 'x.pth', {'params': net.state_dict()}, {'type': 'EDSRVar', **TINY}, 'ESU')
    loaded = upscaler.load(tmp_path / 'x.pth', 'cpu', self_ensemble=True)
    with No64Bit():
        result = loaded.upscale(image)
    assert result.expected_error is not None
