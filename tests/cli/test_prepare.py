"""Tests the command; in a process of its own if the exit matters (kill, Ctrl-C, full disk)."""
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import pytest
from conftest import ROOT, random_images, read_pairs, run_killed, write_images

from udl_plugin.cli.prepare import main, parse
from udl_plugin.prepare.verify import check_images

COMMAND = [sys.executable, '-m', 'udl_plugin.cli.prepare']
NAMES = ['SET_train_HR_sub.lmdb', 'SET_train_LR_bicubic_X2_sub.lmdb']
linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')


@pytest.fixture
def hr(tmp_path):
    return write_images(tmp_path / 'hr', random_images(6, 48))


def train(hr, out, *more, crop=24):
    return ['train', '--hr', str(hr), '--scales', '2', '--out', str(out), '--crop', str(crop), '--step', str(crop // 2),
            '--workers', '1', *map(str, more)]


def run(*command):
    return subprocess.run([*COMMAND, *map(str, command)], capture_output=True, text=True, check=False)


def one_line(text):
    return text.startswith('udl-prepare: ') and text.count('\n') == 1


def left(folder):
    return sorted(os.listdir(folder)) if folder.exists() else []


def test_train(tmp_path, hr, capsys):
    assert main(train(hr, tmp_path / 'SET', '--workers', 2)) == 0
    assert left(tmp_path / 'SET') == NAMES
    out, err = capsys.readouterr()
    assert f'From 6 HR images:\n  {tmp_path}/SET/SET_train_HR_sub.lmdb: 54 images, ' in out
    assert re.search(r'preparing: 100%.*6/6 \[.*<.* images/s\]', err)  # with rate and time left
    assert re.search(r'checking SET_train_HR_sub.lmdb: 100%.*54/54', err)


def test_uncompressed_records_hold_the_same_images(tmp_path, hr):
    for name, more in (('png', ()), ('bmp', ('--uncompressed',))):
        assert main([*train(hr, tmp_path / name, *more), '--name', 'SET', '--quiet']) == 0
    png, bmp = (read_pairs(*(tmp_path / kind / name for name in NAMES)) for kind in ('png', 'bmp'))
    assert png.keys() == bmp.keys()
    for key, pair in png.items():
        assert all((one == other).all() for one, other in zip(pair, bmp[key]))
    sizes = [(tmp_path / kind / NAMES[0] / 'meta_info.txt').read_text() for kind in ('png', 'bmp')]
    assert '.bmp (24,24,3) 0' in sizes[1] and '.bmp' not in sizes[0]


def test_benchmark_and_check(tmp_path, hr, capsys):
    assert main(['benchmark', '--hr', str(hr), '--name', 'S', '--scales', '2', '3', '--out', str(tmp_path)]) == 0
    assert left(tmp_path / 'S') == ['GTmod2', 'GTmod3', 'LRbicx2', 'LRbicx3']
    capsys.readouterr()
    assert main(['check', str(tmp_path / 'S' / 'GTmod3'), str(tmp_path / 'S' / 'LRbicx3')]) == 0
    out = capsys.readouterr().out
    assert f'{tmp_path}/S/GTmod3: 6 images, 48 x 48 pixels' in out and 'names and sizes match at scale 3.' in out
    assert "LR equals MATLAB's bicubic of HR, in the middle of 6 pairs." in out
    shutil.copy(tmp_path / 'S/LRbicx3/image_1.png', tmp_path / 'S/LRbicx3/image_2.png')
    assert main(['check', str(tmp_path / 'S' / 'GTmod3'), str(tmp_path / 'S' / 'LRbicx3')]) == 1
    assert "image_2: LR shows another image than HR, that of 'image_1'" in capsys.readouterr().err


def test_check_lists_bad_records(tmp_path, hr, capsys):
    assert main(train(hr, tmp_path / 'SET')) == 0
    with lmdb.open(str(tmp_path / 'SET' / NAMES[1]), lock=False) as env, env.begin(write=True) as txn:
        txn.put(b'image_2_s004', b'\x89PNG')
    paths = [str(tmp_path / 'SET' / name) for name in NAMES]
    capsys.readouterr()
    assert main(['check', *paths, '--quiet']) == 1
    out, err = capsys.readouterr()
    assert out == ''
    assert err.splitlines() == ['udl-prepare: problems: 1',
                                f'  {paths[1]}: image_2_s004: truncated, corrupted or not an image.']
    assert main(['check', paths[0] + '/', '--quiet']) == 0  # as shells complete it
    assert main(['check', *paths, '--quiet', '--scale', '3']) == 1


def test_quiet(tmp_path, hr, capfd):
    assert main(train(hr, tmp_path / 'SET', '--quiet')) == 0
    assert capfd.readouterr() == ('', '')


def test_check_names_the_truncated_lmdb(tmp_path, hr, capsys):
    assert main(train(hr, tmp_path / 'SET', '--quiet')) == 0
    paths = [str(tmp_path / 'SET' / name) for name in NAMES]
    with open(Path(paths[1], 'data.mdb'), 'r+b') as file:
        file.truncate(20000)
    assert main(['check', *paths, '--quiet']) == 2
    assert capsys.readouterr().err.startswith(f"udl-prepare: '{paths[1]}/data.mdb' is truncated: it has 20000 of ")


def test_skipped_images_are_listed_even_with_quiet(tmp_path, hr, capsys):
    (hr / 'image_1.png').write_bytes(b'')
    assert main(train(hr, tmp_path / 'SET', '--quiet')) == 2
    assert one_line(capsys.readouterr().err)
    assert main(train(hr, tmp_path / 'SET', '--quiet', '--skip-bad')) == 0
    assert f"skipped images: 1\n  '{hr}/image_1.png' cannot be read" in capsys.readouterr().err


def test_notes(tmp_path, hr, capsys):
    write_images(tmp_path / 'more', {'alpha': random_images(1, 48, 64)['image_0'].reshape(48, 48, 4),
                                     'small': random_images(1, 12, 48)['image_0']})
    assert main(train(hr, tmp_path / 'SET', '--hr', tmp_path / 'more')) == 0  # the last --hr is used
    out = capsys.readouterr().out
    assert f'Images whose alpha channel was dropped: 1\n  {tmp_path}/more/alpha.png\n' in out
    assert f'smaller than gt_size: 1\n  {tmp_path}/more/small.png\n' in out


@pytest.mark.parametrize('arguments, words', [
    (['train', '--hr', 'none', '--scales', '2', '--out', 'x'], "there is no folder 'none'"),
    (['check', 'none.lmdb'], "there is no LMDB 'none.lmdb'"),
    (['train', '--hr', '.', '--scales', '2', '--out', '/proc/x'], 'has no image'),
])
def test_user_errors_are_one_line(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, '--workers', '1']) == 2
    err = capsys.readouterr().err
    assert one_line(err) and words in err


