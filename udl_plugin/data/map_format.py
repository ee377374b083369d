"""Log-variance of every image of a training set, kept as 8-bit images in an LMDB of BasicSR's kind.

Each map spans all 255 steps between its own least and greatest value; these, and of which network the maps are, stand
in `uncertainty.json` beside `meta_info.txt`. A map of [-1, 5] is kept to ±0.012, and its weights in step 2 are 1 to 7.
"""
import json
from pathlib import Path

import numpy as np

from udl_plugin.errors import UserError

ABOUT = 'uncertainty.json'
LEVELS = 255


def quantize(log_var):
    """A map as an image.

    Args:
        log_var (ndarray): float32 `(C, H, W)`, finite; C in the order of RGB.

    Returns:
        tuple[ndarray, tuple[float, float]]: uint8 `(H, W, C)`, in the order of BGR, and what its 0 and 255 stand for.
    """
    least, greatest = float(log_var.min()), float(log_var.max())
    img = np.rint((log_var - least) * (LEVELS / max(greatest - least, 1e-6))).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(img, 0, 2)[:, :, ::-1]), (least, greatest)


def dequantize(img, limits):
    """The map of an image, or of a part of one: float32 `(C, H, W)`; arguments as `to_levels` returns them."""
    least, greatest = limits
    img = np.moveaxis(img.reshape(*img.shape[:2], -1)[:, :, ::-1], 2, 0)
    return img.astype(np.float32) * np.float32((greatest - least) / LEVELS) + np.float32(least)


def make_metadata(model, param_key, fingerprint, network_g, scale, limits):
    """The bytes of `uncertainty.json`.

    Args:
        model, param_key (str): The checkpoint of the network.
        fingerprint (str): Of its state dict.
        network_g (dict): Its section.
        scale (int): Size of the maps over that of the LR images.
        limits (dict[str, tuple[float, float]]): Of the image of each key.
    """
    return json.dumps({'model': str(model), 'param_key': param_key, 'fingerprint': fingerprint, 'network_g': network_g,
                       'scale': scale, 'limits': limits}).encode()


def read_metadata(path):
    """What `uncertainty.json` of the LMDB `path` says, as `about` takes it.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        if Path(path, ABOUT).exists() and not Path(path, ABOUT).is_file():
            raise ValueError('it is no file')
        said = json.loads(Path(path, ABOUT).read_bytes())
        limits = {key: tuple(map(float, pair)) for key, pair in said['limits'].items()}
        texts = {key: str(said[key]) for key in ('model', 'param_key', 'fingerprint')}
        return {**said, **texts, 'limits': limits, 'scale': int(said['scale'])}
    except FileNotFoundError:
        raise UserError(f"'{path}' has no {ABOUT}: udl-prepare uncertainty writes LMDBs of maps.") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as err:
        raise UserError(f"'{Path(path, ABOUT)}' is damaged ({type(err).__name__}: {err}).") from err
