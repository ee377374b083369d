"""Pictures of maps and errors, as OpenCV has them: uint8 `(H, W, 3)`, BGR. Errors are absolute, in 8-bit levels."""
from __future__ import annotations

import functools
import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import putchunk

from udl_plugin.metrics.uncertainty_metrics import expected_error, log_var_of_error

RGB_TO_Y = np.array([65.738, 129.057, 25.064], dtype=np.float64) / 256  # luma of the SR protocol, without its offset
COLORMAPS = ('inferno', 'authors')  # linear in levels, and perceptually uniform; the paper's JET, linear in the map
OWNERS = {'step 1': 'the SR image', 'step 2': "step 1's SR image"}  # by stage; see `describe_owner`
BAR_WIDTH, GAP = 16, 8  # of the colour bar, in pixels
MAX_SIDE = 512  # of the part of an image that `comparison_picture` draws
Limits = Sequence[float]


# ---- maps with a unit

def expected_error_picture(log_var: np.ndarray, loss: str = 'ESU', error_scale: float = 1.0,
                           limits: Limits | None = None, colormap: str = 'inferno',
                           owner: str = OWNERS['step 1']) -> np.ndarray:
    """Draws the absolute error that a map predicts, mean of the channels, beside its colour bar in 8-bit levels.

    Args:
        log_var: `(C, H, W)`, float, C of 3 (RGB) or 1.
        loss, error_scale: See `expected_error`.
        limits: Errors drawn in the first and the last colour, in levels, the lower one first. None: 0 and a round
            number that less than 1 % of the pixels exceed; with `authors`, the smallest and the largest value.
        colormap: One of COLORMAPS. `inferno` goes from black to bright yellow. `authors` is the picture of the paper,
            see `uncertainty_picture`.
        owner: Whose errors these are, for the label; see OWNERS.

    Returns:
        uint8 `(max(H, 240), W + bar, 3)`; the map itself, one pixel for each of the SR image, is at the upper left.

    Raises:
        ValueError: an unknown colour map, another number of channels, or limits that are not in order.
    """
    if colormap not in COLORMAPS:
        raise ValueError(f'colormap must be one of {", ".join(COLORMAPS)}, not {colormap!r}.')
    if colormap == 'authors':
        values = luma(log_var)
        if limits is None:
            ends = float(values.min()), float(values.max())
        else:
            ends = log_var_of_error(max(limits[0], 1e-6), loss, error_scale), log_var_of_error(
                limits[1], loss, error_scale)
        picture = uncertainty_picture(log_var, ends if ends[0] < ends[1] else None)
        shown = [float(expected_error(np.array(end), loss, error_scale)) for end in ends]
    else:
        luma(log_var)  # checks the channels
        error = expected_error(log_var, loss, error_scale).mean(axis=0)
        shown = list(limits or (0, round_limit(error)))
        picture = heat_map(error, shown)
    return add_color_bar(picture, shown, f'expected error of {owner} (8-bit levels)', colormap)


def describe_owner(stage: str, error_scale: float = 1.0) -> str:
    """Whose errors the map of a network describes: of step 2, those of step 1's image, unless they were calibrated."""
    return OWNERS.get('step 1' if error_scale != 1 else stage, '')


