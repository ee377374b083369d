import errno
import itertools
import os
import signal
import subprocess
import sys

import pytest
from conftest import run_killed

from udl_plugin.errors import UserError
from udl_plugin.utils import atomic_io
from udl_plugin.utils.atomic_io import UNFINISHED, atomic_folders, atomic_write, exclusive_lock

posix = pytest.mark.skipif(sys.platform == 'win32', reason='Windows does not fork')


def test_atomic_write(tmp_path):
    atomic_write(tmp_path / 'new' / 'x', b'one')
    atomic_write(tmp_path / 'new' / 'x', b'two')
    assert (tmp_path / 'new' / 'x').read_bytes() == b'two'
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['x']


def test_open_reader_keeps_the_old_content(tmp_path):
    atomic_write(tmp_path / 'x', b'old')
    with open(tmp_path / 'x', 'rb') as reader:
        atomic_write(tmp_path / 'x', b'new')
        assert reader.read() == b'old'
    assert (tmp_path / 'x').read_bytes() == b'new'


def test_failed_write_keeps_the_old_file(tmp_path):
    atomic_write(tmp_path / 'x', b'old')
    with pytest.raises(TypeError):
        atomic_write(tmp_path / 'x', 'not bytes')
    assert (tmp_path / 'x').read_bytes() == b'old'
    assert [path.name for path in tmp_path.iterdir()] == ['x']


def make(parent, text, names=('a', 'b'), force=False):
    with atomic_folders(parent, names, force) as unfinished:
        for name in names:
            (unfinished / name).mkdir()
            (unfinished / name / 'file').write_text(text)


def content(parent):
    return {path.name: (path / 'file').read_text() for path in parent.iterdir()}


def finished(parent):
    return {path.name: (path / 'file').read_text() for path in parent.iterdir() if not path.name.startswith('.')}


def test_folders_appear_together(tmp_path):
    make(tmp_path / 'new' / 'set', 'one')
    assert content(tmp_path / 'new' / 'set') == {'a': 'one', 'b': 'one'}


def test_existing_folder_raises(tmp_path):
    make(tmp_path, 'one', ['b'])
    with pytest.raises(UserError, match='b: exists already'):
        make(tmp_path, 'two')
    assert content(tmp_path) == {'b': 'one'}


def test_folder_created_meanwhile_raises(tmp_path):
    with pytest.raises(UserError, match='a: exists already'), atomic_folders(tmp_path, ['a']) as unfinished:
        (unfinished / 'a').mkdir()
        (tmp_path / 'a').mkdir()
        (tmp_path / 'a' / 'file').write_text('of another')
    assert content(tmp_path) == {'a': 'of another'}


def test_force_replaces(tmp_path):
    make(tmp_path, 'one')
    make(tmp_path, 'two', force=True)
    assert content(tmp_path) == {'a': 'two', 'b': 'two'}


def test_force_replaces_a_link_and_not_its_target(tmp_path):
    make(tmp_path / 'elsewhere', 'one', ['a'])
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set' / 'a').symlink_to(tmp_path / 'elsewhere' / 'a')
    make(tmp_path / 'set', 'two', ['a'], force=True)
    assert content(tmp_path / 'set') == {'a': 'two'}
    assert content(tmp_path / 'elsewhere') == {'a': 'one'}


@pytest.mark.parametrize('error', [KeyError, KeyboardInterrupt])
def test_failure_keeps_the_old_folders(tmp_path, error):
    make(tmp_path, 'one', ['a'])
    with pytest.raises(error), atomic_folders(tmp_path, ['a', 'b'], force=True) as unfinished:
        (unfinished / 'a').mkdir()
        raise error
    assert content(tmp_path) == {'a': 'one'}


def test_failure_removes_a_new_parent(tmp_path):
    with pytest.raises(KeyError), atomic_folders(tmp_path / 'new', ['a']):
        raise KeyError
    assert not (tmp_path / 'new').exists()


def test_one_process_at_a_time(tmp_path):
    script = f'from udl_plugin.utils.atomic_io import *\nwith atomic_folders({str(tmp_path)!r}, ["b"]): pass'
    with atomic_folders(tmp_path, ['a']) as unfinished:
        (unfinished / 'a').mkdir()
        second = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=False)
        assert 'another process is writing there' in second.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['a']


