import re
import struct
import zlib

import cv2
import lmdb
import numpy as np
import pytest
from conftest import random_images, write_images

from udl_plugin.data.lmdb_io import encode, read_meta_info
from udl_plugin.errors import UserError
from udl_plugin.prepare.verify import MATLAB, RESIZERS, check_images, check_pair, compare_content

IMAGES = random_images(40, 12)
by_kind = pytest.mark.parametrize('name', ['x.lmdb', 'x'])


def change(path, key, data):
    """Replaces a record by `data`; None deletes it."""
    with lmdb.open(str(path), lock=False) as env, env.begin(write=True) as txn:
        assert txn.delete(key.encode()) if data is None else txn.put(key.encode(), data)


def problems(path):
    return check_images(path).problems


@by_kind
@pytest.mark.parametrize('workers', [0, 2])
def test_good_images_have_no_problems(tmp_path, name, workers):
    write_images(tmp_path / name, IMAGES)
    found = check_images(tmp_path / name, workers)
    assert found.problems == []
    assert found.shapes == dict.fromkeys(IMAGES, (12, 12, 3))


def test_count_that_is_not_a_multiple_of_the_chunk(tmp_path):
    assert len(check_images(write_images(tmp_path / 'x.lmdb', random_images(17))).shapes) == 17


def test_png_with_a_huge_size_in_its_header(tmp_path):
    path = write_images(tmp_path / 'x.lmdb', IMAGES)
    huge = bytearray(encode(IMAGES['image_0']))
    huge[16:24] = struct.pack('>II', 60000, 60000)
    huge[29:33] = struct.pack('>I', zlib.crc32(huge[12:29]))
    change(path, 'image_1', bytes(huge))
    (problem,) = problems(path)
    assert problem.startswith('image_1: ')


def test_meta_info_that_is_not_utf8_is_read(tmp_path):
    path = write_images(tmp_path / 'x.lmdb', IMAGES)
    with open(path / 'meta_info.txt', 'ab') as file:
        file.write(b'\xe4.png (12,12,3) 1\n')
    (problem,) = problems(path)
    assert 'not in data.mdb' in problem


def test_keys_of_lmdbs_must_be_equal():
    assert check_pair({'a': (4, 4, 3)}, {'ax2': (2, 2, 3)}) == (2, [])
    assert check_pair({'a': (4, 4, 3)}, {'ax2': (2, 2, 3)}, same_names=True)[1]


def test_grey_image_has_one_channel(tmp_path):
    write_images(tmp_path / 'x.lmdb', {'a': IMAGES['image_0'][..., 0]})
    assert check_images(tmp_path / 'x.lmdb') == ({'a': (12, 12, 1)}, [])


def test_bad_records_are_listed(tmp_path):
    path = write_images(tmp_path / 'x.lmdb', IMAGES)
    good = encode(IMAGES['image_0'])
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    change(path, 'image_3', None)
    change(path, 'image_20', good[:-20])
    change(path, 'image_21', bytes(flipped))
    change(path, 'image_22', b'')
    change(path, 'image_23', encode(IMAGES['image_0'][:10]))
    change(path, 'image_24', encode(IMAGES['image_0'].astype(np.uint16)))
    change(path, 'unlisted', good)
    assert [problem.partition(':')[0] for problem in problems(path)] == [
        'image_3', 'image_20', 'image_21', 'image_22', 'image_23', 'image_24', 'unlisted']
    text = '\n'.join(problems(path))
    for part in ('not listed in meta_info.txt', 'not in data.mdb', 'corrupted', '(10, 12, 3), but (12, 12, 3)', '16 b'):
        assert part in text


def test_bad_file_is_listed(tmp_path):
    path = write_images(tmp_path / 'x', IMAGES)
    (path / 'image_7.png').write_bytes(encode(IMAGES['image_7'])[:100])
    assert len(problems(path)) == 1 and 'image_7.png' in problems(path)[0]


@pytest.mark.parametrize('data', [b'', b'not an LMDB' * 1000])
def test_data_that_is_not_an_lmdbs_raises(tmp_path, data):
    path = write_images(tmp_path / 'x.lmdb', IMAGES)
    (path / 'data.mdb').write_bytes(data)
    with pytest.raises(UserError, match=r"data\.mdb' is truncated, corrupted or not an LMDB's"):
        check_images(path)


@pytest.mark.parametrize('part', [0.05, 0.5, 0.99])
def test_truncated_lmdb_raises(tmp_path, part):
    path = write_images(tmp_path / 'x.lmdb', random_images(40, 64))
    data = (path / 'data.mdb').read_bytes()
    kept = int(part * len(data))
    (path / 'data.mdb').write_bytes(data[:kept])
    with pytest.raises(UserError, match=rf"data\.mdb' is truncated: it has {kept} of {len(data)} bytes"):
        check_images(path)


def test_lmdb_that_crashes_a_worker(tmp_path):
    """It is truncated after its size was checked; reading beyond the end of a mapped file is fatal."""
    path = write_images(tmp_path / 'x.lmdb', random_images(40, 64))

    def cut(items, total, description):
        with open(path / 'data.mdb', 'r+b') as file:
            file.truncate(8192)
        return items

    found = check_images(path, workers=1, progress=cut)
    assert found.shapes == {}
    (problem,) = found.problems
    assert problem.startswith('cannot be read to the end: ')


@pytest.mark.parametrize('missing', ['data.mdb', 'meta_info.txt'])
def test_missing_file_raises(tmp_path, missing):
    path = write_images(tmp_path / 'x.lmdb', IMAGES)
    (path / missing).unlink()
    with pytest.raises(UserError, match=missing):
        check_images(path)


