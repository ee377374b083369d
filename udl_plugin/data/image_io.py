"""Lists, pairs and reads the image files in users' folders."""
from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from udl_plugin.errors import UserError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.jfif', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm', '.pbm', '.pnm')
# of images that are not read: an error names them, instead of a folder without them
OTHER_SUFFIXES = ('.gif', '.jp2', '.j2k', '.jxl', '.avif', '.heic', '.heif', '.exr', '.hdr', '.pfm', '.tga', '.psd',
                  '.dng', '.cr2', '.cr3', '.nef', '.arw', '.raf')
CASE_INSENSITIVE = sys.platform in ('win32', 'darwin')  # A.png and a.png are one file
FORMATS = ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP', 'PPM')
PAGED = ('PNG', 'TIFF', 'WEBP')  # the further images in a JPEG file are a camera's previews
NETPBM_HEADER = re.compile(rb'P[2356]' + 3 * rb'(?:\s|#[^\n]*\n)+(\d{1,9})')  # width, height, largest value
NOT_AN_IMAGE = ('it is not an image in PNG, JPEG, BMP, TIFF, WebP or PPM of 8 or 16 bits; convert it to PNG, or remove '
                'it')
ORIENTATION = 0x0112  # EXIF tag
PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
MAX_PIXELS = 178_956_970  # of an image; Pillow raises DecompressionBombError beyond the same number
UNCHANGED = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH  # keeps depth and grey; drops alpha; applies EXIF's orientation


def list_images(folder: str | Path) -> dict[str, Path]:
    """The images in `folder`, without those of sub-folders and without hidden files, sorted by name.

    Returns:
        Name without suffix, in composed Unicode (NFC) on every file system, to path. Images of formats that are not
        read, such as GIF, are among them: who reads them reports them.

    Raises:
        UserError: there is no such folder, it has no image or two of one name, or an image's path is not a file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"'{folder}' is a file, not a folder." if folder.is_file() else
                        f"there is no folder '{folder}' (working directory: {Path.cwd()}).")
    images: dict[str, Path] = {}
    seen: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES + OTHER_SUFFIXES and not path.name.startswith('.'):
            if not path.is_file():
                raise UserError(f"'{path}' is a folder or a broken link, not a file; remove or rename it.")
            name = unicodedata.normalize('NFC', path.stem)
            other = seen.setdefault(name.casefold() if CASE_INSENSITIVE else name, path)
            if other != path:
                raise UserError(f"'{other}' and '{path}' have the same name; rename or remove one of them.")
            images[name] = path
    if not images:
        subfolders = [path.name for path in sorted(folder.iterdir()) if path.is_dir()]
        hint = f' Did you mean one of its sub-folders: {", ".join(subfolders)}?' if subfolders else ''
        raise UserError(f"'{folder}' has no image ({', '.join(SUFFIXES)}).{hint}")
    return dict(sorted(images.items()))


def pair_names(hr: Iterable[str], lr: Iterable[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Finds the LR image of each HR image: the same name, or, as in DIV2K, the name with a suffix such as `x4`.

    Returns:
        HR name to LR name; unpaired HR names; unpaired LR names.
    """
    hr, lr, pairs, only_lr = set(hr), set(lr), {}, []
    for name in sorted(lr):  # 0001 before 0001x4
        short = name if name in hr else re.sub(r'x\d+$', '', name)
        if short in hr and short not in pairs:
            pairs[short] = name
        else:
            only_lr.append(name)
    return pairs, sorted(hr - pairs.keys()), only_lr


def read_image(path: str | Path, keep_grey: bool = False) -> tuple[np.ndarray, bool]:
    """Reads an 8-bit image without its alpha channel.

    Args:
        path: Image file.
        keep_grey: Whether a grey image keeps its single channel. Otherwise it gets three equal ones.

    Returns:
        uint8 `(H, W, 3)`, BGR, or `(H, W)`; and whether an alpha channel was dropped.

    Raises:
        UserError: the file is missing, truncated, corrupted or not an image, or has more than 8 bits per channel, or
            its colours are CIELab.
    """
    img, bands, has_alpha = _read(path)
    if img.dtype != np.uint8:
        raise UserError(f"'{path}' has {8 * img.itemsize} bits per channel; convert it to 8.")
    if keep_grey:
        return (img[..., 0].copy() if bands == ('L', 'A') and img.ndim == 3 else img), has_alpha
    return (cv2.cvtColor(img, cv2.COLOR_GRAY2BGR) if img.ndim == 2 else img), has_alpha


