import json

import numpy as np
import pytest

from udl_plugin.data.uncertainty_maps import ABOUT, about, from_levels, read_about, to_levels
from udl_plugin.errors import InputError


@pytest.mark.parametrize('channels', [1, 3])
def test_round_trip(channels):
    log_var = np.random.default_rng(0).uniform(-1, 5, (channels, 9, 14)).astype(np.float32)
    img, limits = to_levels(log_var)
    assert img.dtype == np.uint8 and img.shape == (9, 14, channels)
    assert limits == (log_var.min(), log_var.max())
    back = from_levels(img, limits)
    assert back.dtype == np.float32 and back.shape == log_var.shape
    half = (limits[1] - limits[0]) / 255 / 2
    assert half < 0.012
    assert np.abs(back - log_var).max() <= half + 1e-5
    assert back[:, 2:4, 3:7] == pytest.approx(from_levels(img[2:4, 3:7], limits))
    if channels == 1:  # as cv2 reads it
        assert np.array_equal(from_levels(img[:, :, 0], limits), back)


def test_order_of_channels():
    """The picture shows red where the map of red is high."""
    img, _ = to_levels(np.array([1, 0, 0], np.float32).reshape(3, 1, 1))
    assert img.tolist() == [[[0, 0, 255]]]


def test_constant_map():
    img, limits = to_levels(np.full((3, 2, 2), -0.25, np.float32))
    assert np.array_equal(from_levels(img, limits), np.full((3, 2, 2), -0.25, np.float32))


def test_about(tmp_path):
    data = about('x.pth', 'params', 'f', {'type': 'EDSRVar'}, 2, {'0001_s001': (-1.0, 2.5)})
    (tmp_path / ABOUT).write_bytes(data)
    assert read_about(tmp_path) == {
        'model': 'x.pth', 'param_key': 'params', 'fingerprint': 'f', 'network_g': {'type': 'EDSRVar'}, 'scale': 2,
        'limits': {'0001_s001': (-1.0, 2.5)}}


@pytest.mark.parametrize('data', [b'', b'[]', b'{}', b'{"limits": {}}', b'{"limits": {"a": [1, "x"]}, "scale": 2}'])
def test_damaged(tmp_path, data):
    (tmp_path / ABOUT).write_bytes(data)
    with pytest.raises(InputError, match=f'{ABOUT}.* is damaged'):
        read_about(tmp_path)


def test_missing(tmp_path):
    with pytest.raises(InputError, match='udl-prepare uncertainty writes'):
        read_about(tmp_path)
    assert json.loads(about('m', 'params', 'f', {}, 2, {}))['limits'] == {}
