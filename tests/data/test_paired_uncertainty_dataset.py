"""Maps get the same crop, flip and rotation as their images."""
import random

import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader, build_dataset
from conftest import random_images, write_images

from udl_plugin.data.map_format import METADATA, make_metadata
from udl_plugin.errors import UserError
from udl_plugin.utils.atomic_io import atomic_write

SCALE, LIMITS = 2, (-1.0, 4.1)


def write_limits(path, names):
    atomic_write(path / METADATA, make_metadata('m', 'params', 'f', {}, SCALE, dict.fromkeys(names, LIMITS)))


@pytest.fixture
def options(tmp_path):
    """A training set whose maps are its GT images, as 8-bit levels of [-1, 4.1]."""
    gt = random_images(3, 32, 40)
    write_images(tmp_path / 'gt.lmdb', gt)
    write_images(tmp_path / 'lq.lmdb', {name: np.ascontiguousarray(img[::SCALE, ::SCALE]) for name, img in gt.items()})
    write_images(tmp_path / 'maps.lmdb', gt)
    write_limits(tmp_path / 'maps.lmdb', gt)
    return {'name': 'x', 'type': 'PairedImageUncertaintyDataset', 'phase': 'train', 'scale': SCALE, 'gt_size': 12,
            'dataroot_gt': str(tmp_path / 'gt.lmdb'), 'dataroot_lq': str(tmp_path / 'lq.lmdb'),
            'dataroot_uncertainty': str(tmp_path / 'maps.lmdb'), 'io_backend': {'type': 'lmdb'}, 'use_hflip': True,
            'use_rot': True, 'num_worker_per_gpu': 2, 'batch_size_per_gpu': 3}


def test_map_is_aligned_with_its_image(options):
    data = build_dataset(options)
    random.seed(0)
    patches = set()
    for number in range(60):
        item = data[number % 3]
        assert item.keys() == {'lq', 'gt', 'lq_path', 'gt_path', 'log_var'}
        assert item['log_var'].dtype is torch.float32
        expected = item['gt'] * (LIMITS[1] - LIMITS[0]) + LIMITS[0]
        torch.testing.assert_close(item['log_var'], expected)
        patches.add(tuple(item['gt'][0, 0].tolist()))
    assert len(patches) > 50, 'crops, flips and rotations vary'


def test_images_are_those_of_basicsr(options):
    """The same crops from the same random numbers: training with maps sees the same images as without."""
    seen = []
    for changes in ({}, {'type': 'PairedImageDataset'}):
        data = build_dataset({**options, **changes})
        random.seed(3)
        seen.append([data[number % 3] for number in range(9)] + [random.random()])
        del data  # a process can open an LMDB only once
    for one, other in zip(seen[0][:-1], seen[1][:-1]):
        assert all(torch.equal(one[name], other[name]) for name in ('lq', 'gt'))
    assert seen[0][-1] == seen[1][-1]


def test_batches_from_workers(options):
    loader = build_dataloader(build_dataset(options), options, num_gpu=0, seed=0)
    batch = next(iter(loader))
    torch.testing.assert_close(batch['log_var'], batch['gt'] * (LIMITS[1] - LIMITS[0]) + LIMITS[0])


def test_luma_has_a_map_of_one_channel(options, tmp_path):
    grey = {name: img[:, :, 0] for name, img in random_images(3, 32, 40).items()}
    write_images(tmp_path / 'grey.lmdb', grey)
    write_limits(tmp_path / 'grey.lmdb', grey)
    item = build_dataset({**options, 'color': 'y', 'dataroot_uncertainty': str(tmp_path / 'grey.lmdb')})[0]
    assert item['gt'].shape == item['log_var'].shape == (1, 12, 12)


def test_lmdb_without_metadata_raises(options):
    with pytest.raises(UserError, match='has no uncertainty.json'):
        build_dataset({**options, 'dataroot_uncertainty': options['dataroot_gt']})