MAKE_NEW = """
import pathlib
from udl_plugin.utils import atomic_io
with atomic_io.atomic_folders(pathlib.Path(sys.argv[1]), ['a', 'b'], force=True) as unfinished:
    for name in ('a', 'b'):
        (unfinished / name).mkdir()
        (unfinished / name / 'file').write_text('new')
"""


@pytest.mark.parametrize(('existing', 'moment'), [
    *itertools.product([False, True], ['pathlib:Path write_text 1', 'pathlib:Path write_text 2',
                                       'pathlib:Path rename 1', 'pathlib:Path rename 2', 'shutil rmtree 1']),
    (True, 'pathlib:Path rename 3'), (True, 'pathlib:Path rename 4')])
def test_kill(tmp_path, existing, moment):
    """What has a final name is complete, and never old next to new; the next run removes the rest."""
    if existing:
        make(tmp_path, 'old')
    run_killed(moment, MAKE_NEW, tmp_path)
    assert len(set(finished(tmp_path).values())) <= 1
    make(tmp_path, 'next', force=True)
    assert content(tmp_path) == {'a': 'next', 'b': 'next'}


def test_strange_names(tmp_path):
    make(tmp_path, 'one', ['a\nb', 'ä', '\udce4'])
    assert set(content(tmp_path)) == {'a\nb', 'ä', '\udce4'}


def test_dangling_link_counts_as_existing(tmp_path):
    (tmp_path / 'a').symlink_to('nowhere')
    with pytest.raises(UserError, match='a: exists already'):
        make(tmp_path, 'one')
    with atomic_folders(tmp_path, ['a'], force=True) as unfinished:
        (unfinished / 'a').mkdir()
    assert not (tmp_path / 'a').is_symlink()


def test_link_in_the_way_is_not_followed(tmp_path):
    (tmp_path / 'elsewhere' / 'x').mkdir(parents=True)
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set' / UNFINISHED).symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(OSError, match='symbolic link'):
        make(tmp_path / 'set', 'one')
    assert (tmp_path / 'elsewhere' / 'x').exists()


# ---- exclusive_lock

@pytest.fixture(params=['flock', pytest.param('filelock', id='as on Windows')])
def lock_kind(request, monkeypatch):
    if request.param == 'filelock':
        monkeypatch.setattr(atomic_io, 'fcntl', None)


def is_locked(folder):
    try:
        with exclusive_lock(folder):
            return False
    except UserError:
        return True


def test_lock_excludes_other_blocks_and_leaves_no_file(tmp_path, lock_kind):
    with exclusive_lock(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(UserError, match=f"'{tmp_path}': another process is writing there now; wait"), \
                exclusive_lock(tmp_path):
            pass
        assert is_locked(tmp_path), 'a refused attempt does not release it'
        assert not is_locked(tmp_path.parent)
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []


HOLD = """
import os, signal, subprocess, sys, time
from udl_plugin.utils.atomic_io import exclusive_lock
with exclusive_lock(sys.argv[1]) as descriptor:
    if sys.argv[2] == 'program':
        subprocess.Popen(['sleep', '60'], pass_fds=[descriptor], stdout=subprocess.DEVNULL)
    if sys.argv[2] != 'fork' or not os.fork():  # the child is ready after the parent
        print(flush=True)
    time.sleep(60)
"""


@posix
@pytest.mark.parametrize('child, outlives_the_kill', [('none', False), ('fork', False), ('program', True)])
def test_lock_after_a_kill(tmp_path, child, outlives_the_kill):
    """Forked workers that survive do not hold it; a program that was given the descriptor does."""
    with subprocess.Popen([sys.executable, '-c', HOLD, str(tmp_path), child], stdout=subprocess.PIPE,
                          start_new_session=True) as process:
        try:
            process.stdout.readline()
            assert is_locked(tmp_path)
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert is_locked(tmp_path) == outlives_the_kill
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@posix
def test_file_system_without_locks(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(atomic_io.fcntl, 'flock', flock)
    with exclusive_lock(tmp_path), exclusive_lock(tmp_path):
        pass
