"""Fits the factor on the expected error of a network with which expected and observed error agree on given photos."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from basicsr.utils.color_util import rgb2ycbcr

from udl_plugin.data.image_io import read_image
from udl_plugin.errors import UserError
from udl_plugin.inference.upscaler import Upscaler
from udl_plugin.inference.visualize import swap_red_blue
from udl_plugin.metrics.uncertainty_metrics import crop, expected_error, normalised_error, reliability
from udl_plugin.utils.imresize import imresize

MIN_SIDE = 16  # of an LR image


class Calibration(NamedTuple):
    """The result of `calibrate`. Errors are means over all pixels of all photos, in 8-bit levels.

    Attributes:
        error_scale: Factor on the expected error without calibration: observed over expected.
        photos: Their number.
        expected, observed: Mean expected error, without the factor, and mean absolute error.
        before, after: Calibration error (`uncertainty_metrics.calibration`), mean over the photos: without a factor,
            and with the factor that the other photos give; with one photo, its own.
    """

    error_scale: float
    photos: int
    expected: float
    observed: float
    before: float
    after: float


class _Sums(NamedTuple):
    pixels: int
    expected: float
    observed: float
    bins: tuple[np.ndarray, np.ndarray]  # of `reliability`


def calibrate(upscaler: Upscaler, photos: Iterable[str | Path]) -> Calibration:
    """Compares expected and observed error on photos, which are shrunk by MATLAB's bicubic and upscaled again.

    A factor changes neither the order of the pixels nor the SR image. Of a step-2 file, the observed errors are those
    of step 2's image: a factor fits step 1's map to them.

    Args:
        upscaler: With uncertainty. Its own `error_scale` is left out.
        photos: HR photos, as image files; sides that are no multiple of the scale are cropped.

    Raises:
        UserError: no photo, one that cannot be read or is too small, or no error was observed.
    """
    sums = [_compare(upscaler, photo) for photo in photos]
    pixels = sum(one.pixels for one in sums)
    expected, observed = (sum(getattr(one, name) for one in sums) for name in ('expected', 'observed'))
    if not sums or not observed > 0 or not np.isfinite(expected):
        raise UserError(f'there is no {"error" if sums else "photo"} to calibrate with.')
    before, after = [], []
    for one in sums:
        others = len(sums) > 1
        scale = (observed - one.observed * others) / (expected - one.expected * others)
        predicted, seen = one.bins
        before.append(normalised_error(predicted, seen))
        after.append(normalised_error(scale * predicted, seen))
    return Calibration(observed / expected, len(sums), expected / pixels, observed / pixels, float(np.mean(before)),
                       float(np.mean(after)))


def _compare(upscaler: Upscaler, path: str | Path) -> _Sums:
    """Of one photo; its border, as wide as the scale, is left out, as in the benchmarks."""
    scale = upscaler.scale
    hr, _ = read_image(path)
    hr = hr[:hr.shape[0] // scale * scale, :hr.shape[1] // scale * scale]
    if min(hr.shape[:2]) < scale * MIN_SIDE:
        raise UserError(f"'{path}' is too small; at x{scale} a photo needs {scale * MIN_SIDE} x {scale * MIN_SIDE} "
                        'pixels or more.')
    hr = swap_red_blue(hr)
    result = upscaler.upscale(imresize(hr, 1 / scale))
    error = _planes(upscaler, result.image) - _planes(upscaler, hr)
    assert result.log_var is not None
    log_var = crop(result.log_var, scale).ravel()
    observed = np.abs(crop(error, scale)).ravel()
    expected = expected_error(log_var, upscaler.uncertainty_loss or 'ESU')
    return _Sums(observed.size, float(expected.sum()), float(observed.sum()),
                 reliability(log_var, observed, upscaler.uncertainty_loss or 'ESU'))


def _planes(upscaler: Upscaler, rgb: np.ndarray) -> np.ndarray:
    """`(C, H, W)`, float64, in 8-bit levels: the channels that the map is about, RGB or Y."""
    planes = np.broadcast_to(np.atleast_3d(rgb), (*rgb.shape[:2], 3)).astype(np.float64)
    if upscaler.channels == 1:
        planes = 255. * rgb2ycbcr(planes.astype(np.float32) / 255., y_only=True)[..., None]
    return np.moveaxis(planes, 2, 0)
