"""Images and maps of paired data sets, checked before a training."""
import os

import cv2
import lmdb
import numpy as np
import pytest
from conftest import random_images, write_images
from PIL import Image

from udl_plugin.config.dataset_checks import check_maps, check_pairs
from udl_plugin.data.map_format import METADATA, make_metadata
from udl_plugin.errors import UserErrors
from udl_plugin.utils.atomic_io import atomic_write


def options(folder, kind, gt, lq, phase='train', scale=2, gt_size=8):
    """Writes the images `{key: (height, width)}` and returns the options of their data set."""
    roots = {side: write_images(folder / (f'{side}.lmdb' if kind == 'lmdb' else side),
                                {key: random_images(1, *size)['image_0'] for key, size in sizes.items()})
             for side, sizes in (('gt', gt), ('lq', lq))}
    return {'type': 'PairedImageDataset', 'phase': phase, 'scale': scale, 'gt_size': gt_size,
            'io_backend': {'type': kind}, 'dataroot_gt': str(roots['gt']), 'dataroot_lq': str(roots['lq'])}


PATH = ('datasets', 'train')


def refused(opt, key, *parts):
    """One error, at a key of the data set or, if that is None, at the data set itself."""
    with pytest.raises(UserErrors) as caught:
        check_pairs(opt, PATH)
    (error,) = caught.value.errors
    assert error.path == (*PATH, *filter(None, [key]))
    for part in parts:
        assert str(part) in error.message


kinds = pytest.mark.parametrize('kind', ['lmdb', 'disk'])


