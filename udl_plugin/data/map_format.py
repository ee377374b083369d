"""Format of cached uncertainty maps: the log-variance of each training image as an 8-bit image in an LMDB for BasicSR.

Each map uses all 256 levels between its own minimum and maximum. `uncertainty.json`, beside `meta_info.txt`, holds
these limits and which network made the maps. A map of [-1, 5] is accurate to ±0.012; its weights in step 2 are 1 to 7.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from udl_plugin.errors import UserError

METADATA = 'uncertainty.json'
LEVELS = 255


def quantize(log_var: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Converts a map to an image.

    Args:
        log_var: float32 `(C, H, W)`, finite; channels in the order RGB.

    Returns:
        uint8 `(H, W, C)`, channels in the order BGR; and the values that its 0 and 255 stand for.
    """
    low, high = float(log_var.min()), float(log_var.max())
    img = np.rint((log_var - low) * (LEVELS / max(high - low, 1e-6))).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(img, 0, 2)[:, :, ::-1]), (low, high)


def dequantize(img: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Converts an image from `quantize`, or a crop of one, back to a map: float32 `(C, H, W)`."""
    low, high = limits
    img = np.moveaxis(img.reshape(*img.shape[:2], -1)[:, :, ::-1], 2, 0)
    return img.astype(np.float32) * np.float32((high - low) / LEVELS) + np.float32(low)


def make_metadata(model: str | Path, param_key: str | None, fingerprint: str, network_g: Mapping[str, Any], scale: int,
                  limits: Mapping[str, tuple[float, float]]) -> bytes:
    """Content of `uncertainty.json`.

    Args:
        model: Checkpoint of the network.
        param_key: Key of the state dict in it; None: it is a state dict itself.
        fingerprint: Of the state dict.
        network_g: Config of the network.
        scale: Size of the maps over that of the LR images.
        limits: Key of each image to its limits from `quantize`.
    """
    return json.dumps({'model': str(model), 'param_key': param_key, 'fingerprint': fingerprint, 'network_g': network_g,
                       'scale': scale, 'limits': limits}).encode()


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Reads `uncertainty.json` of the LMDB `path`.

    Returns:
        The arguments of `make_metadata`.

    Raises:
        UserError: the file is missing or corrupted.
    """
    file = Path(path, METADATA)
    try:
        content = json.loads(file.read_bytes())
        limits = {key: tuple(map(float, pair)) for key, pair in content['limits'].items()}
        strings = {key: str(content[key]) for key in ('model', 'param_key', 'fingerprint')}
        return {**content, **strings, 'limits': limits, 'scale': int(content['scale'])}
    except FileNotFoundError:
        raise UserError(f"'{path}' has no {METADATA}: it was not written by udl-prepare uncertainty.") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as err:
        raise UserError(f"'{file}' is corrupted ({type(err).__name__}: {err}).") from err
