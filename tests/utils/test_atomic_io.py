import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_killed

from udl_plugin.errors import UserError
from udl_plugin.utils.atomic_io import atomic_folders, atomic_write


def test_write_whole(tmp_path):
    atomic_write(tmp_path / 'new' / 'x', b'one')
    atomic_write(tmp_path / 'new' / 'x', b'two')
    assert (tmp_path / 'new' / 'x').read_bytes() == b'two'
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['x']


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path):
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
            assert (parent / name).exists() == force


def content(parent):
    return {path.name: (path / 'file').read_text() for path in parent.iterdir()}


def finished(parent):
    return {path.name: (path / 'file').read_text() for path in parent.iterdir() if not path.name.startswith('.')}


def test_whole_folders(tmp_path):
    make(tmp_path / 'new' / 'set', 'one')
    assert content(tmp_path / 'new' / 'set') == {'a': 'one', 'b': 'one'}


def test_existing_folder_is_refused(tmp_path):
    make(tmp_path, 'one', ['b'])
    with pytest.raises(UserError, match='b: exists already'):
        make(tmp_path, 'two')
    assert content(tmp_path) == {'b': 'one'}


def test_folder_that_came_up_meanwhile_is_refused(tmp_path):
    with pytest.raises(UserError, match='a: exists already'), atomic_folders(tmp_path, ['a']) as unfinished:
        (unfinished / 'a').mkdir()
        (tmp_path / 'a').mkdir()
        (tmp_path / 'a' / 'file').write_text('of another')
    assert content(tmp_path) == {'a': 'of another'}


def test_force_replaces(tmp_path):
    make(tmp_path, 'one')
    make(tmp_path, 'two', force=True)
    assert content(tmp_path) == {'a': 'two', 'b': 'two'}


def test_force_replaces_a_link_and_not_what_it_points_to(tmp_path):
    make(tmp_path / 'elsewhere', 'one', ['a'])
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set' / 'a').symlink_to(tmp_path / 'elsewhere' / 'a')
    make(tmp_path / 'set', 'two', ['a'], force=True)
    assert content(tmp_path / 'set') == {'a': 'two'}
    assert content(tmp_path / 'elsewhere') == {'a': 'one'}


@pytest.mark.parametrize('error', [KeyError, KeyboardInterrupt])
def test_failure_leaves_what_was(tmp_path, error):
    make(tmp_path, 'one', ['a'])
    with pytest.raises(error), atomic_folders(tmp_path, ['a', 'b'], force=True) as unfinished:
        (unfinished / 'a').mkdir()
        raise error
    assert content(tmp_path) == {'a': 'one'}


def test_one_process_at_a_time(tmp_path):
    script = f'from udl_plugin.utils.atomic_io import atomic_folders\nwith atomic_folders({str(tmp_path)!r}, ["b"]): pass'
    with atomic_folders(tmp_path, ['a']) as unfinished:
        (unfinished / 'a').mkdir()
        second = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=False)
        assert 'another process is writing there now' in second.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['a']


MAKE_NEW = """
import pathlib
from udl_plugin import files
with files.atomic_folders(pathlib.Path(sys.argv[1]), ['a', 'b'], sys.argv[2] == 'force') as unfinished:
    for name in ('a', 'b'):
        (unfinished / name).mkdir()
        (unfinished / name / 'file').write_text('new')
"""
MOMENTS = ['pathlib:Path write_text 1', 'pathlib:Path write_text 2', 'os fsync 1', 'pathlib:Path replace 1',
           'pathlib:Path rename 1', 'pathlib:Path rename 2', 'shutil rmtree 1']


@pytest.mark.parametrize('moment', MOMENTS)
def test_kill(tmp_path, moment):
    run_killed(moment, MAKE_NEW, tmp_path, 'new')
    assert set(finished(tmp_path).values()) <= {'new'}
    whole = MOMENTS.index(moment) > MOMENTS.index('pathlib:Path replace 1')
    if whole:  # the next run moves what the killed one had finished
        with pytest.raises(UserError, match='a, .*b: exists already'):
            make(tmp_path, 'next')
    else:
        make(tmp_path, 'next')
    assert content(tmp_path) == dict.fromkeys('ab', 'new' if whole else 'next')


@pytest.mark.parametrize('moment', [*MOMENTS, 'pathlib:Path rename 3', 'pathlib:Path rename 4'])
def test_kill_with_force(tmp_path, moment):
    make(tmp_path, 'old')
    run_killed(moment, MAKE_NEW, tmp_path, 'force')
    assert set(finished(tmp_path).values()) <= {'old', 'new'}
    with pytest.raises(UserError, match='a, .*b: exists already'):
        make(tmp_path, 'next')
    whole = 'rename' in moment or 'rmtree' in moment
    assert content(tmp_path) == dict.fromkeys('ab', 'new' if whole else 'old')


def test_folder_that_came_up_after_a_kill_is_not_replaced(tmp_path):
    run_killed('pathlib:Path rename 1', MAKE_NEW, tmp_path, 'new')
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'file').write_text('precious')
    for _ in range(2):
        with pytest.raises(UserError, match="a' came up after a run was killed .*Remove one of them"):
            make(tmp_path, 'next', ['c'])
    assert finished(tmp_path) == {'a': 'precious'}
    shutil.rmtree(tmp_path / 'a')
    make(tmp_path, 'next', ['c'])
    assert content(tmp_path) == {'a': 'new', 'b': 'new', 'c': 'next'}


def test_interrupt_while_moving_loses_nothing(tmp_path, monkeypatch):
    make(tmp_path, 'old')
    rename, calls = Path.rename, []

    def interrupted(self, target):
        calls.append(1)
        if len(calls) == 3:  # `a` has moved, `b` has not
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, 'rename', interrupted)
        make(tmp_path, 'new', force=True)
    with pytest.raises(UserError, match='exists already'):
        make(tmp_path, 'next')
    assert content(tmp_path) == {'a': 'new', 'b': 'new'}


def test_half_removed_is_not_taken_for_whole(tmp_path, monkeypatch):
    """An interrupt just as all is complete, and a kill in the midst of cleaning up after it."""
    make(tmp_path, 'old')

    def write_and_interrupt(path, data):
        atomic_write(path, data)
        raise KeyboardInterrupt

    def killed(folder):
        (folder / 'a' / 'file').unlink()
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr('udl_plugin.utils.atomic_io.atomic_write', write_and_interrupt)
        patch.setattr(shutil, 'rmtree', killed)
        make(tmp_path, 'new', force=True)
    make(tmp_path, 'next', ['c'])
    assert content(tmp_path) == {'a': 'old', 'b': 'old', 'c': 'next'}


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


def test_something_in_the_way(tmp_path):
    (tmp_path / '.unfinished').symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"\.unfinished' is in the way"):
        make(tmp_path, 'one')
