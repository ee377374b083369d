import numpy as np
import pytest
from conftest import random_images, read_pairs, write_images

from udl_plugin.data.lmdb_io import (
    LmdbWriter,
    encode,
    lmdb_key,
    open_lmdb,
    open_writer,
    read_meta_info,
    shape_of,
)
from udl_plugin.errors import UserError
from udl_plugin.prepare.verify import check_images


def test_basicsr_reads_written_lmdbs(tmp_path):
    gt, lq = random_images(3, 12), random_images(3, 6)
    write_images(tmp_path / 'gt.lmdb', gt)
    write_images(tmp_path / 'lq.lmdb', lq)
    read = read_pairs(tmp_path / 'gt.lmdb', tmp_path / 'lq.lmdb')
    assert read.keys() == gt.keys()
    for name, images in read.items():
        np.testing.assert_array_equal(images[0], gt[name])
        np.testing.assert_array_equal(images[1], lq[name])


def test_basicsr_reads_any_name(tmp_path):
    images = dict(zip(('ä', '图像 1', 'a.b', '100%', 'a%2Eb', '\udcff'), random_images(6).values()))
    read = read_pairs(write_images(tmp_path / 'gt.lmdb', images), write_images(tmp_path / 'lq.lmdb', images))
    assert len(read) == 6
    for name, img in images.items():
        np.testing.assert_array_equal(read[lmdb_key(name)][0], img)


def test_second_reader_in_a_process_raises(tmp_path):
    path = write_images(tmp_path / 'x.lmdb', random_images(1))
    with open_lmdb(path), pytest.raises(UserError, match=r"x\.lmdb' is already open in this process"):
        open_lmdb(path)


def test_keys_of_ascii_names_are_the_names():
    assert lmdb_key('0001_s001') == '0001_s001'
    assert lmdb_key('img (1) [x]+~') == 'img (1) [x]+~'


def test_name_too_long():
    with pytest.raises(UserError, match='too long'):
        lmdb_key('图' * 80)


def test_second_image_of_a_name_raises(tmp_path):
    with pytest.raises(UserError, match="called 'a'"), LmdbWriter(tmp_path / 'x.lmdb') as lmdb_writer:
        lmdb_writer.put('a', b'1', (1, 1, 3))
        lmdb_writer.put('a', b'2', (1, 1, 3))
    assert not (tmp_path / 'x.lmdb' / 'meta_info.txt').exists()


def test_meta_info(tmp_path):
    write_images(tmp_path / 'x.lmdb', {'b': np.zeros((4, 6, 3), np.uint8), 'a': np.zeros((5, 5), np.uint8)})
    assert (tmp_path / 'x.lmdb' / 'meta_info.txt').read_text() == 'b.png (4,6,3) 1\na.png (5,5,1) 1\n'
    assert read_meta_info(tmp_path / 'x.lmdb') == {'b': (4, 6, 3), 'a': (5, 5, 1)}


@pytest.mark.parametrize('batch_bytes', [1, 1 << 30])
def test_map_grows(tmp_path, monkeypatch, batch_bytes):
    """Many times, with all images in one transaction or each in its own; no image is lost or doubled."""
    monkeypatch.setattr('udl_plugin.data.lmdb_io.MAP_BYTES', 1 << 15)
    monkeypatch.setattr('udl_plugin.data.lmdb_io.BATCH_BYTES', batch_bytes)
    (small,), (large,) = random_images(1, 2).values(), random_images(1, 600).values()
    images = {'small': small, **random_images(60, 64), 'large': large}
    read = read_pairs(write_images(tmp_path / 'gt.lmdb', images), write_images(tmp_path / 'lq.lmdb', images))
    assert len(read) == 62
    for name, img in images.items():
        np.testing.assert_array_equal(read[name][0], img)


def test_memory_is_bounded(tmp_path, monkeypatch):
    """A batch is dropped when it is committed."""
    monkeypatch.setattr('udl_plugin.data.lmdb_io.BATCH_BYTES', 1000)
    with LmdbWriter(tmp_path / 'x.lmdb') as records:
        sizes = []
        for number in range(50):
            records.put(f'{number}', bytes(300), (10, 10, 3))
            sizes.append(len(records.batch))
    assert sizes[:9] == [1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_folder(tmp_path):
    (img,) = random_images(1).values()
    with open_writer(tmp_path / 'x') as folder:
        folder.put('ä', encode(img), img.shape)
    assert (tmp_path / 'x' / 'ä.png').read_bytes() == encode(img)


def test_uncompressed_images(tmp_path):
    """BasicSR reads BMP like PNG."""
    images = {'colour': random_images(1, 16, 20)['image_0'], 'grey': random_images(1, 16, 20)['image_0'][:, :, 0]}
    with LmdbWriter(tmp_path / 'bmp.lmdb') as records:
        for name, img in images.items():
            records.put(name, encode(img, compress=False), shape_of(img))
    with LmdbWriter(tmp_path / 'lq.lmdb') as records:
        for name, img in images.items():
            records.put(name, encode(img[::2, ::2], compress=False), shape_of(img[::2, ::2]))
    lines = (tmp_path / 'bmp.lmdb/meta_info.txt').read_text().splitlines()
    assert lines == ['colour.bmp (16,20,3) 0', 'grey.bmp (16,20,1) 0']
    assert check_images(tmp_path / 'bmp.lmdb') == ({'colour': (16, 20, 3), 'grey': (16, 20, 1)}, [])
    pairs = read_pairs(tmp_path / 'bmp.lmdb', tmp_path / 'lq.lmdb')
    assert np.array_equal(pairs['colour'][0], images['colour'])
    assert np.array_equal(pairs['grey'][0], np.repeat(images['grey'][:, :, None], 3, axis=2))


@pytest.mark.parametrize('line', ['0001.png', '0001.png (12,12) 1'])
def test_bad_line_in_meta_info(tmp_path, line):
    path = write_images(tmp_path / 'x.lmdb', random_images(1))
    with open(path / 'meta_info.txt', 'a') as file:
        file.write(line + '\n')
    with pytest.raises(UserError, match=r"meta_info\.txt', line 2: '.* is not of the form"):
        read_meta_info(path)
