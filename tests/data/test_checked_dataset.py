"""Corrupted samples are named by file and record, or skipped."""
import os
import random
import shutil

import lmdb
import numpy as np
import pytest
from basicsr.data import build_dataset
from basicsr.utils import imfrombytes
from conftest import random_images, write_images

from udl_plugin.data.checked_dataset import CheckedDataset
from udl_plugin.data.lmdb_io import encode
from udl_plugin.errors import UserError


@pytest.fixture
def roots(tmp_path):
    """GT and LQ: three pairs, 24 x 24 and 12 x 12."""
    return [str(write_images(tmp_path / f'{side}.lmdb', random_images(height=height)))
            for side, height in (('gt', 24), ('lq', 12))]


def checked(roots, on_bad_record='stop', kind='lmdb', phase='train'):
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
    """A process can open an LMDB only once."""
    return shutil.copytree(root, f'{root}.copy.lmdb')


def test_good_data_is_unchanged(roots):
    dataset = checked(roots)
    random.seed(0)
    found = [dataset[number] for number in range(3)]
    random.seed(0)
    plain = checked([copied(root) for root in roots]).dataset
    for number, item in enumerate(found):
        expected = plain[number]
        assert item.keys() == expected.keys()
        assert (item['gt'] == expected['gt']).all() and (item['lq'] == expected['lq']).all()


PNG = encode(random_images()['image_0'])
BAD = {
    'missing': (None, r'is listed in meta_info\.txt, but not in data\.mdb'),
    'empty': (b'', 'cannot be decoded: truncated, corrupted or not an image'),
    'text': (b'no image', 'cannot be decoded: truncated, corrupted or not an image'),
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
    dataset = checked(roots, phase=phase)
    put(roots[side], 'image_1', data)
    for good in (0, 2):
        dataset[good]
    with pytest.raises(UserError, match=message) as caught:
        dataset[1]
    assert f"'{roots[side]}': 'image_1'" in str(caught.value)
    assert str(caught.value).startswith('datasets: train: ')
    assert '\n' not in str(caught.value)


def test_skip_falls_back_to_the_next_good_sample(roots):
    dataset = checked(roots, 'skip')
    put(roots[0], 'image_1', b'x')
    put(roots[1], 'image_2', None)
    item, skipped = dataset.load(1)
    assert item['lq_path'] == 'image_0'
    assert [line.split(':')[0] for line in skipped] == [f"'{root}'" for root in roots]
    assert dataset.load(0)[1] == []
    roots = [copied(root) for root in roots]
    put(roots[0], 'image_0', b'x')
    with pytest.raises(UserError, match='3 samples in a row are corrupted; the last one: .*image_1'):
        checked(roots, 'skip').load(2)


@pytest.mark.parametrize('on_bad_record', ['stop', 'skip'])
def test_truncated_or_deleted_lmdb_is_never_skipped(roots, on_bad_record):
    dataset = checked(roots, on_bad_record)
    dataset[0]
    data = f'{roots[1]}/data.mdb'
    shutil.copy(data, f'{data}.copy')
    os.truncate(data, os.path.getsize(data) - 4096)
    with pytest.raises(UserError, match=f"'{data}' was truncated while the training ran: .* --auto_resume"):
        dataset[1]
    with pytest.raises(UserError, match='truncated'):
        dataset.check_lmdbs()
    os.replace(f'{data}.copy', data)
    with pytest.raises(UserError, match=f"'{data}' was deleted or replaced while the training ran"):
        dataset[1]  # it still has the truncated file open
    dataset = checked(roots, on_bad_record)
    dataset[1]
    os.unlink(data)
    with pytest.raises(UserError, match=f"'{data}' was deleted or replaced while the training ran"):
        dataset[1]
    with pytest.raises(UserError, match=r'has no data\.mdb'):
        checked(roots)[0]


def test_files_in_folders(tmp_path):
    roots = [write_images(tmp_path / side, random_images(height=height)) for side, height in (('gt', 24), ('lq', 12))]
    dataset = checked(roots, kind='disk')
    (roots[1] / 'image_1.png').write_bytes(b'x')
    (roots[0] / 'image_2.png').unlink()
    with pytest.raises(UserError, match=r"lq/image_1.png' cannot be decoded"):
        dataset[1]
    with pytest.raises(UserError, match=r"gt/image_2.png' cannot be read: No such file"):
        dataset[2]
    dataset[0]


def test_pixel_limit_can_be_raised(roots, monkeypatch):
    monkeypatch.setenv('UDL_MAX_PIXELS', str(24 * 24 - 1))
    with pytest.raises(UserError, match="gt.lmdb': 'image_0' .* 24 x 24 pixels are more than 575;"):
        checked(roots)[0]
    monkeypatch.setenv('UDL_MAX_PIXELS', str(24 * 24))
    checked([copied(root) for root in roots])[0]


def test_hint_to_skip_is_for_training_only(roots):
    put(roots[0], 'image_1', b'x')
    with pytest.raises(UserError, match='not an image. on_bad_record: skip skips such samples.$'):
        checked(roots)[1]
    with pytest.raises(UserError, match='not an image. Restore the image, or remove it from GT and LQ: validation '):
        checked([copied(root) for root in roots], phase='val')[1]


def test_sizes_that_differ_are_told_in_a_sentence(roots):
    put(roots[1], 'image_1', encode(np.zeros((10, 12, 3), np.uint8)))
    with pytest.raises(UserError, match=r"image_1': Scale mismatches. GT \(24, 24\) is not 2x multiplication of LQ \("):
        checked(roots)[1]


class OneLmdb:
    """Reads as BasicSR's FFHQDataset does, which gives its `io_backend` one path and no keys."""

    def __init__(self, root):
        self.opt, self.file_client, self.root = {'io_backend': {}}, None, root
        self.io_backend_opt = {'type': 'lmdb', 'db_paths': root}

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return imfrombytes(self.file_client.get(f'image_{index}'))


def test_data_set_of_one_lmdb(roots):
    put(roots[0], 'image_2', b'')
    dataset = CheckedDataset(OneLmdb(roots[0]), 'x')
    assert (dataset[1] == random_images(height=24)['image_1']).all()
    with pytest.raises(UserError, match=f"x: '{roots[0]}': 'image_2' cannot be decoded"):
        dataset[2]
    os.truncate(f'{roots[0]}/data.mdb', 4096)
    with pytest.raises(UserError, match='truncated while the training ran'):
        dataset[1]
    assert dataset.root == roots[0], 'attributes are those of the data set'


def test_unknown_backend_is_rejected(roots):
    dataset = checked(roots).dataset
    dataset.opt['io_backend']['type'] = 'memcached'
    with pytest.raises(UserError, match="x.io_backend.type: 'memcached' is not supported"):
        CheckedDataset(dataset, 'x')


class OwnDataset:
    """As a user writes it, with a mistake."""

    def __init__(self, opt):
        self.opt = opt

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.opt['szie']


def test_mistake_in_the_code_of_an_own_data_set_is_located():
    with pytest.raises(UserError, match=r"^x: image 0: KeyError: 'szie' \(.*test_checked_dataset.py, line \d+\)\.$"):
        CheckedDataset(OwnDataset({'size': 8}), 'x')[0]
    dataset = OwnDataset({})
    del dataset.opt
    with pytest.raises(UserError, match='^datasets.val: type: OwnDataset must keep its options: self.opt = opt.$'):
        CheckedDataset(dataset, 'datasets.val')
