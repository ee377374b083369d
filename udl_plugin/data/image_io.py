"""Reads what users have in their folders: which files are images, and each of them as 8-bit pixels."""
import io
import os
import re
import struct
import unicodedata
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from udl_plugin.errors import UserError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')
FORMATS = ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP')
TIFFS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')  # the last two are BigTIFF
ORIENTATION = 0x0112  # EXIF's tag; what its values say is to be done
TURNS = {2: np.fliplr, 3: lambda img: np.rot90(img, 2), 4: np.flipud, 5: lambda img: np.swapaxes(img, 0, 1),
         6: lambda img: np.rot90(img, -1), 7: lambda img: np.rot90(np.swapaxes(img, 0, 1), 2), 8: np.rot90}
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # of an image: Pillow's own limit
if re.fullmatch(r'\d{1,18}', os.environ.get('UDL_MAX_PIXELS', '')):  # `refuse_huge` tells of another text
    MAX_PIXELS = int(os.environ['UDL_MAX_PIXELS'])
UNCHANGED = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH  # but without alpha, and turned as EXIF says


def list_images(folder):
    """The images in `folder`, not in its sub-folders, in the order of their names; hidden files do not count.

    Returns:
        dict[str, Path]: Name without suffix (composed Unicode, whatever the file system has) to path.

    Raises:
        UserError: no such folder, no image in it, two images of one name, or an image's name that is no file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"'{folder}' is a file; a folder is needed." if folder.is_file() else
                         f"there is no folder '{folder}' (seen from {Path.cwd()}).")
    images = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith('.'):
            if not path.is_file():
                raise UserError(f"'{path}' is no file, but a folder or a broken link; remove or rename it.")
            name = unicodedata.normalize('NFC', path.stem)
            if name in images:
                raise UserError(f"'{images[name]}' and '{path}' have the same name; rename or remove one of them.")
            images[name] = path
    if not images:
        below = [path.name for path in sorted(folder.iterdir()) if path.is_dir()]
        hint = f' Its sub-folders may be meant: {", ".join(below)}.' if below else ''
        raise UserError(f"'{folder}' holds no image ({', '.join(SUFFIXES)}).{hint}")
    return dict(sorted(images.items()))


def pair_names(hr, lr):
    """Finds the LR image of each HR image: the same name, or, as in DIV2K, the name with `x4` or the like behind it.

    Args:
        hr (Iterable[str]): Names of HR images.
        lr (Iterable[str]): Names of LR images.

    Returns:
        tuple[dict[str, str], list[str], list[str]]: HR name to LR name; HR names left over; LR names left over.
    """
    hr, lr, pairs, left = set(hr), set(lr), {}, []
    for suffix in {re.search(r'(x\d+)?$', name)[0] for name in lr}:
        if {name + suffix for name in hr} == lr:
            return {name: name + suffix for name in sorted(hr)}, [], []
    for name in sorted(lr):  # 0001 before 0001x4
        short = name if name in hr else re.sub(r'x\d+$', '', name)
        if short in hr and short not in pairs:
            pairs[short] = name
        else:
            left.append(name)
    return pairs, sorted(hr - pairs.keys()), left


def read_image(path, keep_grey=False):
    """Reads an image whole, or not at all.

    Args:
        path (str | Path): File.
        keep_grey (bool): Whether a grey image stays one channel. Otherwise it becomes three equal ones.

    Returns:
        tuple[ndarray, bool]: uint8 `(H, W, 3)`, BGR, or `(H, W)`; and whether an alpha channel was dropped.

    Raises:
        UserError: the file is missing, truncated, damaged or no image, or has more than 8 bits a channel.
    """
    img, bands, has_alpha = _read(path)
    if img.dtype != np.uint8:
        raise UserError(f"'{path}' has {8 * img.itemsize} bits a channel, and 8 are needed; convert it.")
    if keep_grey:
        return (img[..., 0].copy() if bands == ('L', 'A') and img.ndim == 3 else img), has_alpha
    return (cv2.cvtColor(img, cv2.COLOR_GRAY2BGR) if img.ndim == 2 else img), has_alpha


def read_full_image(path):
    """Reads an image with its alpha channel and in its depth.

    Args:
        path (str | Path): File.

    Returns:
        ndarray: `(H, W)`, `(H, W, 3)`, BGR, or `(H, W, 4)`, BGR and alpha, which grey images with alpha are given as.

    Raises:
        UserError: the file is missing, truncated, damaged or no image.
    """
    return _read(path, with_alpha=True)[0]


def _read(path, with_alpha=False):
    """The image, the file's bands as Pillow names them, and whether alpha is among them."""
    try:
        data = Path(path).read_bytes()
        check_pixel_limit(data)
        with _open(data) as image:
            bands, has_alpha = image.getbands(), 'A' in image.getbands() or 'transparency' in image.info
            if image.format != 'PNG':
                image.load()  # refuses a truncated file; OpenCV 4 fills a JPEG up. PNG has checksums, which both read
            img = decode(data)
            if with_alpha and has_alpha:
                img = _with_alpha(image, data, deep=img.dtype != np.uint8)
    except UnidentifiedImageError as err:
        raise UserError(f"'{path}' cannot be read: it is {'no image' if data else 'empty'}.") from err
    except MemoryError:
        raise
    except Exception as err:  # decoders raise anything
        raise UserError(f"'{path}' cannot be read: {' '.join(str(err).split())}") from err
    return img, bands, has_alpha