def test_bad_meta_info_raises(tmp_path):
    path = write_images(tmp_path / 'x.lmdb', IMAGES)
    (path / 'meta_info.txt').write_text('0001.png\n')
    with pytest.raises(UserError, match=r"meta_info\.txt', line 1: '0001\.png'"):
        read_meta_info(path)


def test_progress(tmp_path):
    calls = []

    def progress(items, total, description):
        calls.append((total, description))
        for item in items:
            calls.append(item)
            yield item

    check_images(write_images(tmp_path / 'x.lmdb', IMAGES), progress=progress)
    assert calls[0] == (40, 'checking x.lmdb')
    assert len(calls) == 41


def test_pair():
    hr, lr = {'a': (12, 24, 3), 'b': (8, 8, 3)}, {'a': (3, 6, 3), 'bx4': (2, 2, 3)}
    assert check_pair(hr, lr) == (4, [])
    assert check_pair(hr, lr, scale=4) == (4, [])
    assert len(check_pair(hr, lr, scale=2)[1]) == 2


def test_bad_pair():
    hr = {'a': (12, 24, 3), 'b': (8, 8, 3), 'c': (9, 9, 3), 'd': (8, 12, 3)}
    lr = {'a': (6, 12, 3), 'b': (4, 4, 3), 'd': (4, 4, 3), 'e': (1, 1, 3)}
    scale, found = check_pair(hr, lr)
    assert scale == 2
    assert found == ['c: only in HR', 'e: only in LR', 'd: HR is 12 x 8 and LR 4 x 4, not a scale of 2']


def test_uncropped_hr():
    assert check_pair({'a': (13, 12, 3)}, {'a': (3, 3, 3)}, 4)[1] == [
        'a: HR is 12 x 13 and LR 3 x 3, not a scale of 4; HR is not cropped to a multiple of it']


def test_no_pairs():
    assert check_pair({'a': (2, 2, 3)}, {'b': (1, 1, 3)}) == (0, ['HR and LR have no image in common'])


def test_wrong_order():
    assert check_pair({'a': (2, 2, 3)}, {'a': (4, 4, 3)}) == (0, ['HR is smaller than LR; name HR first'])


# ---- content of pairs


def photos(count=3, height=96, width=120):
    """Smooth images with edges, unlike each other."""
    generator = np.random.default_rng(1)
    found = {}
    for number in range(count):
        small = generator.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8)
        found[f'photo_{number}'] = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return found


def compare(folder, hr, lr, suffix='', scale=2):
    roots = [write_images(folder / f'{side}{suffix}', images) for side, images in (('hr', hr), ('lr', lr))]
    return compare_content(*roots, {name: name for name in hr}, scale)


@pytest.mark.parametrize('suffix', ['.lmdb', ''])
@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('resizer', RESIZERS)
def test_resizer_is_recognised(tmp_path, resizer, scale, suffix):
    hr = photos()
    lr = {name: RESIZERS[resizer](img, scale) for name, img in hr.items()}
    lines, found = compare(tmp_path, hr, lr, suffix, scale)
    assert found == []
    # OpenCV's area and linear are equal at x2, and linear takes every third pixel at x3, as nearest neighbour does
    assert lines[0].startswith('LR equals ') and lines[0].endswith(' of HR, in the middle of 3 pairs.')
    assert resizer in lines[0] or resizer.startswith(('OpenCV', 'nearest'))
    assert len(lines) == 1 if resizer == MATLAB else lines[1].startswith(f'{MATLAB}, which the usual benchmarks are ')


def test_lr_that_was_compressed(tmp_path):
    hr = photos()
    lr = {name: cv2.imdecode(cv2.imencode('.jpg', RESIZERS[MATLAB](img, 2))[1], 1) for name, img in hr.items()}
    lines, found = compare(tmp_path, hr, lr)
    assert found == []
    assert lines[0].startswith('LR is nearest to ')


@pytest.mark.parametrize(('right', 'down'), [(2, 0), (0, -1), (6, 4)])
def test_shifted_pair(tmp_path, right, down):
    """In HR pixels."""
    hr = photos()
    lr = {name: RESIZERS[MATLAB](img, 2) for name, img in hr.items()}
    lr['photo_1'] = RESIZERS[MATLAB](np.roll(hr['photo_1'], (down, right), (0, 1)), 2)
    lines, (problem,) = compare(tmp_path, hr, lr)
    assert lines == [f'LR equals {MATLAB} of HR, in the middle of 2 pairs.']
    match = re.fullmatch(r'photo_1: LR is shifted against HR by about (\S+) pixels to the right and (\S+) down, in LR '
                         'pixels', problem)
    assert np.allclose([float(value) for value in match.groups()], [right / 2, down / 2], atol=0.1)


def test_swapped_pairs(tmp_path):
    hr = photos()
    lr = {name: RESIZERS[MATLAB](img, 2) for name, img in hr.items()}
    lr['photo_0'], lr['photo_2'] = lr['photo_2'], lr['photo_0']
    assert compare(tmp_path, hr, lr)[1] == [
        "photo_0: LR shows another image than HR, that of 'photo_2'",
        "photo_2: LR shows another image than HR, that of 'photo_0'"]


@pytest.mark.parametrize('size', [(2, 2), (4, 6), (10, 8), (96, 4)])
def test_small_and_flat_images_are_no_problem(tmp_path, size):
    hr = {'noise': random_images(1, *size)['image_0'], 'flat': np.full((*size, 3), 7, np.uint8)}
    lines, found = compare(tmp_path, hr, {name: RESIZERS[MATLAB](img, 2) for name, img in hr.items()})
    assert found == []
    assert lines[0].startswith('LR equals ')
