import numpy as np
import pytest

from udl_plugin.data.map_format import METADATA, dequantize, make_metadata, quantize, read_metadata
from udl_plugin.errors import UserError


@pytest.mark.parametrize('channels', [1, 3])
def test_round_trip(channels):
    log_var = np.random.default_rng(0).uniform(-1, 5, (channels, 9, 14)).astype(np.float32)
    img, limits = quantize(log_var)
    assert img.dtype == np.uint8 and img.shape == (9, 14, channels)
    assert limits == (log_var.min(), log_var.max())
    back = dequantize(img, limits)
    assert back.dtype == np.float32 and back.shape == log_var.shape
    half = (limits[1] - limits[0]) / 255 / 2
    assert half < 0.012
    assert np.abs(back - log_var).max() <= half + 1e-5
    assert back[:, 2:4, 3:7] == pytest.approx(dequantize(img[2:4, 3:7], limits))
    if channels == 1:  # cv2 reads it without a channel axis
        assert np.array_equal(dequantize(img[:, :, 0], limits), back)


def test_order_of_channels():
    """The image is red where the map of the red channel is high."""
    img, _ = quantize(np.array([1, 0, 0], np.float32).reshape(3, 1, 1))
    assert img.tolist() == [[[0, 0, 255]]]


def test_constant_map():
    img, limits = quantize(np.full((3, 2, 2), -0.25, np.float32))
    assert np.array_equal(dequantize(img, limits), np.full((3, 2, 2), -0.25, np.float32))


def test_metadata_round_trip(tmp_path):
    data = make_metadata('x.pth', 'params', 'f', {'type': 'EDSRVar'}, 2, {'0001_s001': (-1.0, 2.5)})
    (tmp_path / METADATA).write_bytes(data)
    assert read_metadata(tmp_path) == {
        'model': 'x.pth', 'param_key': 'params', 'fingerprint': 'f', 'network_g': {'type': 'EDSRVar'}, 'scale': 2,
        'limits': {'0001_s001': (-1.0, 2.5)}}


@pytest.mark.parametrize('data', [b'', b'[]', b'{}', b'{"limits": {}}', b'{"limits": {"a": [1, "x"]}, "scale": 2}'])
def test_corrupted_metadata_raises(tmp_path, data):
    (tmp_path / METADATA).write_bytes(data)
    with pytest.raises(UserError, match=f'{METADATA}.* is corrupted'):
        read_metadata(tmp_path)


def test_missing_metadata_raises(tmp_path):
    with pytest.raises(UserError, match='has no uncertainty.json: it was not written by udl-prepare uncertainty'):
        read_metadata(tmp_path)
