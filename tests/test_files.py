import pytest

from udl_plugin.files import whole_folder, write_whole


def test_write_whole(tmp_path):
    write_whole(tmp_path / 'new' / 'x', b'one')
    write_whole(tmp_path / 'new' / 'x', b'two')
    assert (tmp_path / 'new' / 'x').read_bytes() == b'two'
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['x']


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path):
    write_whole(tmp_path / 'x', b'old')
    with open(tmp_path / 'x', 'rb') as reader:
        write_whole(tmp_path / 'x', b'new')
        assert reader.read() == b'old'
    assert (tmp_path / 'x').read_bytes() == b'new'


def test_failed_write_keeps_the_old_file(tmp_path):
    write_whole(tmp_path / 'x', b'old')
    with pytest.raises(TypeError):
        write_whole(tmp_path / 'x', 'not bytes')
    assert (tmp_path / 'x').read_bytes() == b'old'
    assert [path.name for path in tmp_path.iterdir()] == ['x']


def test_whole_folder(tmp_path):
    target = tmp_path / 'a' / 'x.lmdb'
    with whole_folder(target) as unfinished:
        assert unfinished.name == 'x.lmdb'
        unfinished.mkdir()
        (unfinished / 'file').write_text('done')
        assert not target.exists()
    assert (target / 'file').read_text() == 'done'
    assert [path.name for path in target.parent.iterdir()] == ['x.lmdb']
    with pytest.raises(FileExistsError, match=r'x\.lmdb'), whole_folder(target):
        pass


def test_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), whole_folder(tmp_path / 'x') as unfinished:
        unfinished.mkdir()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
