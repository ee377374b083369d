import os
import shutil
import sys

import cv2
import numpy as np
import pytest
import yaml
from conftest import OPTIONS, random_images, read_pairs, write_images

from udl_plugin.data.lmdb_io import encode
from udl_plugin.errors import UserError
from udl_plugin.prepare import datasets
from udl_plugin.prepare.datasets import crop_positions, prepare_benchmark, prepare_train
from udl_plugin.utils.imresize import imresize

SMALL = {'crop': 24, 'step': 12}


def folder(path, **images):
    return write_images(path, images)


def image(height, width):
    return random_images(1, height, width)['image_0']


def read(path):
    return {file.name: cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in path.iterdir()}


def content(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob('*') if file.is_file()}


@pytest.mark.parametrize('length, crop, step, expected', [
    (48, 24, 12, [0, 12, 24]), (50, 24, 12, [0, 12, 24, 26]), (24, 24, 12, [0]), (25, 24, 12, [0, 1]),
    (20, 24, 12, [0]), (60, 24, 36, [0, 36]), (59, 24, 36, [0, 35])])
def test_crop_positions(length, crop, step, expected):
    assert crop_positions(length, crop, step) == expected


def test_train(tmp_path):
    """Sub-images of HR and LR show the same part of the same photo, whatever its size, and BasicSR reads them."""
    hr = folder(tmp_path / 'hr', a=image(50, 61), b=image(24, 24))
    prepared = prepare_train([hr], [2, 3], tmp_path / 'SET', **SMALL)
    names = ['SET_train_HR_sub.lmdb', 'SET_train_LR_bicubic_X2_sub.lmdb', 'SET_train_LR_bicubic_X3_sub.lmdb']
    assert prepared == ({tmp_path / 'SET' / name: 13 for name in names}, 2, [], [], [], [])
    assert sorted(path.name for path in (tmp_path / 'SET').iterdir()) == names
    hr_image = image(50, 61)[:48, :60]
    for scale in (2, 3):
        pairs = read_pairs(*(tmp_path / 'SET' / names[number] for number in (0, scale - 1)), scale=scale)
        assert list(pairs) == [f'a_s{number:03d}' for number in range(1, 13)] + ['b_s001']
        lr = imresize(hr_image, 1 / scale)
        corners = [(top, left) for top in (0, 12, 24) for left in (0, 12, 24, 36)]
        for (top, left), (key, (gt, lq)) in zip(corners, pairs.items()):
            np.testing.assert_array_equal(gt, hr_image[top:top + 24, left:left + 24], key)
            np.testing.assert_array_equal(lq, lr[top // scale:(top + 24) // scale, left // scale:(left + 24) // scale])


def test_given_lr(tmp_path):
    """Given LR images are used unchanged; those of MATLAB's size, rounded up, lose the extra pixel."""
    hr = folder(tmp_path / 'hr', **{'0001': image(48, 48), '0002': image(50, 62)})
    lr2 = folder(tmp_path / 'x2', **{'0001x2': image(24, 24), '0002x2': image(25, 31)})
    lr4 = folder(tmp_path / 'x4', **{'0001x4': image(12, 12), '0002x4': image(13, 16)})
    prepare_train([hr], [2, 4], tmp_path / 'SET', [lr2, lr4], **SMALL)
    for scale, sizes in ((2, [(24, 24), (25, 31)]), (4, [(12, 12), (13, 16)])):
        pairs = read_pairs(tmp_path / 'SET' / 'SET_train_HR_sub.lmdb',
                           tmp_path / 'SET' / f'SET_train_LR_bicubic_X{scale}_sub.lmdb', scale)
        assert len(pairs) == 9 + 12
        np.testing.assert_array_equal(pairs['0001_s001'][1], image(*sizes[0])[:24 // scale, :24 // scale])
        np.testing.assert_array_equal(pairs['0002_s012'][1],
                                      image(*sizes[1])[24 // scale:48 // scale, 36 // scale:60 // scale])


def test_several_hr_folders(tmp_path):
    a, b = folder(tmp_path / 'a', z=image(24, 24)), folder(tmp_path / 'b', y=image(48, 24))
    lr = [folder(tmp_path / f'{name}{scale}', **{key: image(height // scale, 24 // scale)})
          for name, key, height in (('a', 'z', 24), ('b', 'y', 48)) for scale in (2, 3)]
    prepare_train([a, b], [2, 3], tmp_path / 'SET', lr, name='N', **SMALL)
    meta = (tmp_path / 'SET' / 'N_train_LR_bicubic_X3_sub.lmdb' / 'meta_info.txt').read_text().splitlines()
    assert [line.split('.')[0] for line in meta] == ['z_s001', 'y_s001', 'y_s002', 'y_s003']
    with pytest.raises(UserError, match='lr: 3 folders given, but 4 needed'):
        prepare_train([a, b], [2, 3], tmp_path / 'other', lr[:3], **SMALL)
    with pytest.raises(UserError, match=r"a/z\.png' and '.*b/z\.png' have the same name"):
        prepare_train([a, folder(tmp_path / 'c' / 'b', z=image(24, 24))], [2], tmp_path / 'other', **SMALL)


def test_small_image_is_not_cropped(tmp_path):
    hr = folder(tmp_path / 'hr', a=image(20, 61))
    prepared = prepare_train([hr], [2], tmp_path / 'SET', **SMALL)
    assert prepared.small == [hr / 'a.png']
    narrow = folder(tmp_path / 'narrow', a=image(61, 20), b=image(24, 24))
    assert prepare_train(narrow, [2], tmp_path / 'NARROW', **SMALL).small == [narrow / 'a.png']
    pairs = read_pairs(*prepared.folders)
    assert {(gt.shape, lq.shape) for gt, lq in pairs.values()} == {((20, 24, 3), (10, 12, 3))}


@pytest.mark.parametrize('workers', [0, 2])
def test_result_is_deterministic(tmp_path, workers):
    images = {name: image(48, 40 + number) for number, name in enumerate(['b', 'ä', 'A', '10', '9'])}
    hr = folder(tmp_path / 'hr', **images)
    again = folder(tmp_path / 'again', **dict(reversed(images.items())))
    prepare_train([hr], [2], tmp_path / 'one', name='N', **SMALL)
    prepare_train([again], [2], tmp_path / 'two', name='N', workers=workers, **SMALL)
    assert content(tmp_path / 'one') == content(tmp_path / 'two')


def test_benchmark(tmp_path):
    hr = folder(tmp_path / 'hr', a=image(50, 61), grey=image(24, 24)[..., 0])
    prepared = prepare_benchmark(hr, [2, 3, 4], tmp_path, 'SET')
    assert list(prepared.folders.values()) == [2] * 6
    for scale, (height, width) in ((2, (50, 60)), (3, (48, 60)), (4, (48, 60))):
        gt, lq = read(tmp_path / 'SET' / f'GTmod{scale}'), read(tmp_path / 'SET' / f'LRbicx{scale}')
        np.testing.assert_array_equal(gt['a.png'], image(50, 61)[:height, :width])
        np.testing.assert_array_equal(lq['a.png'], imresize(gt['a.png'], 1 / scale))
        assert lq['grey.png'].shape == (24 // scale, 24 // scale, 3)
        assert (lq['grey.png'] == lq['grey.png'][..., :1]).all()


def test_benchmark_as_lmdb_with_grey_and_mirrored_border(tmp_path):
    hr = folder(tmp_path / 'hr', grey=image(24, 24)[..., 0])
    prepare_benchmark(hr, [2], tmp_path, 'SET', as_lmdb=True, keep_grey=True, border='symmetric')
    assert (tmp_path / 'SET' / 'LRbicx2.lmdb' / 'meta_info.txt').read_text() == 'grey.png (12,12,1) 1\n'
    ((gt, lq),) = read_pairs(tmp_path / 'SET' / 'GTmod2.lmdb', tmp_path / 'SET' / 'LRbicx2.lmdb').values()
    np.testing.assert_array_equal(lq[..., 0], imresize(gt[..., 0], 1 / 2, border='symmetric'))
    assert (lq[..., 0] != imresize(gt[..., 0], 1 / 2)).any()


def test_paths_in_options_are_those_written(tmp_path):
    """Prepared below datasets/ as in docs/data.md."""
    hr = folder(tmp_path / 'hr', a=image(48, 48))
    written = set(prepare_train(hr, [4], tmp_path / 'datasets' / 'DIV2K', **SMALL).folders)
    for name in ('Set5', 'Set14', 'B100', 'Urban100'):
        written |= set(prepare_benchmark(hr, [2, 3, 4], tmp_path / 'datasets', name).folders)
    for file in OPTIONS.glob('*.yml'):
        datasets = yaml.safe_load(file.read_text())['datasets'].values()
        named = {dataset[side] for dataset in datasets for side in ('dataroot_gt', 'dataroot_lq')}
        assert named <= {str(path.relative_to(tmp_path)) for path in written}, file.name
        for dataset in datasets:
            assert dataset['io_backend']['type'] == ('lmdb' if '.lmdb' in dataset['dataroot_gt'] else 'disk')


def test_dropped_alpha_is_reported(tmp_path):
    hr = folder(tmp_path / 'hr', a=random_images(1, 24, 32)['image_0'].reshape(24, 24, 4), b=image(24, 24))
    assert prepare_benchmark(hr, [2], tmp_path, 'SET').alpha == [hr / 'a.png']
    lr = folder(tmp_path / 'lr', a=image(12, 12), b=image(12, 12))
    assert prepare_train(hr, [2], tmp_path / 'SET', lr, **SMALL).alpha == [hr / 'a.png']


@pytest.fixture
def one_bad(tmp_path):
    """HR and LR; image_1 is truncated in HR, image_2 in LR, and image_3 has 16 bits in HR."""
    images = random_images(5, 24)
    hr, lr = write_images(tmp_path / 'hr', images), write_images(tmp_path / 'lr', random_images(5, 12))
    for path in (hr / 'image_1.png', lr / 'image_2.png'):
        path.write_bytes(path.read_bytes()[:-30])
    (hr / 'image_3.png').write_bytes(encode(images['image_3'].astype(np.uint16)))
    return hr, lr


@pytest.mark.parametrize('workers', [0, 2])
def test_bad_image_raises(tmp_path, one_bad, workers):
    hr, lr = one_bad
    with pytest.raises(UserError, match=r'hr/image_1\.png.*--skip-bad'):
        prepare_train([hr], [2], tmp_path / 'SET', [lr], workers=workers, **SMALL)
    assert not (tmp_path / 'SET').exists()


def test_skip_bad(tmp_path, one_bad):
    """A pair is skipped if either side is bad."""
    hr, lr = one_bad
    prepared = prepare_train([hr], [2], tmp_path / 'SET', [lr], skip_bad=True, **SMALL)
    for problem, file in zip(prepared.skipped, ('hr/image_1.png', 'lr/image_2.png', 'hr/image_3.png')):
        assert file in problem
    assert (list(prepared.folders.values()), prepared.images) == ([2, 2], 2)
    assert list(read_pairs(*prepared.folders)) == ['image_0_s001', 'image_4_s001']


def test_all_images_bad_raises(tmp_path):
    hr = tmp_path / 'hr'
    hr.mkdir()
    (hr / 'a.png').write_bytes(b'')
    with pytest.raises(UserError, match=r'no image is left: all 1 cannot be used.*a\.png'):
        prepare_benchmark(hr, [2], tmp_path, 'SET', skip_bad=True)
    assert not (tmp_path / 'SET').exists()


def test_unpaired_names_raise(tmp_path):
    hr = folder(tmp_path / 'hr', a=image(24, 24), b=image(24, 24))
    lr = folder(tmp_path / 'lr', ax2=image(12, 12), cx2=image(12, 12))
    with pytest.raises(UserError, match=r'Without partner: .*hr/b\.png, .*lr/cx2\.png'):
        prepare_train([hr], [2], tmp_path / 'SET', [lr], **SMALL)
    assert not (tmp_path / 'SET').exists()


def test_many_unpaired_names_are_truncated(tmp_path):
    hr = write_images(tmp_path / 'hr', random_images(30))
    lr = folder(tmp_path / 'lr', image_0=image(6, 6))
    with pytest.raises(UserError, match='and 19 more$'):
        prepare_train([hr], [2], tmp_path / 'SET', [lr], **SMALL)


def test_lr_of_another_scale_raises(tmp_path):
    hr = folder(tmp_path / 'hr', a=image(24, 24))
    for size in ((6, 6), (12, 13), (13, 12), (11, 12)):
        lr = folder(tmp_path / 'x'.join(map(str, size)), a=image(*size))
        found, needed = f"a.png' is {size[1]} x {size[0]} .*hr/a.png', 24 x 24", '12 x 12 at a scale of 2'
        with pytest.raises(UserError, match=f'{found}, requires {needed}'):
            prepare_train([hr], [2], tmp_path / 'SET', [lr], **SMALL)


def test_image_smaller_than_the_scale_raises(tmp_path):
    hr = folder(tmp_path / 'hr', a=image(3, 24))
    with pytest.raises(UserError, match=r'a\.png.* is 24 x 3 pixels, less than the scale, 4'):
        prepare_benchmark(hr, [4], tmp_path, 'SET')


@pytest.mark.parametrize('changes, message', [
    ({'crop': 50}, 'crop 50 must be a multiple of all scales, so of 12'),
    ({'step': 0}, 'step 0'), ({'step': 10}, 'step 10'),
    ({'name': 'a/b'}, "name 'a/b'"), ({'name': ''}, "name ''"), ({'name': '..'}, "name '..'"),
    ({'scales': [1]}, 'scales 1'), ({'scales': [2, 2]}, 'scales 2 2'), ({'scales': []}, 'scales'),
    ({'border': 'zero'}, 'border zero must be one of clamp, symmetric')])
def test_bad_options_raise(tmp_path, changes, message):
    hr = folder(tmp_path / 'hr', a=image(24, 24))
    with pytest.raises(UserError, match=message):
        prepare_train(**{'hr': [hr], 'scales': [3, 4], 'out': tmp_path / 'SET', **SMALL, **changes})
    assert not (tmp_path / 'SET').exists()


@pytest.mark.skipif(sys.platform != 'linux', reason='other file systems refuse such names')
def test_any_name_of_a_file(tmp_path):
    """Old archives unpack to names that are not UTF-8."""
    names = ['ä', '图像', 'a.b', os.fsdecode(b'\xe4')]
    hr = folder(tmp_path / 'hr', **{name: image(24, 24) for name in names})
    prepared = prepare_benchmark(hr, [2], tmp_path, 'SET')
    assert {path.stem for path in (tmp_path / 'SET' / 'GTmod2').iterdir()} == set(names)
    prepared = prepare_train(hr, [2], tmp_path / 'SET', workers=1, **SMALL)
    assert list(read_pairs(*prepared.folders)) == ['%C3%A4_s001', '%E4_s001', '%E5%9B%BE%E5%83%8F_s001', 'a%2Eb_s001']


def test_name_too_long_for_a_key_raises(tmp_path):
    hr = folder(tmp_path / 'hr', **{'图' * 60: image(24, 24)})
    with pytest.raises(UserError, match='图.*too long for an LMDB'):
        prepare_train(hr, [2], tmp_path / 'SET', skip_bad=True, **SMALL)
    assert not (tmp_path / 'SET').exists()
    prepare_benchmark(hr, [2], tmp_path, 'SET')


def test_existing_set_raises_and_is_kept(tmp_path):
    hr, other = folder(tmp_path / 'hr', a=image(24, 24)), folder(tmp_path / 'other', b=image(24, 24))
    prepare_train([hr], [2], tmp_path / 'SET', **SMALL)
    before = content(tmp_path / 'SET')
    with pytest.raises(UserError, match=r'HR_sub\.lmdb, .*SET_train_LR_bicubic_X2_sub\.lmdb: exists already.*--force'):
        prepare_train([hr], [2, 3], tmp_path / 'SET', **SMALL)
    assert content(tmp_path / 'SET') == before
    prepare_train([other], [2], tmp_path / 'SET', force=True, **SMALL)
    assert list(read_pairs(*sorted((tmp_path / 'SET').iterdir()))) == ['b_s001']


def test_lr_never_outlives_its_hr(tmp_path):
    hr = folder(tmp_path / 'hr', a=image(48, 48))
    prepare_train(hr, [2, 4], tmp_path / 'SET', **SMALL)
    before = content(tmp_path / 'SET')
    for force in (False, True):
        with pytest.raises(UserError, match=r'X4_sub\.lmdb: would not match the new HR images.* all scales and.*force'):
            prepare_train(hr, [2, 3], tmp_path / 'SET', force=force, **SMALL)
    assert content(tmp_path / 'SET') == before
    shutil.rmtree(tmp_path / 'SET' / 'SET_train_HR_sub.lmdb')
    with pytest.raises(UserError, match=r'X2_sub\.lmdb, .*X4_sub\.lmdb: would not match'):
        prepare_train(hr, [3], tmp_path / 'SET', **SMALL)
    prepare_train(hr, [2, 4, 3], tmp_path / 'SET', force=True, **SMALL)


def test_force_keeps_the_old_set_until_the_new_one_is_complete(tmp_path, one_bad):
    good = folder(tmp_path / 'good', a=image(24, 24))
    prepare_benchmark(good, [2], tmp_path, 'SET')
    before = content(tmp_path / 'SET')
    with pytest.raises(UserError, match='image_1'):
        prepare_benchmark(one_bad[0], [2], tmp_path, 'SET', force=True)
    assert content(tmp_path / 'SET') == before


def test_data_that_does_not_read_back_is_not_kept(tmp_path, monkeypatch):
    def damaged(img, compress):
        return encode(img)[:-20]

    monkeypatch.setattr(datasets, 'encode', damaged)
    hr = folder(tmp_path / 'hr', a=image(24, 24))
    with pytest.raises(UserError, match='does not read back: SET_train_HR_sub.lmdb: a_s001'):
        prepare_train([hr], [2], tmp_path / 'SET', **SMALL)
    assert not (tmp_path / 'SET').exists()


def test_images_that_do_not_pair_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, 'imresize', lambda img, scale, border: imresize(img, 1 / 3, border))
    with pytest.raises(UserError, match='does not read back: a_s001: HR is 24 x 24 and LR .* not a scale of 2'):
        prepare_train(folder(tmp_path / 'hr', a=image(24, 24)), [2], tmp_path / 'SET', **SMALL)
    assert not (tmp_path / 'SET').exists()


def test_input_is_not_replaced(tmp_path):
    hr = folder(tmp_path / 'S' / 'LRbicx2', a=image(24, 24))
    before = content(hr)
    with pytest.raises(UserError, match=r"LRbicx2' would be written, but holds input images"):
        prepare_benchmark(hr, [2], tmp_path, 'S', force=True)
    assert content(hr) == before


def test_file_too_large(tmp_path):
    """Like a disk quota, but needs no root: a limit for the files of this process."""
    import resource
    hr = write_images(tmp_path / 'hr', random_images(3, 240))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, before[1]))
    try:
        with pytest.raises(UserError, match=r'SET_train_.*_sub\.lmdb. cannot be written: .* MB are free.'):
            prepare_train([hr], [2], tmp_path / 'SET', crop=120, step=60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / 'SET').exists()


# ---- folders with HR beside other images


def self_ex_sr(path, scale=4):
    """A folder as SelfExSR publishes Urban100."""
    hr = random_images(2, 48)
    for number, img in enumerate(hr.values(), 1):
        for kind in ('HR', 'LR', 'bicubic', 'glasner', 'SelfExSR'):
            small = img[::scale, ::scale] if kind == 'LR' else img if kind == 'HR' else img // 2
            folder_of = path / f'img_{number:03d}_SRF_{scale}_{kind}.png'
            path.mkdir(exist_ok=True)
            folder_of.write_bytes(encode(small))
    return list(hr.values())


@pytest.mark.parametrize('options', [{}, {'hr_pattern': '*_HR.png'}])
def test_only_hr_of_a_mixed_folder(tmp_path, options):
    images = self_ex_sr(tmp_path / 'image_SRF_4')
    result = prepare_benchmark(tmp_path / 'image_SRF_4', [4], tmp_path / 'out', 'Urban100', **options)
    found = read(tmp_path / 'out/Urban100/GTmod4')
    assert sorted(found) == ['img_001.png', 'img_002.png']
    assert all((img == images[number]).all() for number, (_, img) in enumerate(sorted(found.items())))
    assert (result.images, len(result.left_out)) == (2, 8)
    prepare_train(tmp_path / 'image_SRF_4', [4], tmp_path / 'SET', **SMALL, **options)
    assert len(read_pairs(*(tmp_path / f'SET/SET_train_{kind}_sub.lmdb' for kind in ('HR', 'LR_bicubic_X4')), 4)) == 18


def test_hr_pattern_that_does_not_serve(tmp_path):
    self_ex_sr(tmp_path / 'mixed')
    with pytest.raises(UserError, match="mixed' has no image whose name matches --hr-pattern 'x[*].png'"):
        prepare_benchmark(tmp_path / 'mixed', [4], tmp_path / 'out', 'S', hr_pattern='x*.png')
    self_ex_sr(tmp_path / 'mixed', 2)
    with pytest.raises(UserError, match="SRF_2_HR.png' and .*SRF_4_HR.png' would both be 'img_001'; choose one with"):
        prepare_benchmark(tmp_path / 'mixed', [4], tmp_path / 'out', 'S')
    assert prepare_benchmark(tmp_path / 'mixed', [4], tmp_path / 'out', 'S', hr_pattern='*_SRF_4_HR.png').images == 2


def test_names_without_lr_beside_them_are_kept(tmp_path):
    result = prepare_benchmark(folder(tmp_path / 'hr', a_HR=image(8, 8), b=image(8, 8)), [2], tmp_path, 'S')
    assert sorted(read(tmp_path / 'S/GTmod2')) == ['a_HR.png', 'b.png'] and result.left_out == []
