"""Compares with MATLAB's formula written out pixel by pixel in plain Python, on small images."""
import math

import numpy as np
import pytest

from udl_plugin.utils.imresize import imresize


def kernel(x):
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.


def resized_line(line, scale, border):
    """One row or column: each target pixel is the weighted mean of all source pixels under the widened kernel."""
    result = []
    widening = min(scale, 1)
    for target in range(1, math.ceil(scale * len(line)) + 1):  # MATLAB counts from 1
        center = target / scale + 0.5 * (1 - 1 / scale)
        total = weight_sum = 0.
        for source in range(math.floor(center - 2 / widening) - 1, math.ceil(center + 2 / widening) + 2):
            weight = kernel(widening * (center - source))
            index = source
            while not 1 <= index <= len(line):
                if border == 'clamp':
                    index = min(max(index, 1), len(line))
                else:  # the image is mirrored at its edges, the edge pixel twice
                    index = 1 - index if index < 1 else 2 * len(line) + 1 - index
            total += weight * line[index - 1]
            weight_sum += weight
        result.append(math.floor(min(max(total / weight_sum, 0), 255) + 0.5))
    return result


def slow(img, scale, border):
    """Resizes columns, rounds to 8 bit, then resizes rows."""
    tall = np.array([resized_line(column, scale, border) for column in img.T.tolist()], dtype=np.uint8).T
    return np.array([resized_line(row, scale, border) for row in tall.tolist()], dtype=np.uint8)


def noise(*shape):
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize('border', ['clamp', 'symmetric'])
@pytest.mark.parametrize('scale', [1 / 2, 1 / 3, 1 / 4, 2, 3, 0.7])
@pytest.mark.parametrize('shape', [(12, 24), (13, 7), (3, 30), (1, 5)])
def test_equals_the_slow_formula(shape, scale, border):
    img = noise(*shape)
    np.testing.assert_array_equal(imresize(img, scale, border), slow(img, scale, border))


def test_many_columns():
    """More columns than are computed at a time."""
    img = noise(6, 1300)
    np.testing.assert_array_equal(imresize(img, 1 / 2), slow(img, 1 / 2, 'clamp'))


def test_overshoot_is_clipped():
    """Black and white bars: the kernel overshoots, and 8-bit values must not wrap around."""
    img = np.kron(noise(6, 6) % 2 * 255, np.ones((4, 4), np.uint8)).astype(np.uint8)
    for scale in (1 / 2, 3):
        np.testing.assert_array_equal(imresize(img, scale), slow(img, scale, 'clamp'))


def test_channels_are_independent():
    img = noise(12, 16, 3)
    result = imresize(img, 1 / 4)
    assert result.shape == (3, 4, 3)
    assert result.flags.c_contiguous
    for channel in range(3):
        np.testing.assert_array_equal(result[..., channel], imresize(img[..., channel], 1 / 4))


def test_constant_image_stays_constant_and_size_is_rounded_up():
    assert (imresize(np.full((9, 10, 3), 77, np.uint8), 1 / 4) == np.full((3, 3, 3), 77)).all()
    np.testing.assert_array_equal(imresize(noise(5, 6), 1), noise(5, 6))


def test_borders_give_different_results():
    img = noise(12, 12)
    clamp, symmetric = imresize(img, 1 / 4), imresize(img, 1 / 4, 'symmetric')
    assert (clamp != symmetric).any()


@pytest.mark.parametrize(('img', 'options'), [
    (np.zeros((4, 4)), {}), (np.zeros((4, 4), np.uint16), {}), (np.zeros(4, np.uint8), {}),
    (np.zeros((0, 4), np.uint8), {}), (noise(4, 4), {'border': 'reflect'}), (noise(4, 4), {'scale': 0}),
    (noise(4, 4), {'scale': float('nan')})])
def test_bad_input_raises(img, options):
    with pytest.raises(ValueError, match='takes a uint8 image|must be positive'):
        imresize(img, **{'scale': 1 / 2, **options})
