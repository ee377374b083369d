import cv2
import numpy as np
import pytest

from udl_plugin.inference.visualize import (
    contact_sheet,
    encode_png,
    error_picture,
    luma,
    swap_red_blue,
    uncertainty_picture,
)

BLUE, RED = [128, 0, 0], [0, 0, 128]  # the ends of OpenCV's JET, BGR


def test_uncertainty_is_stretched_luma_in_jet():
    log_var = np.random.default_rng(0).normal(size=(3, 8, 9))
    y = 65.738 * log_var[0] + 129.057 * log_var[1] + 25.064 * log_var[2]
    grey = np.round(255 * (y - y.min()) / (y.max() - y.min())).astype(np.uint8)
    picture = uncertainty_picture(log_var)
    np.testing.assert_array_equal(picture, cv2.applyColorMap(grey, cv2.COLORMAP_JET))
    assert picture[np.unravel_index(y.argmin(), y.shape)].tolist() == BLUE
    assert picture[np.unravel_index(y.argmax(), y.shape)].tolist() == RED
    np.testing.assert_array_equal(uncertainty_picture(3 * log_var + 5), picture)


def test_one_channel_and_constant_maps():
    ramp = np.arange(12.).reshape(1, 3, 4)
    assert uncertainty_picture(ramp)[-1, -1].tolist() == RED
    with np.errstate(all='raise'):  # importing basicsr turns numpy's warnings off
        assert (uncertainty_picture(np.full((3, 4, 4), -1.)) == BLUE).all()
    with pytest.raises(ValueError, match=r'\(2, 4, 4\)'):
        uncertainty_picture(np.zeros((2, 4, 4)))


def test_fixed_limits_show_the_same_value_in_the_same_colour():
    low, high = (np.full((3, 2, 2), value) for value in (-1., 4.))
    assert (uncertainty_picture(low, (-1, 4)) == BLUE).all()
    assert (uncertainty_picture(high, (-1, 4)) == RED).all()
    assert (uncertainty_picture(high + 3, (-1, 4)) == RED).all()
    ramp = np.linspace(-3, 3, 7).reshape(1, 1, 7)
    part = uncertainty_picture(ramp[..., 2:], (-1, 4))
    np.testing.assert_array_equal(uncertainty_picture(ramp, (-1, 4))[:, 2:], part)
    with pytest.raises(ValueError, match='a lower and a higher number'):
        uncertainty_picture(ramp, (4, -1))


def test_luma_is_in_the_unit_of_the_map():
    np.testing.assert_allclose(luma(np.full((3, 2, 2), 1.7)), 1.7)


def test_error_does_not_wrap_around():
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert (error_picture(black, white) == RED).all()
    assert (error_picture(white, black) == RED).all()
    assert (error_picture(white, white) == BLUE).all()


def test_contact_sheet():
    tile = np.full((20, 30, 3), 100, np.uint8)
    picture = contact_sheet([[('one', tile), ('two', tile)], [('three', tile)]], margin=4, label_height=16)
    assert picture.shape == (4 + 2 * (16 + 20 + 4), 4 + 2 * (30 + 4), 3)
    np.testing.assert_array_equal(picture[4 + 16:4 + 16 + 20, 4:34], tile)
    assert (picture[4:20, 4:34] < 128).any()  # the label
    assert (picture[:4] == 255).all()
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(encode_png(picture), np.uint8), 1), picture)


def test_swap_red_blue():
    img = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    np.testing.assert_array_equal(swap_red_blue(img), img[:, :, [2, 1, 0, 3]])
    np.testing.assert_array_equal(swap_red_blue(img[:, :, :3]), img[:, :, [2, 1, 0]])
    np.testing.assert_array_equal(swap_red_blue(swap_red_blue(img)), img)
    np.testing.assert_array_equal(swap_red_blue(img[:, :, 0]), img[:, :, 0])