def heat_map(error: np.ndarray, limits: Limits) -> np.ndarray:
    """Draws errors `(H, W)` in `inferno`, from black at the lower limit to bright yellow at the upper one.

    Raises:
        ValueError: the limits are not in order.
    """
    _check_limits(limits)
    unit = np.clip((error - limits[0]) / (limits[1] - limits[0]), 0, 1)
    return cv2.applyColorMap((unit * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)


def absolute_error(sr: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """The absolute error of a uint8 image `(H, W, 3)` or `(H, W)`, mean of the channels: float64 `(H, W)`."""
    return np.atleast_3d(np.abs(sr.astype(np.float64) - gt)).mean(axis=2)


def comparison_picture(sr: np.ndarray, gt: np.ndarray, limit: float, expected: np.ndarray | None = None,
                       owner: str = OWNERS['step 1']) -> np.ndarray:
    """Draws SR image, ground truth, expected error and true error side by side, with one colour bar for both errors.

    Of an image that is higher or wider than 512 pixels, the central part is drawn, and the labels say so.

    Args:
        sr, gt: uint8 `(H, W, 3)`, BGR, or `(H, W)`.
        limit: Error drawn in the last colour, in 8-bit levels; the first one is 0.
        expected: Expected error `(H, W)`, in 8-bit levels; None leaves it out.
        owner: Whose errors it describes; see OWNERS.

    Returns:
        uint8 `(H', W', 3)`: a contact sheet, see `contact_sheet`, and the colour bar to its right.
    """
    height, width = (min(size, MAX_SIDE) for size in sr.shape[:2])
    top, left = (sr.shape[0] - height) // 2, (sr.shape[1] - width) // 2
    part = '' if sr.shape[:2] == (height, width) else f', central {width} x {height} pixels'

    def draw(img: np.ndarray) -> np.ndarray:
        img = img[top:top + height, left:left + width]
        if img.dtype != np.uint8:
            return heat_map(img, (0, limit))
        return img if img.ndim == 3 else cv2.cvtColor(img, cv2.COLOR_GRAY2BGR)

    panels = [('SR image', sr), ('ground truth', gt), (f'expected error of {owner}', expected),
              ('true error of the SR image', absolute_error(sr, gt))]
    sheet = contact_sheet([[(label + part, draw(img)) for label, img in panels if img is not None]])
    return add_color_bar(sheet, (0, limit), 'absolute error (8-bit levels)')


def round_limit(*errors: np.ndarray) -> float:
    """A round number of levels, at least 1, that less than 1 % of the values of each array exceed."""
    value = max(1.0, *(float(np.quantile(error, 0.99, method='higher')) for error in errors))
    if not math.isfinite(value):  # of an untrained map
        return 255.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))


