import struct
import zlib

import cv2
import numpy as np
import pytest
from conftest import random_images
from PIL import Image, ImageOps

from udl_plugin.data.image_io import decode, image_size, list_images, pair_names, read_full_image, read_image
from udl_plugin.errors import UserError

IMG = random_images(1, 20, 30)['image_0']


def save(path, img):
    ok, data = cv2.imencode(path.suffix.lower(), img)
    assert ok
    path.write_bytes(data.tobytes())
    return path


@pytest.mark.parametrize('name', ['a.png', 'a.PNG', 'ä 图.bmp', 'a.Tiff'])
def test_colour(tmp_path, name):
    img, has_alpha = read_image(save(tmp_path / name, IMG))
    np.testing.assert_array_equal(img, IMG)
    assert not has_alpha


def test_grey(tmp_path):
    path = save(tmp_path / 'a.png', IMG[..., 0])
    np.testing.assert_array_equal(read_image(path)[0], np.repeat(IMG[..., :1], 3, axis=2))
    np.testing.assert_array_equal(read_image(path, keep_grey=True)[0], IMG[..., 0])


@pytest.mark.parametrize('keep_grey', [False, True])
def test_alpha_is_dropped(tmp_path, keep_grey):
    alpha = np.arange(600, dtype=np.uint8).reshape(20, 30, 1)
    path = save(tmp_path / 'a.png', np.concatenate([IMG, alpha], axis=2))
    img, has_alpha = read_image(path, keep_grey)
    np.testing.assert_array_equal(img, IMG)
    assert has_alpha


def test_grey_with_alpha(tmp_path):
    Image.fromarray(IMG[..., :2].copy(), 'LA').save(tmp_path / 'a.png')
    img, has_alpha = read_image(tmp_path / 'a.png')
    np.testing.assert_array_equal(img, np.repeat(IMG[..., :1], 3, axis=2))
    assert has_alpha
    np.testing.assert_array_equal(read_image(tmp_path / 'a.png', keep_grey=True)[0], IMG[..., 0])