def test_missing_write_permission_is_one_line(hr, capsys):
    assert main(train(hr, '/proc/no/such')) == 2
    err = capsys.readouterr().err
    assert one_line(err) and '/proc/no' in err


@pytest.mark.parametrize('arguments', [[], ['train'], ['check', 'a', 'b', 'c'], ['train', '--hr', 'a', '--scales', '0'],
                                       ['benchmark', '--workers', '-1'], ['check', ''],
                                       ['train', '--hr', 'a', '--scale', '4', '--out', 'b']])
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert 'usage: udl-prepare' in capsys.readouterr().err


@pytest.mark.parametrize('page', ['docs/data.md', 'docs/performance.md', 'udl_plugin/cli/prepare.py'])
def test_commands_in_docs_can_be_parsed(page):
    text = (ROOT / page).read_text().replace('\\\\\n', ' ').replace('\\\n', ' ')
    commands = re.findall(r'^ +udl-prepare (.*)', text, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        parse(command.split())


def test_runs_from_a_checkout(tmp_path, hr):
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    subprocess.run([*COMMAND, *train(hr, tmp_path / 'SET', '--workers', 2)], cwd=ROOT, env=environment, check=True,
                   capture_output=True)
    assert left(tmp_path / 'SET') == NAMES


def test_imports_neither_torch_nor_basicsr():
    """They take seconds at start, and memory in each worker."""
    script = 'import sys, udl_plugin.cli.prepare; assert not {"torch", "basicsr"} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', script], check=True)


# ---- interrupts, kills, full disks


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    """Enough images to take some seconds."""
    return write_images(tmp_path_factory.mktemp('many') / 'hr', random_images(80, 360))


def start(hr, out, **options):
    def reset_signals():  # shells make background jobs ignore SIGINT, and nohup makes them ignore SIGHUP
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen([*COMMAND, *train(hr, out, '--workers', 2, crop=120)], stderr=subprocess.PIPE, text=True,
                            start_new_session=True, preexec_fn=reset_signals, **options)


def wait_for(condition, seconds=30):
    for _ in range(100 * seconds):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError('timed out')


def children(process):
    return Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()