@kinds
@pytest.mark.parametrize('phase', ['train', 'val'])
def test_good_data_passes(tmp_path, kind, phase):
    sizes = {'a': (16, 20), 'b': (24, 16)}
    opt = options(tmp_path, kind, sizes, {key: (h // 2, w // 2) for key, (h, w) in sizes.items()}, phase)
    pairs = check_pairs(opt, PATH)
    assert pairs.number == 2
    assert [(gt, lq) for _, gt, lq in pairs.sizes] == [((16, 20), (8, 10)), ((24, 16), (12, 8))]
    assert opt['io_backend'] == {'type': kind}  # BasicSR pops from it; we must not


@kinds
def test_validation_gt_may_exceed_a_multiple(tmp_path, kind):
    check_pairs(options(tmp_path, kind, {'a': (17, 21)}, {'a': (8, 10)}, 'val'), PATH)


@kinds
@pytest.mark.parametrize('phase', ['train', 'val'])
def test_other_scale(tmp_path, kind, phase):
    opt = options(tmp_path, kind, {'good': (16, 16), 'odd': (16, 16)}, {'good': (8, 8), 'odd': (4, 4)}, phase)
    refused(opt, None, 'odd', 'GT is 16 x 16 and LQ 4 x 4', 'scale of 2', opt['dataroot_lq'])
    opt = {**opt, 'scale': 4}
    refused(opt, None, 'good', 'scale of 4')


@kinds
def test_image_smaller_than_patch(tmp_path, kind):
    refused(options(tmp_path, kind, {'a': (16, 12)}, {'a': (8, 6)}, gt_size=16), None, 'a', 'gt_size: 16')


@kinds
def test_bad_patch_size(tmp_path, kind):
    refused(options(tmp_path, kind, {'a': (16, 16)}, {'a': (8, 8)}, gt_size=9), 'gt_size', '9: ', 'scale, 2')


def test_names_that_differ(tmp_path):
    opt = options(tmp_path, 'disk', {'a': (16, 16)}, {'ax2': (8, 8)})
    check_pairs({**opt, 'filename_tmpl': '{}x2'}, PATH)
    refused(opt, None, "'a.png' of GT has no LQ image 'a.png'. There is 'ax2.png': write filename_tmpl: '{}x2'. GT is")
    (tmp_path / 'lq' / 'bx2.png').touch()  # not in the list: not looked at
    (tmp_path / 'list.txt').write_text('a.png (16,16,3)\n')
    check_pairs({**opt, 'filename_tmpl': '{}x2', 'meta_info_file': str(tmp_path / 'list.txt')}, PATH)


@pytest.mark.parametrize('template', ['{', '{1}', '{x}', '{0.nope}', 'x', '{}{}'])
def test_wrong_template(tmp_path, template):
    opt = options(tmp_path, 'disk', {'a': (16, 16)}, {'a': (8, 8)})
    refused({**opt, 'filename_tmpl': template}, None, f"filename_tmpl '{template}'")


@pytest.mark.parametrize('listed', ['/dev/zero', 'nowhere.txt', 'a\0b'])
def test_list_that_is_not_a_file(tmp_path, listed):
    opt = options(tmp_path, 'disk', {'a': (16, 16)}, {'a': (8, 8)})
    refused({**opt, 'meta_info_file': listed}, 'meta_info_file', 'there is no file')


@kinds
@pytest.mark.parametrize('side', ['dataroot_gt', 'dataroot_lq'])
def test_missing_root(tmp_path, kind, side):
    opt = options(tmp_path, kind, {'a': (16, 16)}, {'a': (8, 8)})
    refused({**opt, side: '/nowhere/data.lmdb'}, side, '/nowhere/data.lmdb', 'no folder')
    refused({**opt, side: None}, side, 'is missing')


@kinds
def test_empty(tmp_path, kind):
    refused(options(tmp_path, kind, {}, {}), 'dataroot_gt', 'empty' if kind == 'lmdb' else 'contains no image')


@kinds
def test_unpaired(tmp_path, kind):
    parts = ("1 only in GT ['b']", "1 only in LQ ['c']") if kind == 'lmdb' else ("'b.png' of GT has no LQ", tmp_path)
    refused(options(tmp_path, kind, {'a': (16, 16), 'b': (16, 16)}, {'a': (8, 8), 'c': (8, 8)}), None, *parts)


def test_file_without_partner(tmp_path):
    opt = options(tmp_path, 'disk', {'a': (16, 16)}, {'a': (8, 8), 'b': (8, 8), 'c': (8, 8), 'd': (8, 8)})
    refused(opt, None, "'b.png' of LQ has no GT image, nor have 2 more. GT is ")


def test_suffixes_that_differ(tmp_path):
    opt = options(tmp_path, 'disk', {'a': (16, 16)}, {'a': (8, 8)})
    Image.new('RGB', (16, 16)).save(tmp_path / 'gt/a.jpg')
    os.unlink(tmp_path / 'gt/a.png')
    refused(opt, None, "'a.jpg' of GT has no LQ image 'a.jpg'. There is 'a.png', but both need the same suffix:")


@pytest.mark.parametrize('name', ['Thumbs.db', 'list.txt', 'b.gif'])
@pytest.mark.parametrize('side', ['gt', 'lq'])
def test_file_that_is_not_an_image(tmp_path, name, side):
    opt = options(tmp_path, 'disk', {'a': (16, 16)}, {'a': (8, 8)})
    (tmp_path / side / name).write_bytes(b'x')
    refused(opt, f'dataroot_{side}', f"{side}/{name}' cannot be read: it is not an image in PNG", 'or remove it')


def test_links(tmp_path):
    for side, size in (('gt', 16), ('lq', 8)):
        write_images(tmp_path / 'data' / side, random_images(2, size))
        (tmp_path / side).mkdir()
        for number in range(2):
            (tmp_path / side / f'image_{number}.png').symlink_to(f'../data/{side}/image_{number}.png')
    (tmp_path / 'gt_link').symlink_to('gt')
    opt = options(tmp_path, 'lmdb', {}, {})
    opt = {**opt, 'io_backend': {'type': 'disk'}, 'dataroot_gt': str(tmp_path / 'gt_link'),
           'dataroot_lq': str(tmp_path / 'lq')}
    for phase in ('train', 'val'):
        assert check_pairs({**opt, 'phase': phase}, PATH).number == 2
    os.unlink(tmp_path / 'data/lq/image_1.png')
    refused(opt, 'dataroot_lq', "lq/image_1.png' is a broken link, to '../data/lq/image_1.png'.")


def test_rotation_in_exif(tmp_path):
    """The size is that of the image as it is read."""
    opt = options(tmp_path, 'disk', {'a': (16, 20)}, {'a': (10, 8)})
    refused(opt, None, 'GT is 20 x 16 and LQ 8 x 10')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (20, 16)).save(tmp_path / 'gt/a.png', exif=exif)
    for phase in ('train', 'val'):
        assert check_pairs({**opt, 'phase': phase}, PATH).sizes[0][1:] == ((20, 16), (10, 8))
    Image.new('RGB', (10, 8)).save(tmp_path / 'lq/a.png')
    refused(opt, None, 'GT is 16 x 20 and LQ 10 x 8')


@kinds
def test_validation_images_are_decoded(tmp_path, kind):
    """Of a training set not: on_bad_record: skip may be meant to skip them."""
    sizes = dict.fromkeys('abc', (64, 64))
    opt = options(tmp_path, kind, sizes, dict.fromkeys('abc', (32, 32)), 'val')
    for name in 'bc':
        if kind == 'lmdb':
            with lmdb.open(opt['dataroot_lq'], lock=False) as env, env.begin(write=True) as txn:
                txn.put(name.encode(), txn.get(name.encode())[:-50])
        else:
            file = tmp_path / f'lq/{name}.png'
            file.write_bytes(file.read_bytes()[:-50])
    refused(opt, None, "b' cannot" if kind == 'lmdb' else "lq/b.png' cannot", 'be read', 'corrupted',
            'Restore the image, or remove it from GT and LQ', 'So it is with 1 more')
    check_pairs({**opt, 'phase': 'train'}, PATH)


def test_validation_jpeg_that_opencv_would_complete(tmp_path):
    opt = options(tmp_path, 'disk', {}, {}, 'val')
    for side, size in (('gt', 64), ('lq', 32)):
        cv2.imwrite(str(tmp_path / side / 'a.jpg'), random_images(1, size)['image_0'])
    assert check_pairs(opt, PATH).deep == ''
    file = tmp_path / 'gt/a.jpg'
    file.write_bytes(file.read_bytes()[:-500])
    refused(opt, None, "gt/a.jpg' cannot be read: ", 'truncated', 'Restore the image')


@kinds
@pytest.mark.parametrize('phase', ['train', 'val', 'test'])
def test_16_bits_are_noted(tmp_path, kind, phase):
    opt = options(tmp_path, kind, {'a': (16, 16)}, {'a': (8, 8)}, phase)
    assert check_pairs(opt, PATH).deep == ''
    deep = cv2.imencode('.png', np.zeros((8, 8, 3), np.uint16))[1].tobytes()
    if kind == 'lmdb':
        with lmdb.open(opt['dataroot_lq'], lock=False) as env, env.begin(write=True) as txn:
            txn.put(b'a', deep)
    else:
        (tmp_path / 'lq/a.png').write_bytes(deep)
    name = f"'{opt['dataroot_lq']}': 'a'" if kind == 'lmdb' else f"'{tmp_path}/lq/a.png'"
    assert check_pairs(opt, PATH).deep == name


def test_incomplete_lmdb(tmp_path):
    opt = options(tmp_path, 'lmdb', {'a': (16, 16)}, {'a': (8, 8)})
    (tmp_path / 'lq.lmdb' / 'data.mdb').unlink()
    refused(opt, 'dataroot_lq', 'data.mdb', 'lq.lmdb')


def test_bad_meta_info(tmp_path):
    opt = options(tmp_path, 'lmdb', {'a': (16, 16)}, {'a': (8, 8)})
    (tmp_path / 'gt.lmdb' / 'meta_info.txt').write_text('a.png (16,16,3) 1\nb\n')
    refused(opt, 'dataroot_gt', 'gt.lmdb/meta_info.txt', 'line 2')


def test_broken_image(tmp_path):
    opt = options(tmp_path, 'disk', {'a': (16, 16)}, {'a': (8, 8)}, 'val')
    (tmp_path / 'lq' / 'a.png').write_bytes(b'no picture')
    refused(opt, None, 'a.png', 'cannot be read')


def test_truncated_lmdb(tmp_path):
    """BasicSR's workers would be killed by a bus error."""
    opt = options(tmp_path, 'lmdb', {'a': (64, 64)}, {'a': (32, 32)})
    data = tmp_path / 'gt.lmdb' / 'data.mdb'
    data.write_bytes(data.read_bytes()[:-4096])
    refused(opt, 'dataroot_gt', data, 'is truncated')


def test_lmdb_as_folder(tmp_path):
    opt = options(tmp_path, 'lmdb', {'a': (8, 8)}, {'a': (4, 4)})
    with pytest.raises(UserErrors) as caught:
        check_pairs({**opt, 'io_backend': {'type': 'disk'}}, PATH)
    for side, error in zip(('dataroot_gt', 'dataroot_lq'), caught.value.errors):  # both at once
        assert error.path == (*PATH, side)
        assert 'is an LMDB; write type: lmdb' in error.message


def maps(folder, sizes, scale=2, without=()):
    """Writes maps of those sizes and returns the options of a data set with them."""
    opt = options(folder, 'lmdb', {'a': (16, 20), 'b': (24, 16)}, {'a': (8, 10), 'b': (12, 8)})
    path = write_images(folder / 'maps.lmdb', {key: random_images(1, *size)['image_0'] for key, size in sizes.items()})
    limits = {key: (0.0, 1.0) for key in sizes if key not in without}
    atomic_write(path / METADATA, make_metadata('m', 'params', 'f', {}, scale, limits))
    return {**opt, 'dataroot_uncertainty': str(path)}


GOOD = {'a': (16, 20), 'b': (24, 16)}


def check(opt):
    check_maps(opt, check_pairs(opt, PATH), PATH)


def test_good_maps_pass(tmp_path):
    check(maps(tmp_path, {**GOOD, 'another': (4, 4)}))


@pytest.mark.parametrize(('sizes', 'kwargs', 'changes', 'key', 'message'), [
    (GOOD, {}, {'phase': 'val'}, 'type', 'is for training from LMDBs; write PairedImageDataset'),
    (GOOD, {}, {'dataroot_uncertainty': None}, 'dataroot_uncertainty', 'is missing; udl-prepare uncertainty writes it'),
    (GOOD, {}, {'dataroot_uncertainty': 'nowhere.lmdb'}, 'dataroot_uncertainty', "there is no LMDB 'nowhere.lmdb'"),
    (GOOD, {}, {'mean': [0.5, 0.5, 0.5]}, 'mean', 'maps are made from images without normalization'),
    (GOOD, {}, {'color': 'y'}, 'dataroot_uncertainty',
     "'a': its map is 20 x 16 pixels of 3 channels, not 20 x 16 of 1"),
    (GOOD, {'scale': 4}, {}, 'dataroot_uncertainty', "maps.lmdb' are of scale 4, not of scale: 2"),
    ({'a': (16, 20)}, {}, {}, 'dataroot_uncertainty', "there is no map of 'b'. Have udl-prepare uncertainty write"),
    (GOOD, {'without': ['a']}, {}, 'dataroot_uncertainty', "there is no map of 'a'"),
    ({**GOOD, 'b': (16, 24)}, {}, {}, 'dataroot_uncertainty',
     "'b': its map is 24 x 16 pixels of 3 channels, not 16 x 24 of 3"),
])
def test_bad_maps(tmp_path, sizes, kwargs, changes, key, message):
    with pytest.raises(UserErrors) as caught:
        check({**maps(tmp_path, sizes, **kwargs), **changes})
    (error,) = caught.value.errors
    assert error.path == (*PATH, key)
    assert message in error.message


def test_maps_for_folders(tmp_path):
    opt = maps(tmp_path, GOOD)
    with pytest.raises(UserErrors, match='datasets.train.type: .*is for training from LMDBs'):
        check_maps({**opt, 'io_backend': {'type': 'disk'}}, check_pairs(opt, PATH), PATH)


def test_maps_that_are_images(tmp_path):
    opt = {**maps(tmp_path, GOOD), 'dataroot_uncertainty': str(tmp_path / 'gt.lmdb')}
    with pytest.raises(UserErrors, match=r"datasets.train.dataroot_uncertainty: '.*gt.lmdb' has no uncertainty.json"):
        check(opt)
