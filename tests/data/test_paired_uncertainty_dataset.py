"""Maps that are cut, flipped and turned with their images."""
import random

import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader, build_dataset
from conftest import random_images, write_images

from udl_plugin.data.map_format import ABOUT, make_metadata
from udl_plugin.errors import UserError
from udl_plugin.utils.atomic_io import atomic_write

SCALE, LIMITS = 2, (-1.0, 4.1)


@pytest.fixture
def section(tmp_path):
    """A training set whose maps are its GT images, as levels of [-1, 4.1]."""
    gt = random_images(3, 32, 40)
    write_images(tmp_path / 'gt.lmdb', gt)
    write_images(tmp_path / 'lq.lmdb', {name: np.ascontiguousarray(img[::SCALE, ::SCALE]) for name, img in gt.items()})
    write_images(tmp_path / 'maps.lmdb', gt)
    atomic_write(tmp_path / 'maps.lmdb' / ABOUT, make_metadata('m', 'params', 'f', {}, SCALE, dict.fromkeys(gt, LIMITS)))
    return {'name': 'x', 'type': 'PairedImageUncertaintyDataset', 'phase': 'train', 'scale': SCALE, 'gt_size': 12,
            'dataroot_gt': str(tmp_path / 'gt.lmdb'), 'dataroot_lq': str(tmp_path / 'lq.lmdb'),
            'dataroot_uncertainty': str(tmp_path / 'maps.lmdb'), 'io_backend': {'type': 'lmdb'}, 'use_hflip': True,
            'use_rot': True, 'num_worker_per_gpu': 2, 'batch_size_per_gpu': 3}


def test_map_lies_on_its_image(section):
    data = build_dataset(section)
    random.seed(0)
    patches = set()
    for number in range(60):
        item = data[number % 3]
        assert item.keys() == {'lq', 'gt', 'lq_path', 'gt_path', 'log_var'}
        assert item['log_var'].dtype is torch.float32
        expected = item['gt'] * (LIMITS[1] - LIMITS[0]) + LIMITS[0]
        torch.testing.assert_close(item['log_var'], expected)
        patches.add(tuple(item['gt'][0, 0].tolist()))
    assert len(patches) > 50, 'crops, flips and turns differ'


def test_images_are_those_of_upstream(section):
    """The same crops, drawn from the same random numbers: a training with maps sees what one without sees."""
    seen = []
    for changes in ({}, {'type': 'PairedImageDataset'}):
        data = build_dataset({**section, **changes})
        random.seed(3)
        seen.append([data[number % 3] for number in range(9)] + [random.random()])
        del data  # lmdb opens nothing twice in one process
    for one, other in zip(seen[0][:-1], seen[1][:-1]):
        assert all(torch.equal(one[name], other[name]) for name in ('lq', 'gt'))
    assert seen[0][-1] == seen[1][-1]


def test_batches_from_workers(section):
    loader = build_dataloader(build_dataset(section), section, num_gpu=0, seed=0)
    batch = next(iter(loader))
    torch.testing.assert_close(batch['log_var'], batch['gt'] * (LIMITS[1] - LIMITS[0]) + LIMITS[0])


def test_luma_has_one_map(section, tmp_path):
    grey = {name: img[:, :, 0] for name, img in random_images(3, 32, 40).items()}
    write_images(tmp_path / 'grey.lmdb', grey)
    atomic_write(tmp_path / 'grey.lmdb' / ABOUT, make_metadata('m', 'params', 'f', {}, SCALE, dict.fromkeys(grey, LIMITS)))
    item = build_dataset({**section, 'color': 'y', 'dataroot_uncertainty': str(tmp_path / 'grey.lmdb')})[0]
    assert item['gt'].shape == item['log_var'].shape == (1, 12, 12)


def test_lmdb_without_limits(section):
    with pytest.raises(UserError, match='has no uncertainty.json'):
        build_dataset({**section, 'dataroot_uncertainty': section['dataroot_gt']})