def is_running(number):
    try:
        return Path(f'/proc/{number}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def growing(out):
    data = out / '.unfinished' / NAMES[0] / 'data.mdb'
    return data.exists()


@linux
@pytest.mark.parametrize('moment', [0, 1])
@pytest.mark.parametrize('send, numbers', [
    (os.killpg, [signal.SIGINT]), (os.killpg, [signal.SIGTERM]), (os.killpg, [signal.SIGHUP]),
    (os.kill, [signal.SIGTERM]), (os.killpg, [signal.SIGINT] * 3)])
def test_interrupt(tmp_path, many, send, numbers, moment):
    """Ctrl-C (also sent to the workers), a closed terminal, `kill` and batch systems, repeated Ctrl-C."""
    out = tmp_path / 'SET'
    process = start(many, out)
    wait_for(lambda: growing(out))
    time.sleep(moment)
    workers = children(process)
    for number in numbers:
        send(process.pid, number)
        time.sleep(0.02)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert 'Traceback' not in err, err
    assert err.splitlines()[-1] == 'udl-prepare: interrupted; nothing was changed'
    assert [name for name in left(out) if name != '.unfinished'] == []
    if len(numbers) == 1:
        assert left(out) == []
    wait_for(lambda: not any(map(is_running, workers)))


@linux
def test_nohup(tmp_path):
    hr, out = write_images(tmp_path / 'hr', random_images(30, 360)), tmp_path / 'SET'
    process = subprocess.Popen(['nohup', *COMMAND, *train(hr, out, '--workers', 2, crop=120)], start_new_session=True,
                               stderr=subprocess.DEVNULL)
    wait_for(lambda: growing(out))
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(timeout=60) == 0
    assert left(out) == NAMES


@linux
def test_kill_at_any_time(tmp_path, many):
    """At random moments: LMDBs under final names are complete, no worker survives, and the next run starts clean."""
    out, seconds = tmp_path / 'SET', random.Random(0)
    for moment in [0.0, *(seconds.uniform(0.2, 3) for _ in range(3))]:
        process = start(many, out)
        wait_for(lambda: growing(out) or process.poll() is not None)  # noqa: B023 (called in this iteration)
        time.sleep(moment)
        workers = children(process) if process.poll() is None else []
        process.kill()
        process.communicate()
        wait_for(lambda: not any(map(is_running, workers)))  # noqa: B023
        for name in set(left(out)) & set(NAMES):
            found = check_images(out / name, workers=1)
            assert len(found.shapes) == 80 * 25 and not found.problems
    result = run(*train(many, out, crop=120))
    assert result.returncode == 0 or 'exists already' in result.stderr
    assert left(out) == NAMES


@pytest.mark.parametrize('moment', [
    'udl_plugin.data.lmdb_io:LmdbWriter put 1', 'udl_plugin.data.lmdb_io:LmdbWriter put 70',
    'udl_plugin.data.lmdb_io:LmdbWriter _commit 1', 'udl_plugin.data.lmdb_io:LmdbWriter _commit 2',
    'udl_plugin.data.lmdb_io atomic_write 1', 'udl_plugin.data.lmdb_io atomic_write 2',
    'udl_plugin.prepare.datasets _verify 1', 'pathlib:Path rename 1', 'pathlib:Path rename 2'])
def test_kill_at_a_moment(tmp_path, hr, moment):
    out = tmp_path / 'SET'
    run_killed(moment, 'from udl_plugin.cli.prepare import main; main()', *train(hr, out))
    for name in set(left(out)) & set(NAMES):
        found = check_images(out / name, workers=1)
        assert len(found.shapes) == 54 and not found.problems
    force = ['--force'] if set(left(out)) & set(NAMES) else []  # killed when one of the two had its name already
    assert bool(force) == (moment == 'pathlib:Path rename 2')
    assert main(train(hr, out, '--quiet', *force)) == 0
    assert left(out) == NAMES
    assert len(read_pairs(*(out / name for name in NAMES))) == 54


@linux
def test_killed_worker(tmp_path, many):
    out = tmp_path / 'SET'
    process = start(many, out)
    wait_for(lambda: growing(out) and len(children(process)) >= 3)  # two workers, and Python's resource tracker
    time.sleep(1)
    for number in children(process):
        if b'spawn_main' in Path(f'/proc/{number}/cmdline').read_bytes():
            os.kill(int(number), signal.SIGKILL)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 2
    assert 'Traceback' not in err and 'a worker process was killed' in err.splitlines()[-1]
    assert left(out) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip('mounting requires root')
    yield disk
    subprocess.run(['umount', disk], check=True)


@pytest.mark.parametrize('batch', ['first', 'last'])
def test_full_disk(small_disk, tmp_path, many, batch):
    hr = many if batch == 'first' else write_images(tmp_path / 'hr', random_images(4, 360))  # less than one batch
    result = run(*train(hr, small_disk / 'SET', '--quiet', '--workers', 2 if batch == 'first' else 1, crop=120))
    assert result.returncode == 2
    assert one_line(result.stderr) and 'cannot be written: the disk is full (0 MB are free)' in result.stderr
    assert left(small_disk / 'SET') == []


def test_full_disk_with_png_files(small_disk, many):
    result = run('benchmark', '--hr', many, '--name', 'S', '--scales', 2, '--out', small_disk, '--quiet')
    assert result.returncode == 2
    assert one_line(result.stderr) and 'image_' in result.stderr and 'No space left on device' in result.stderr
    assert left(small_disk / 'S') == []
