"""Batches from memory equal those that BasicSR reads, bit for bit."""
import random

import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from conftest import random_images, write_images

from udl_plugin.data.checked_dataset import CheckedDataset
from udl_plugin.data.image_cache import CROP, ImageCache
from udl_plugin.data.map_format import METADATA, make_metadata
from udl_plugin.errors import UserError
from udl_plugin.utils.atomic_io import atomic_write

SCALE = 3
KEYS = ('lq', 'gt', 'log_var')


@pytest.fixture
def options(tmp_path):
    """Options of a training set of images of several sizes, with maps."""
    gt = {}
    for number, size in enumerate(((30, 45), (36, 36), (51, 30))):
        generator = np.random.default_rng(number)
        gt[f'{3 - number}'] = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    write_images(tmp_path / 'gt.lmdb', gt)
    write_images(tmp_path / 'lq.lmdb', {name: np.ascontiguousarray(255 - img[1::SCALE, 1::SCALE])
                                        for name, img in gt.items()})
    write_images(tmp_path / 'maps.lmdb', {name: np.roll(img, 7) for name, img in gt.items()})
    limits = {name: (-1 / (number + 2), 4.1 + number) for number, name in enumerate(gt)}
    atomic_write(tmp_path / 'maps.lmdb' / METADATA, make_metadata('m', 'params', 'f', {}, SCALE, limits))

    def make(kind, **changes):
        return {'name': 'x', 'type': kind, 'phase': 'train', 'scale': SCALE, 'gt_size': 12,
                'dataroot_gt': str(tmp_path / 'gt.lmdb'), 'dataroot_lq': str(tmp_path / 'lq.lmdb'),
                'io_backend': {'type': 'lmdb'}, 'use_hflip': True, 'use_rot': True, **changes}
    return make


def read(options, cut=None):
    """Many items, in the same order and from the same random numbers; and the next of those."""
    data = CheckedDataset(build_dataset(options), 'datasets.train')
    random.seed(3)
    items = [data[number % 3] for number in range(60)]
    if cut:
        assert items[0].keys() == {CROP, 'lq_path', 'gt_path'}
        batch = cut(torch.stack([item[CROP] for item in items]))
        items = [{**item, **{name: part[number] for name, part in batch.items()}} for number, item in enumerate(items)]
    return items, random.random()


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
@pytest.mark.parametrize('cache', ['device', 'host', None])
@pytest.mark.parametrize('maps', [False, True])
@pytest.mark.parametrize('changes', [{}, {'use_hflip': False}, {'use_rot': False}, {'gt_size': 30}], ids=str)
def test_batches_are_those_of_basicsr(options, maps, cache, changes, device, tmp_path):
    if maps:
        changes = {**changes, 'dataroot_uncertainty': str(tmp_path / 'maps.lmdb')}
    expected = read(options('PairedImageUncertaintyDataset' if maps else 'PairedImageDataset', **changes))
    opt = options('PairedImageCachedDataset', **changes, **({'cache': cache} if cache else {}))
    found = read(opt, None if cache == 'host' else ImageCache(opt, torch.device(device)).cut)
    assert found[1] == expected[1], 'the same random numbers were drawn'
    for one, other in zip(found[0], expected[0]):
        assert {*other} == {*one} - {CROP}
        assert (one['lq_path'], one['gt_path']) == (other['lq_path'], other['gt_path'])
        for name in KEYS[:2 + maps]:
            assert one[name].dtype is torch.float32
            assert torch.equal(one[name].cpu(), other[name]), name


def test_images_have_to_fit(options, monkeypatch):
    for module in ('paired_datasets', 'image_cache'):
        monkeypatch.setattr(f'udl_plugin.data.{module}.available_memory', lambda: 2000)
    opt = options('PairedImageCachedDataset', cache='host')
    message = r"cache: .*lq.lmdb, .*gt.lmdb have 0 MiB decoded, and of (main memory|the memory of cpu) 0 MiB are free"
    with pytest.raises(UserError, match=message):
        build_dataset(opt)
    with pytest.raises(UserError, match=message):
        ImageCache(opt, torch.device('cpu'))


def test_what_is_not_supported(options):
    for changes in ({'mean': [0.5] * 3}, {'color': 'y'}):
        with pytest.raises(UserError, match='is not supported; write type: PairedImageDataset'):
            build_dataset(options('PairedImageCachedDataset', **changes))


def test_corrupted_image_is_named(options, tmp_path):
    opt = options('PairedImageCachedDataset')
    images = random_images(3, 12, 12)
    write_images(tmp_path / 'broken.lmdb', images)
    text = (tmp_path / 'broken.lmdb' / 'data.mdb').read_bytes()
    (tmp_path / 'broken.lmdb' / 'data.mdb').write_bytes(text.replace(b'IDAT', b'XDAT'))
    opt.update(dataroot_gt=str(tmp_path / 'broken.lmdb'), dataroot_lq=str(tmp_path / 'broken.lmdb'))
    with pytest.raises(UserError, match="broken.lmdb': 'image_0' cannot be decoded: truncated, corrupted"):
        ImageCache(opt, torch.device('cpu'))