def add_color_bar(picture: np.ndarray, limits: Limits, title: str, colormap: str = 'inferno',
                  font: int | None = None) -> np.ndarray:
    """Puts the colour bar of an error picture to the right of it, on white, with its limits in levels and a title.

    Args:
        font: Height of its letters in pixels; None: by the height of the picture.
    """
    height = max(240, len(picture))
    font = font or min(max(12, height // 40), 28)
    strip = Image.new('RGB', (BAR_WIDTH + 5 * font + 8, height), 'white')
    draw = ImageDraw.Draw(strip)
    top, bottom = font, height - font - 1
    unit = np.linspace(1, 0, bottom - top + 1)
    bar = heat_map(unit[:, None], (0, 1)) if colormap == 'inferno' else _jet(unit[:, None])
    strip.paste(Image.fromarray(np.repeat(bar[:, :, ::-1], BAR_WIDTH, axis=1)), (0, top))
    for number in range(5):
        part = number / 4
        if colormap == 'inferno':
            value = limits[0] + part * (limits[1] - limits[0])
        else:
            value = limits[0] * (limits[1] / max(limits[0], 1e-12)) ** part  # linear in the map, the error's logarithm
        y = bottom - part * (bottom - top)
        draw.line((BAR_WIDTH, y, BAR_WIDTH + 4, y), 'black')
        draw.text((BAR_WIDTH + 7, y), f'{value:.3g}', 'black', get_font(font), 'lm')
    title_strip = Image.new('RGB', (bottom - top, 2 * font), 'white')
    title_font = get_font(font)
    while title_font.getlength(title) > title_strip.width and title_font.size > 7:
        title_font = get_font(int(title_font.size) - 1)
    ImageDraw.Draw(title_strip).text((title_strip.width / 2, font), title, 'black', title_font, 'mm')
    strip.paste(title_strip.rotate(90, expand=True), (strip.width - 2 * font, top))
    padded = np.pad(picture, ((0, height - len(picture)), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate([padded, np.asarray(strip)[:, :, ::-1]], axis=1)


@functools.lru_cache(maxsize=64)
def get_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, in pixels."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf')), size)


def encode_map_files(log_var: np.ndarray, loss: str = 'ESU', error_scale: float = 1.0, limits: Limits | None = None,
                     colormap: str = 'inferno', owner: str = OWNERS['step 1']) -> dict[str, bytes]:
    """The files of a map, by the end of their names, after the stem of the SR image's.

    Returns:
        `_log_var.npy`: the map, float32 `(C, H, W)`; `_expected_error.npy`: in 8-bit levels, float32 `(H, W, C)` like
        the image; `_expected_error.png`: see `expected_error_picture`, also for the arguments.
    """
    with np.errstate(over='ignore'):  # an untrained map may go beyond float32
        error = np.moveaxis(expected_error(log_var, loss, error_scale), 0, 2).astype(np.float32)
    picture = expected_error_picture(log_var, loss, error_scale, limits, colormap, owner)
    return {'_log_var.npy': encode_npy(log_var), '_expected_error.npy': encode_npy(error),
            '_expected_error.png': encode_png(picture)}


def encode_npy(array: np.ndarray) -> bytes:
    """Encodes an array as a .npy file."""
    raw = io.BytesIO()
    np.save(raw, np.ascontiguousarray(array))
    return raw.getvalue()


# ---- the authors' pictures

def uncertainty_picture(log_var: np.ndarray, limits: Sequence[float] | None = None) -> np.ndarray:
    """Draws a map as the authors do: its luma, stretched to its minimum and maximum, in OpenCV's JET.

    Args:
        log_var: `(C, H, W)`, float, C of 3 (RGB) or 1.
        limits: Values shown in full blue and full red, instead of minimum and maximum, so that pictures can be
            compared.

    Returns:
        uint8 `(H, W, 3)`, BGR: blue is certain, red uncertain. A constant map is blue.

    Raises:
        ValueError: another number of channels, or limits that are not in order.
    """
    y = luma(log_var)
    low, high = (y.min(), y.max()) if limits is None else limits
    if limits is not None:
        _check_limits(limits)
    return _jet(np.clip((y - low) / max(high - low, 1e-12), 0, 1))


def _check_limits(limits: Limits) -> None:
    if not limits[0] < limits[1]:
        raise ValueError(f'limits must be a lower and a higher number, not {tuple(limits)}.')


def luma(log_var: np.ndarray) -> np.ndarray:
    """Y of a map `(C, H, W)`, in the unit of the map: the weights of the channels sum to 1.

    Raises:
        ValueError: not 1 or 3 channels.
    """
    if log_var.ndim != 3 or log_var.shape[0] not in (1, 3):
        raise ValueError(f'expected a map (C, H, W) of 1 or 3 channels, not {log_var.shape}.')
    return log_var[0] if log_var.shape[0] == 1 else np.tensordot(RGB_TO_Y / RGB_TO_Y.sum(), log_var, 1)


def _jet(unit: np.ndarray) -> np.ndarray:
    return cv2.applyColorMap((unit * 255).round().astype(np.uint8), cv2.COLORMAP_JET)


def contact_sheet(rows: Sequence[Sequence[tuple[str, np.ndarray]]], margin: int = 8,
                  label_height: int = 30) -> np.ndarray:
    """Arranges labelled pictures in rows, on white.

    Args:
        rows: Label and picture, uint8 `(H, W, 3)`, one height per row.

    Returns:
        uint8 `(H, W, 3)`.
    """
    strips = []
    for row in rows:
        labelled = [np.pad(_label(picture, text, label_height), ((0, margin), (0, margin), (0, 0)), constant_values=255)
                    for text, picture in row]
        strips.append(np.concatenate(labelled, axis=1))
    width = max(strip.shape[1] for strip in strips)
    strips = [np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=255) for strip in strips]
    return np.pad(np.concatenate(strips), ((margin, 0), (margin, 0), (0, 0)), constant_values=255)


def _label(picture: np.ndarray, text: str, height: int) -> np.ndarray:
    """Puts a strip with `text`, in letters as large as fit, above a picture."""
    strip = Image.new('RGB', (picture.shape[1], height), 'white')
    size = max(height // 2, 1)
    while size > 6 and get_font(size).getlength(text) > strip.width:
        size -= 1
    ImageDraw.Draw(strip).text((0, height / 2), text, 'black', get_font(size), 'lm')
    return np.concatenate([np.asarray(strip)[:, :, ::-1], picture])


def encode_png(picture: np.ndarray, icc_profile: bytes = b'') -> bytes:
    """Encodes an image, uint8 or uint16, `(H, W)` or `(H, W, 3)` BGR or `(H, W, 4)` BGRA, as a PNG file."""
    data = cv2.imencode('.png', picture)[1].tobytes()
    if not icc_profile:
        return data
    chunk = io.BytesIO()  # neither OpenCV nor, for 16 bits, Pillow writes one
    putchunk(chunk, b'iCCP', b'ICC Profile\0\0' + zlib.compress(icc_profile))
    return data[:33] + chunk.getvalue() + data[33:]  # behind signature and header


def swap_red_blue(img: np.ndarray) -> np.ndarray:
    """Converts `(H, W, 3)` or `(H, W, 4)` between RGB and BGR; returns a grey image `(H, W)` unchanged."""
    if img.ndim == 2:
        return img
    return cv2.cvtColor(img, cv2.COLOR_RGB2BGR if img.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