def _with_alpha(image, data, deep):
    """BGR and alpha, turned as EXIF says. Pillow reads it right but knows no 16 bits; OpenCV reads TIFF's colours
    multiplied by alpha."""
    if not deep:
        return cv2.cvtColor(np.array(ImageOps.exif_transpose(image).convert('RGBA')), cv2.COLOR_RGBA2BGRA)
    if image.format != 'PNG':
        raise ValueError('16 bits with an alpha channel are read from PNG only; convert it.')
    img = decode(data, cv2.IMREAD_UNCHANGED)
    turn = TURNS.get(image.getexif().get(ORIENTATION))
    return img if turn is None else np.ascontiguousarray(turn(img))


def _open(data):
    """Reads the header. Of huge images, `refuse_huge` has had its say."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def image_size(data):
    """`(height, width)` that the header of an image file, bytes, states; of PNG and BMP in a microsecond.

    Raises:
        UnidentifiedImageError: it is no image.
    """
    if data[:8] == b'\x89PNG\r\n\x1a\n' and data[12:16] == b'IHDR' and len(data) >= 24:
        return struct.unpack('>II', data[16:24])[::-1]
    if data[:2] == b'BM' and len(data) >= 26 and data[14:18] != b'\x0c\0\0\0':  # that would be of OS/2, and shorter
        return tuple(abs(length) for length in struct.unpack('<ii', data[18:26])[::-1])  # height < 0: top down
    with _open(data) as image:
        return image.size[::-1]


def _has_each_tag_once(data):
    """Whether the first directory of a TIFF is in order, as TIFF 6.0 asks. Of two sizes, readers differ."""
    order = '<' if data[:2] == b'II' else '>'
    big = data[:4] in TIFFS[2:]
    try:
        start, = struct.unpack_from(f'{order}Q' if big else f'{order}I', data, 8 if big else 4)
        count, = struct.unpack_from(f'{order}Q' if big else f'{order}H', data, start)
        first, step = (start + 8, 20) if big else (start + 2, 12)
        tags = [struct.unpack_from(f'{order}H', data, first + step * number)[0] for number in range(min(count, 1000))]
    except struct.error:
        return False
    return all(one < other for one, other in zip(tags, tags[1:]))


def check_pixel_limit(data):
    """Refuses, before it is decoded, an image file that says that it has more than `MAX_PIXELS` pixels.

    A few kilobytes can be made to fill all memory. The environment's `UDL_MAX_PIXELS` sets another limit.

    Raises:
        ValueError: it does, or it is no image.
    """
    limit = os.environ.get('UDL_MAX_PIXELS', '1')
    if not re.fullmatch(r'\d{1,18}', limit):
        raise ValueError(f"UDL_MAX_PIXELS='{limit}' in the environment is no number of pixels.")
    height, width = image_size(data)
    if data[:4] in TIFFS and not _has_each_tag_once(data):
        raise ValueError('damaged: it has a tag twice, or its tags are not in order, and could be of any size.')
    if height * width > MAX_PIXELS:
        raise ValueError(f'{width} x {height} pixels are more than {MAX_PIXELS:,}, and such a file may be made to fill '
                         f'the memory. If it is meant, set UDL_MAX_PIXELS={height * width} in the environment.')


def decode(data, flags=UNCHANGED):
    """Bytes of an image file to `(H, W, 3)`, BGR, or `(H, W)`, of the file's depth. ValueError where damaged."""
    try:
        check_pixel_limit(data)
    except OSError as err:  # Pillow's UnidentifiedImageError among them
        raise ValueError('truncated, damaged or not an image.') from err
    try:
        img = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as err:  # a size beyond all bounds
        raise ValueError(str(err)) from err
    if img is None:
        raise ValueError('truncated, damaged or not an image.')
    return img
