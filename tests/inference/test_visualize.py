import io

import cv2
import numpy as np
import pytest

from udl_plugin.inference.visualize import (
    BAR_WIDTH,
    GAP,
    absolute_error,
    contact_sheet,
    describe_owner,
    encode_map_files,
    encode_png,
    expected_error_picture,
    heat_map,
    luma,
    round_limit,
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


# ---- maps with a unit

def ramp_map(height, width, low=-1., high=2.):
    return np.broadcast_to(np.linspace(low, high, width), (3, height, width))


def test_expected_error_is_linear_in_levels_and_has_a_bar():
    log_var = ramp_map(260, 300)
    error = 2 * np.exp(log_var[0])
    picture = expected_error_picture(log_var)
    assert picture.shape[0] == 260
    limit = round_limit(error)
    assert limit == 15  # 2 exp(2) = 14.8
    grey = np.round(255 * error / limit).astype(np.uint8)
    np.testing.assert_array_equal(picture[:, :300], cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO))
    bar = picture[:, 300 + GAP:300 + GAP + BAR_WIDTH]
    assert bar[12, 0].tolist() == cv2.applyColorMap(np.uint8([[255]]), cv2.COLORMAP_INFERNO)[0, 0].tolist()
    assert bar[-13, 0].tolist() == cv2.applyColorMap(np.uint8([[0]]), cv2.COLORMAP_INFERNO)[0, 0].tolist()
    assert (picture[:, 300 + GAP + BAR_WIDTH + 6:] < 128).any()  # labels


def test_loss_calibration_and_limits_of_the_expected_error():
    log_var = ramp_map(8, 9)
    for loss, error in (('ESU', 2 * np.exp(log_var[0])), ('EU', np.exp(log_var[0])),
                        ('GaussianNLL', np.sqrt(2 / np.pi) * np.exp(log_var[0] / 2))):
        np.testing.assert_array_equal(expected_error_picture(log_var, loss, 3., (1, 20))[:8, :9],
                                      heat_map(3 * error, (1, 20)))
    assert (expected_error_picture(log_var, 'ESU', 1, (0, 20)) != expected_error_picture(
        log_var, 'ESU', 1, (0, 20), owner=describe_owner('step 2'))).any()  # the title of the bar
    assert describe_owner('step 2', 1.1) == describe_owner('step 1')
    with pytest.raises(ValueError, match='colormap must be one of inferno, authors'):
        expected_error_picture(log_var, colormap='jet')
    with pytest.raises(ValueError, match='a lower and a higher number'):
        expected_error_picture(log_var, limits=(4, 4))


def test_the_authors_colours_are_those_of_the_paper():
    log_var = np.random.default_rng(0).normal(size=(3, 8, 9))
    np.testing.assert_array_equal(expected_error_picture(log_var, colormap='authors')[:8, :9],
                                  uncertainty_picture(log_var))
    limits = 2 * np.exp(-1), 2 * np.exp(4)  # of ESU
    np.testing.assert_allclose(expected_error_picture(log_var, limits=limits, colormap='authors')[:8, :9].astype(int),
                               uncertainty_picture(log_var, (-1, 4)), atol=1)


def test_small_and_constant_and_untrained_maps():
    assert expected_error_picture(np.full((3, 4, 5), -1.)).shape[0] == 240
    for colormap in ('inferno', 'authors'):
        with np.errstate(all='raise', under='ignore'):
            expected_error_picture(np.full((1, 4, 5), -1.), colormap=colormap)
    assert round_limit(np.full((3, 3), np.inf)) == 255
    assert [round_limit(np.full(9, value)) for value in (0, 1, 1.01, 7, 10, 11, 99)] == [1, 1, 1.5, 8, 10, 15, 100]


def test_files_of_a_map():
    log_var = ramp_map(8, 9).astype(np.float32)
    files = encode_map_files(log_var, 'EU', 2.)
    assert list(files) == ['_log_var.npy', '_expected_error.npy', '_expected_error.png']
    np.testing.assert_array_equal(np.load(io.BytesIO(files['_log_var.npy'])), log_var)
    error = np.load(io.BytesIO(files['_expected_error.npy']))
    assert error.dtype == np.float32
    np.testing.assert_allclose(error, 2 * np.exp(log_var).transpose(1, 2, 0), rtol=1e-6)


def test_absolute_error_is_the_mean_of_the_channels():
    sr, gt = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), [3, 6, 255], np.uint8)
    assert (absolute_error(sr, gt) == 88).all()
    assert (absolute_error(gt[..., 2], sr[..., 2]) == 255).all()
