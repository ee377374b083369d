"""What goes bad below a training is named by file and record."""
import os
import random
import shutil

import cv2
import lmdb
import numpy as np
import pytest
from basicsr.data import build_dataset
from conftest import random_images, write_images

from udl_plugin.data import image_io
from udl_plugin.data.checked_dataset import CheckedDataset
from udl_plugin.data.lmdb_io import encode
from udl_plugin.errors import UserError


@pytest.fixture
def roots(tmp_path):
    """GT and LQ: three pairs, 24 x 24 and 12 x 12."""
    return [str(write_images(tmp_path / f'{side}.lmdb', random_images(height=height)))
            for side, height in (('gt', 24), ('lq', 12))]


def careful(roots, on_bad_record='stop', kind='lmdb', phase='train'):
    dataset = build_dataset({'name': 'x', 'type': 'PairedImageDataset', 'phase': phase, 'scale': 2, 'gt_size': 8,
                             'use_hflip': True, 'use_rot': True, 'io_backend': {'type': kind},
                             'dataroot_gt': str(roots[0]), 'dataroot_lq': str(roots[1])})
    return CheckedDataset(dataset, 'datasets: train', on_bad_record)


def put(root, key, data):
    """Changes a record, or, with None, removes it; meta_info.txt stays."""
    with lmdb.open(root, map_size=1 << 24) as env, env.begin(write=True) as txn:
        if data is None:
            txn.delete(key.encode())
        else:
            txn.put(key.encode(), data)


def copied(root):
    """Elsewhere: a process may have an LMDB open once."""
    return shutil.copytree(root, f'{root}.copy.lmdb')


def test_good_data_is_upstreams(roots):
    dataset = careful(roots)
    random.seed(0)
    found = [dataset[number] for number in range(3)]
    random.seed(0)
    plain = careful([copied(root) for root in roots]).dataset
    for number, item in enumerate(found):
        wanted = plain[number]
        assert item.keys() == wanted.keys()
        assert (item['gt'] == wanted['gt']).all() and (item['lq'] == wanted['lq']).all()


PNG = encode(random_images()['image_0'])
BAD = {
    'missing': (None, 'is not there, though meta_info.txt lists it'),
    'empty': (b'', 'cannot be decoded: truncated, damaged or not an image'),
    'text': (b'no image', 'cannot be decoded: truncated, damaged or not an image'),
    'cut': (PNG[:len(PNG) // 2], 'cannot be decoded'),
    'size': (encode(np.zeros((14, 12, 3), np.uint8)), 'mismatch|not a scale of 2'),
    'huge': (PNG[:16] + (10 ** 6).to_bytes(4, 'big') * 2 + PNG[24:], 'UDL_MAX_PIXELS=1000000000000'),
}


@pytest.mark.parametrize('phase', ['train', 'val'])
@pytest.mark.parametrize('side', [0, 1])
@pytest.mark.parametrize('bad', BAD)
def test_bad_record_is_named(roots, side, bad, phase):
    data, message = BAD[bad]
    if bad == 'size' and side == 0:
        data = encode(np.zeros((20, 24, 3), np.uint8))
    dataset = careful(roots, phase=phase)
    put(roots[side], 'image_1', data)
    for good in (0, 2):
        dataset[good]
    with pytest.raises(UserError, match=message) as caught:
        dataset[1]
    assert f"'{roots[side]}': 'image_1'" in str(caught.value)
    assert str(caught.value).startswith('datasets: train: ')
    assert '\n' not in str(caught.value)


def test_next_good_one_takes_the_place_of_bad_ones(roots):
    dataset = careful(roots, 'skip')
    put(roots[0], 'image_1', b'x')
    put(roots[1], 'image_2', None)
    item, passed_over = dataset.load(1)
    assert item['lq_path'] == 'image_0'
    assert [line.split(':')[0] for line in passed_over] == [f"'{root}'" for root in roots]
    assert dataset.load(0)[1] == []
    roots = [copied(root) for root in roots]
    put(roots[0], 'image_0', b'x')
    with pytest.raises(UserError, match='3 records in a row are bad; the last one: .*image_1'):
        careful(roots, 'skip').load(2)


@pytest.mark.parametrize('on_bad_record', ['stop', 'skip'])
def test_lmdb_that_is_truncated_or_gone_is_never_passed_over(roots, on_bad_record):
    dataset = careful(roots, on_bad_record)
    dataset[0]
    data = f'{roots[1]}/data.mdb'
    shutil.copy(data, f'{data}.whole')
    os.truncate(data, os.path.getsize(data) - 4096)
    with pytest.raises(UserError, match=f"'{data}' was truncated while the training ran: .* --auto_resume"):
        dataset[1]
    with pytest.raises(UserError, match='truncated'):
        dataset.refuse_damaged()
    os.replace(f'{data}.whole', data)
    with pytest.raises(UserError, match=f"'{data}' was deleted or replaced while the training ran"):
        dataset[1]  # whose truncated file is still the one that is open
    dataset = careful(roots, on_bad_record)
    dataset[1]
    os.unlink(data)
    with pytest.raises(UserError, match=f"'{data}' was deleted or replaced while the training ran"):
        dataset[1]
    with pytest.raises(UserError, match=r'has no data\.mdb'):
        careful(roots)[0]


def test_files_in_folders(tmp_path):
    roots = [write_images(tmp_path / side, random_images(height=height)) for side, height in (('gt', 24), ('lq', 12))]
    dataset = careful(roots, kind='disk')
    (roots[1] / 'image_1.png').write_bytes(b'x')
    (roots[0] / 'image_2.png').unlink()
    with pytest.raises(UserError, match=r"lq/image_1.png' cannot be decoded"):
        dataset[1]
    with pytest.raises(UserError, match=r"gt/image_2.png' cannot be read: No such file"):
        dataset[2]
    dataset[0]


def test_limit_of_pixels_can_be_raised(roots, monkeypatch):
    monkeypatch.setattr(image_io, 'MAX_PIXELS', 24 * 24 - 1)
    with pytest.raises(UserError, match="gt.lmdb': 'image_0' .* 24 x 24 pixels are more than 575,"):
        careful(roots)[0]
    monkeypatch.setattr(image_io, 'MAX_PIXELS', 24 * 24)
    careful([copied(root) for root in roots])[0]


@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.jpg', '.webp', '.tif'])
def test_size_is_told_by_the_header(suffix):
    data = cv2.imencode(suffix, np.zeros((7, 11, 3), np.uint8))[1].tobytes()
    assert image_io.image_size(data) == (7, 11)