def test_exif_orientation_is_applied(tmp_path):
    """BasicSR does the same when it reads the file itself."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(IMG).save(tmp_path / 'a.jpg', exif=exif)
    assert read_image(tmp_path / 'a.jpg')[0].shape == (30, 20, 3)


def test_other_formats_are_rejected_whatever_their_suffix(tmp_path):
    Image.fromarray(IMG).save(tmp_path / 'a.gif')
    (tmp_path / 'a.gif').rename(tmp_path / 'a.png')
    with pytest.raises(UserError, match=r"a\.png' cannot be read: it is not an image in PNG, .* convert it to PNG, or"):
        read_image(tmp_path / 'a.png')


@pytest.mark.parametrize('suffix', ['.gif', '.jp2', '.tga'])
def test_folder_does_not_leave_out_images_that_are_not_read(tmp_path, suffix):
    Image.fromarray(IMG).save(tmp_path / f'a{suffix}')
    with pytest.raises(UserError, match=f"a{suffix}' cannot be read: it is not an image in PNG, .* convert it to PNG"):
        read_image(list_images(tmp_path)['a'])


@pytest.mark.parametrize(('suffix', 'channels'), [('.ppm', 3), ('.pgm', 1), ('.pnm', 3)])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_netpbm(tmp_path, suffix, channels, dtype):
    img = IMG.astype(dtype) * (np.iinfo(dtype).max // 255)
    save(tmp_path / f'a{suffix}', img if channels == 3 else img[..., 0])
    assert np.array_equal(read_full_image(list_images(tmp_path)['a']), img if channels == 3 else img[..., 0])


@pytest.mark.parametrize('maxval', [100, 1023])
def test_netpbm_of_another_range(tmp_path, maxval):
    levels = np.arange(600) % (maxval + 1)
    data = levels.astype('>u2' if maxval > 255 else 'u1').tobytes()
    (tmp_path / 'a.pgm').write_bytes(b'P5\n# a comment\n30 20 %d\n' % maxval + data)
    with pytest.raises(UserError, match=f"a.pgm' cannot be read: its largest value is {maxval}, .* convert it to PNG"):
        read_full_image(tmp_path / 'a.pgm')


@pytest.mark.parametrize('suffix', ['.tif', '.webp', '.png'])
def test_several_pages_are_rejected(tmp_path, suffix):
    pages = [Image.fromarray(page) for page in (IMG, IMG[::-1].copy(), IMG // 2)]
    path = tmp_path / f'a{suffix}'
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match=f"a{suffix}' cannot be read: it has 3 pages or frames, .* save the one you"):
        read_image(path)
    with pytest.raises(ValueError, match='it has 3 pages or frames'):
        image_size(path.read_bytes())


def test_float_tiff_is_rejected(tmp_path):
    save(tmp_path / 'a.tif', IMG.astype(np.float32))
    with pytest.raises(UserError, match=r"a\.tif' .*(of 8 or 16 bits; convert it to PNG|32 bits per channel; convert)"):
        read_image(tmp_path / 'a.tif')


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif', '.webp', '.ppm'])
@pytest.mark.parametrize('orientation', [1, 3, 6])
def test_size_is_the_one_that_is_read(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(IMG).save(tmp_path / f'a{suffix}', exif=exif)
    data = (tmp_path / f'a{suffix}').read_bytes()
    assert image_size(data) == decode(data).shape[:2] == read_image(tmp_path / f'a{suffix}')[0].shape[:2]


def test_palette_with_transparency(tmp_path):
    picture = Image.fromarray(IMG // 64 * 64).quantize(64)
    picture.save(tmp_path / 'a.png', transparency=0)
    img, has_alpha = read_image(tmp_path / 'a.png')
    np.testing.assert_array_equal(img[..., ::-1], np.asarray(picture.convert('RGB')))
    assert has_alpha


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('channels', [1, 3])
def test_16_bit_is_rejected(tmp_path, suffix, channels):
    path = save(tmp_path / f'a{suffix}', IMG[..., :channels].astype(np.uint16) * 257)
    with pytest.raises(UserError, match=f'a{suffix}.*16 bits'):
        read_image(path)


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.bmp', '.webp', '.tif'])
@pytest.mark.parametrize('rest', [0, 0.3, 0.9])
def test_truncated_file_is_rejected(tmp_path, suffix, rest):
    path = save(tmp_path / f'a{suffix}', IMG)
    data = path.read_bytes()
    path.write_bytes(data[:int(rest * len(data))])
    with pytest.raises(UserError, match=f"a{suffix}' cannot be read") as caught:
        read_image(path)
    assert '\n' not in str(caught.value)


def test_corrupted_png_is_rejected(tmp_path):
    path = save(tmp_path / 'a.png', IMG)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.png' cannot be read"):
        read_image(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r'x\.png'):
        read_image(tmp_path / 'x.png')


def test_list_images(tmp_path):
    for name in ('b.png', 'a.JPG', 'C.Png', '10.bmp', '9.png', 'd.webp', 'e.jpeg', '._b.png', '.hidden.png',
                 'Thumbs.db', 'a.txt'):
        (tmp_path / name).touch()
    assert list(list_images(tmp_path)) == ['10', '9', 'C', 'a', 'b', 'd', 'e']


def test_names_are_composed_unicode(tmp_path):
    (tmp_path / 'a\u0308.png').touch()  # as macOS writes ä
    (tmp_path / 'ﬁ.webp').touch()
    assert list(list_images(tmp_path)) == ['ä', 'ﬁ']


def test_list_images_raises(tmp_path):
    with pytest.raises(UserError, match='there is no folder .*none'):
        list_images(tmp_path / 'none')
    (tmp_path / 'HR').mkdir()
    with pytest.raises(UserError, match='has no image .*Did you mean one of its sub-folders: HR'):
        list_images(tmp_path)
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match="file' is a file, not a folder"):
        list_images(tmp_path / 'file')
    for name in ('a.png', 'a.jpg'):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"a\.jpg' and .*a\.png' have the same name"):
        list_images(tmp_path)


def test_broken_link_is_rejected(tmp_path):
    (tmp_path / 'a.png').symlink_to('nowhere')
    with pytest.raises(UserError, match=r"a\.png' is a folder or a broken link, not a file"):
        list_images(tmp_path)


@pytest.mark.parametrize('data, words', [(b'', 'it is empty'), (b'<html>', 'it is not an image')])
def test_file_that_is_not_an_image(tmp_path, data, words):
    (tmp_path / 'a.png').write_bytes(data)
    with pytest.raises(UserError, match=rf"a\.png' cannot be read: {words}"):
        read_image(tmp_path / 'a.png')


@pytest.mark.parametrize('hr, lr, pairs, only_hr, only_lr', [
    (['1', '2'], ['1', '2'], {'1': '1', '2': '2'}, [], []),
    (['0001', '0002'], ['0001x4', '0002x4'], {'0001': '0001x4', '0002': '0002x4'}, [], []),
    (['1', '2'], ['2x4', '3x4'], {'2': '2x4'}, ['1'], ['3x4']),
    (['1'], ['1', '1x4'], {'1': '1'}, [], ['1x4']),
    (['1x2', '1'], ['1x2', '1x2x4'], {'1x2': '1x2'}, ['1'], ['1x2x4']),
    (['box2'], ['box2'], {'box2': 'box2'}, [], []),
    (['box2'], ['box2x3'], {'box2': 'box2x3'}, [], []),
])
def test_pair_names(hr, lr, pairs, only_hr, only_lr):
    assert pair_names(hr, lr) == (pairs, only_hr, only_lr)


# ---- with alpha and in full depth

RGBA = np.random.default_rng(0).integers(0, 256, (6, 10, 4), dtype=np.uint8)
BGRA = RGBA[:, :, [2, 1, 0, 3]]


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.webp'])
def test_full_image_keeps_alpha_and_unmultiplied_colours(tmp_path, suffix):
    options = {'lossless': True, 'exact': True} if suffix == '.webp' else {}
    Image.fromarray(RGBA).save(tmp_path / f'x{suffix}', **options)
    assert np.array_equal(read_full_image(tmp_path / f'x{suffix}'), BGRA)
    assert read_image(tmp_path / f'x{suffix}')[0].shape == (6, 10, 3)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_full_image_applies_orientation(tmp_path, orientation):
    """Pillow is the reference."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGBA).save(tmp_path / 'x.png', exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(tmp_path / 'x.png')))[:, :, [2, 1, 0, 3]]
    assert np.array_equal(read_full_image(tmp_path / 'x.png'), expected)