def read_full_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image with its alpha channel and its bit depth.

    Returns:
        `(H, W)`; `(H, W, 3)`, BGR; or `(H, W, 4)`, BGR and alpha, also for a grey image with alpha.

    Raises:
        UserError: the file is missing, truncated, corrupted or not an image, or its colours are CIELab.
    """
    return _read(path, with_alpha=True)[0]


def read_icc_profile(path: str | os.PathLike[str]) -> bytes:
    """Returns the ICC profile in an image file that `read_full_image` can read; empty if it has none."""
    with _open(Path(path).read_bytes()) as image:
        return image.info.get('icc_profile') or b''


def _read(path: str | os.PathLike[str], with_alpha: bool = False) -> tuple[np.ndarray, tuple[str, ...], bool]:
    """The image, Pillow's names of the file's bands, and whether the file has alpha."""
    data = b''
    try:
        data = Path(path).read_bytes()
        check_pixel_limit(data)
        with _open(data) as image:
            if image.mode == 'LAB':  # its third band is called A or B, not alpha or blue
                raise ValueError('its colours are CIELab; convert it to RGB.')
            bands, has_alpha = image.getbands(), 'A' in image.getbands() or 'transparency' in image.info
            if image.format != 'PNG':
                image.load()  # raises if truncated; OpenCV 4 completes a JPEG. PNG has checksums, which both check
            img = decode(data)
            if with_alpha and has_alpha:
                img = _read_alpha(image, data, deep=img.dtype != np.uint8)
    except UnidentifiedImageError as err:
        raise UserError(f"'{path}' cannot be read: {NOT_AN_IMAGE if data else 'it is empty'}.") from err
    except MemoryError:
        raise
    except Exception as err:  # decoders raise exceptions of any type
        raise UserError(f"'{path}' cannot be read: {' '.join(str(err).split())}") from err
    return img, bands, has_alpha


def _read_alpha(image: Image.Image, data: bytes, deep: bool) -> np.ndarray:
    """BGR and alpha, with EXIF's orientation applied.

    Pillow reads 8 bits correctly, but not 16. OpenCV reads colours multiplied by alpha from TIFF.
    """
    if not deep:
        return cv2.cvtColor(np.array(ImageOps.exif_transpose(image).convert('RGBA')), cv2.COLOR_RGBA2BGRA)
    if image.format != 'PNG' or image.getexif().get(ORIENTATION, 1) != 1:
        raise ValueError('16 bits with an alpha channel are supported in upright PNG files only; convert it.')
    return decode(data, cv2.IMREAD_UNCHANGED)


def _open(data: bytes) -> Image.Image:
    """Reads the header, without Pillow's limit of pixels: `check_pixel_limit` has ours.

    Raises:
        UnidentifiedImageError: not an image.
        ValueError: several pages or frames, of which OpenCV would read the first; or a PPM file of another range than
            8 or 16 bits, whose levels it would not stretch.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    netpbm = NETPBM_HEADER.match(data)
    if netpbm and int(netpbm[3]) not in (255, 65535):
        raise ValueError(f'its largest value is {int(netpbm[3])}, not 255 or 65535; convert it to PNG.')
    pages = 1
    if image.format in PAGED:
        with contextlib.suppress(Exception):  # a corrupted second page is of no interest
            pages = getattr(image, 'n_frames', 1)
    if pages > 1:
        raise ValueError(f'it has {pages} pages or frames, and only the first would be read; save the one you want as '
                         'PNG.')
    return image


def image_size(data: bytes) -> tuple[int, int]:
    """`(height, width)` of an image file as it is read: if EXIF's orientation turns it, not those of its header.

    Raises:
        UnidentifiedImageError: not an image.
        ValueError: several pages or frames; or corrupted, if it has to be decoded to know.
    """
    height, width = _header_size(data)
    if data[:8] != PNG_SIGNATURE or any(name in data for name in (b'eXIf', b'acTL')):  # getexif decodes a PNG file
        with _open(data) as image:
            if image.getexif().get(ORIENTATION, 1) != 1:
                height, width = decode(data).shape[:2]
    return height, width


def _header_size(data: bytes) -> tuple[int, int]:
    """`(height, width)` in the header of an image file; takes a microsecond for PNG and BMP."""
    if data[:8] == PNG_SIGNATURE and data[12:16] == b'IHDR' and len(data) >= 24:
        width, height = struct.unpack('>II', data[16:24])
    elif data[:2] == b'BM' and len(data) >= 26 and data[14:18] != b'\x0c\0\0\0':  # not the shorter header of OS/2
        width, height = map(abs, struct.unpack('<ii', data[18:26]))  # a negative height: rows from top to bottom
    else:
        with _open(data) as image:
            width, height = image.size
    return height, width


def check_pixel_limit(data: bytes) -> None:
    """Checks, before an image file is decoded, that its header states at most `MAX_PIXELS` pixels.

    A file of some kilobytes can fill all memory. The environment variable `UDL_MAX_PIXELS` sets another limit.

    Raises:
        ValueError: it has more, or several pages; or the environment variable is not a number.
        UnidentifiedImageError: not an image.
    """
    limit = int(os.environ.get('UDL_MAX_PIXELS', MAX_PIXELS))
    height, width = _header_size(data)
    if height * width > limit:
        raise ValueError(f'{width} x {height} pixels are more than {limit:,}; such a file can be made to fill the '
                         f'memory. If you trust it, set the environment variable UDL_MAX_PIXELS={height * width}.')


def decode(data: bytes, flags: int = UNCHANGED) -> np.ndarray:
    """Decodes an image file.

    Args:
        data: Content of the file.
        flags: OpenCV's.

    Returns:
        `(H, W, 3)`, BGR, or `(H, W)`, in the file's bit depth.

    Raises:
        ValueError: truncated, corrupted, not an image, or too many pixels.
    """
    try:
        check_pixel_limit(data)
        img = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except OSError as err:  # such as Pillow's UnidentifiedImageError
        raise ValueError('truncated, corrupted or not an image.') from err
    except cv2.error as err:  # such as too large a size
        raise ValueError(str(err)) from err
    if img is None:
        raise ValueError('truncated, corrupted or not an image.')
    return img


def decode_complete(data: bytes) -> np.ndarray:
    """As `decode`, but raises for each truncated file: OpenCV completes a JPEG."""
    try:
        check_pixel_limit(data)
        with _open(data) as image:
            if image.format != 'PNG':  # it has checksums, which OpenCV checks
                image.load()
    except UnidentifiedImageError as err:
        raise ValueError(NOT_AN_IMAGE if data else 'it is empty') from err
    except MemoryError:
        raise
    except Exception as err:  # decoders raise exceptions of any type
        raise ValueError(' '.join(str(err).split())) from err
    return decode(data)
