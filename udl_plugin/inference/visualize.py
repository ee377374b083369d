"""Pictures of maps and errors, as OpenCV has them: uint8 `(H, W, 3)`, BGR."""
from __future__ import annotations

import io
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from PIL.PngImagePlugin import putchunk

RGB_TO_Y = np.array([65.738, 129.057, 25.064], dtype=np.float64) / 256  # luma of the SR protocol, without its offset


def uncertainty_picture(log_var: np.ndarray, limits: Sequence[float] | None = None) -> np.ndarray:
    """Draws a map as the authors do: its luma, stretched to its minimum and maximum, in OpenCV's JET.

    Args:
        log_var: `(C, H, W)`, float, C of 3 (RGB) or 1.
        limits: Values shown in full blue and full red, instead of minimum and maximum, so that pictures can be
            compared. `color_bar` draws the scale.

    Returns:
        uint8 `(H, W, 3)`, BGR: blue is certain, red uncertain. A constant map is blue.

    Raises:
        ValueError: another number of channels, or limits that are not in order.
    """
    y = luma(log_var)
    low, high = (y.min(), y.max()) if limits is None else limits
    if limits is not None and not low < high:
        raise ValueError(f'limits must be a lower and a higher number, not {limits}.')
    return _jet(np.clip((y - low) / max(high - low, 1e-12), 0, 1))


def luma(log_var: np.ndarray) -> np.ndarray:
    """Y of a map `(C, H, W)`, in the unit of the map: the weights of the channels sum to 1.

    Raises:
        ValueError: not 1 or 3 channels.
    """
    if log_var.ndim != 3 or log_var.shape[0] not in (1, 3):
        raise ValueError(f'expected a map (C, H, W) of 1 or 3 channels, not {log_var.shape}.')
    return log_var[0] if log_var.shape[0] == 1 else np.tensordot(RGB_TO_Y / RGB_TO_Y.sum(), log_var, 1)


def color_bar(height: int, limits: Sequence[float], width: int = 70) -> np.ndarray:
    """Draws the scale of `uncertainty_picture` with `limits`: uint8 `(height, width, 3)`, BGR."""
    bar = np.full((height, width, 3), 255, np.uint8)
    bar[:, :16] = _jet(np.linspace(1, 0, height)[:, None])
    for number in range(5):
        value = limits[1] + (limits[0] - limits[1]) * number / 4
        row = round(number / 4 * (height - 1))
        bar[row, :20] = 0
        origin = 22, min(max(row + 4, 9), height - 2)
        cv2.putText(bar, f'{value:.1f}', origin, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return bar


def error_picture(sr: np.ndarray, gt: np.ndarray, full_scale: float = 32) -> np.ndarray:
    """Draws the absolute error, averaged over the channels, in JET.

    Args:
        sr, gt: uint8 `(H, W, 3)`.
        full_scale: Error, in 8-bit levels, that is shown in full red.

    Returns:
        uint8 `(H, W, 3)`, BGR.
    """
    error = np.abs(sr.astype(np.float64) - gt.astype(np.float64)).mean(axis=2)
    return _jet(np.clip(error / full_scale, 0, 1))


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
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, 1
    width = cv2.getTextSize(text, font, 1, thickness)[0][0]
    size = min(0.6, 0.98 * picture.shape[1] / max(width, 1))
    strip = np.full((height, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, text, (0, height - 10), font, size, (0, 0, 0), thickness, cv2.LINE_AA)
    return np.concatenate([strip, picture])


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