def test_full_image_of_transparent_grey(tmp_path):
    Image.fromarray(RGBA[:, :, [0, 3]], 'LA').save(tmp_path / 'la.png')
    assert np.array_equal(read_full_image(tmp_path / 'la.png'), RGBA[:, :, [0, 0, 0, 3]])
    grey = RGBA[:, :, 0] // 2 * 2
    Image.fromarray(grey).save(tmp_path / 'transparent.png', transparency=int(grey[0, 0]))
    found = read_full_image(tmp_path / 'transparent.png')
    assert np.array_equal(found[:, :, 0], grey)
    assert np.array_equal(found[:, :, 3] == 0, grey == grey[0, 0])


def test_full_image_without_alpha(tmp_path):
    for img in (RGBA[:, :, 0], BGRA[:, :, :3].copy(), BGRA[:, :, :3].astype(np.uint16) * 257):
        cv2.imwrite(str(tmp_path / 'x.png'), img)
        assert np.array_equal(read_full_image(tmp_path / 'x.png'), img)


def test_cielab_is_rejected(tmp_path):
    Image.fromarray(RGBA[:, :, :3], 'LAB').save(tmp_path / 'x.tif')
    for read in (read_image, read_full_image):
        with pytest.raises(UserError, match=r"x.tif' cannot be read: its colours are CIELab; convert it to RGB\."):
            read(tmp_path / 'x.tif')


def test_16_bits_with_alpha(tmp_path):
    """In upright PNG files only."""
    deep, exif = BGRA.astype(np.uint16) * 257, Image.Exif()
    data = cv2.imencode('.png', deep)[1].tobytes()
    (tmp_path / 'upright.png').write_bytes(data)
    assert np.array_equal(read_full_image(tmp_path / 'upright.png'), deep)
    exif[0x0112] = 6
    chunk = b'eXIf' + exif.tobytes().removeprefix(b'Exif\0\0')
    chunk = struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
    (tmp_path / 'turned.png').write_bytes(data[:33] + chunk + data[33:])
    (tmp_path / 'x.tif').write_bytes(cv2.imencode('.tif', deep)[1].tobytes())
    for name in ('turned.png', 'x.tif'):
        with pytest.raises(UserError, match=f"{name}' cannot be read: 16 bits with an alpha channel are supported in"):
            read_full_image(tmp_path / name)


def test_bmp_with_os2_header():
    data = b'BM' + struct.pack('<IHHI', 26 + 8 * 24, 0, 0, 26) + struct.pack('<IHHHH', 12, 8, 8, 1, 24) + bytes(8 * 24)
    assert image_size(data) == (8, 8)
    assert decode(data).shape[:2] == (8, 8)


@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.jpg', '.webp', '.tif'])
def test_image_size(suffix):
    assert image_size(cv2.imencode(suffix, np.zeros((7, 11, 3), np.uint8))[1].tobytes()) == (7, 11)
