"""R-MAC's regions against the published counts and the definition in exact arithmetic, its vectors against a loop."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
import tensorflow as tf
from marks import slow

from dim.export import keras_network
from dim.model.pooling import POOLINGS, region_maxima, rmac


def defined(height: int, width: int, levels: int = 3) -> list[tuple[int, int, int]]:
    """(y, x, side) of each region, step by step as the definitions have it, in exact arithmetic."""
    w = Fraction(min(width, height))
    errors = []
    for steps in range(2, 8):
        b = (max(width, height) - w) / (steps - 1)
        errors.append(abs((w**2 - w * b) / w**2 - Fraction(2, 5)))
    idx = errors.index(min(errors)) + 1
    wd, hd = (idx if width > height else 0), (idx if height > width else 0)
    found = []
    for level in range(1, levels + 1):
        wl = floor(2 * w / (level + 1))
        wl2 = floor(Fraction(wl, 2) - 1)
        bw = Fraction(width - wl, level + wd - 1) if level + wd > 1 else 0
        bh = Fraction(height - wl, level + hd - 1) if level + hd > 1 else 0
        xs = [floor(wl2 + i * bw) - wl2 for i in range(level + wd)]
        ys = [floor(wl2 + i * bh) - wl2 for i in range(level + hd)]
        found += [(y, x, wl) for y in ys for x in xs if wl > 0]
    return found


def regions(height: int, width: int, levels: int = 3, maxima=region_maxima) -> list[tuple[int, int, int]]:
    """(y, x, side) of each region that `region_maxima` looks at: on a map with a channel for each position, a region's
    maxima are 1 in the channels of its own positions.
    """
    positions = np.eye(height * width, dtype=np.float32).reshape(1, height, width, height * width)
    found = []
    for region in np.array(maxima(positions, levels))[0].reshape(-1, height, width):
        ys, xs = np.nonzero(region)
        y, x, side = int(ys.min()), int(xs.min()), int(ys.max() - ys.min()) + 1
        expected = np.zeros((height, width))
        expected[y : y + side, x : x + side] = 1
        np.testing.assert_array_equal(region, expected)
        found.append((y, x, side))
    return found


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((7, 7), 14),
        ((14, 14), 14),
        ((32, 32), 14),
        ((24, 32), 20),
        ((32, 24), 20),
        ((48, 64), 20),
        ((16, 32), 26),
        ((10, 64), 50),
        ((1, 1), 1),
    ],
)
def test_number_of_regions(size, count):
    assert region_maxima(np.ones((1, *size, 1), np.float32)).shape == (1, count, 1)


def test_first_regions():
    assert regions(24, 32)[:4] == [(0, 0, 24), (0, 8, 24), (0, 0, 16), (0, 8, 16)]


SIZES = [(height, width) for height in range(1, 10) for width in range(1, 10)]
TIES = [(5, 9), (9, 5), (3, 11), (10, 18), (22, 6)]


@pytest.mark.parametrize("size", [*SIZES, *TIES, (2, 40), (24, 32)])
def test_regions_are_as_defined(size):
    assert regions(*size, levels=4) == defined(*size, levels=4)


def test_regions_are_the_same_where_the_size_is_known_only_at_run_time():
    specification = tf.TensorSpec((None, None, None, None), tf.float32)
    at_run_time = tf.function(region_maxima, input_signature=[specification])
    for size in [*SIZES[::5], *TIES, (1, 1), (24, 32)]:
        assert regions(*size, maxima=lambda maps, _: at_run_time(maps)) == defined(*size)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(np.linalg.norm(vector), 1e-6)


def naive(image: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    total = np.zeros(kernel.shape[1])
    for y, x, side in defined(*image.shape[:2]):
        maxima = np.array(
            [max(image[i, j, k] for i in range(y, y + side) for j in range(x, x + side)) for k in range(image.shape[2])]
        )
        total += unit(unit(maxima) @ kernel + bias)
    return total


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (24, 32), (16, 32), (32, 16), (1, 5), (9, 5)])
def test_equals_a_naive_loop(size):
    random = np.random.default_rng(0)
    maps = np.maximum(random.normal(size=(2, *size, 4)), 0).astype(np.float32)
    kernel, bias = random.normal(size=(4, 3)).astype(np.float32), random.normal(size=3).astype(np.float32)
    plain = [naive(image, np.eye(4), np.zeros(4)) for image in maps]
    np.testing.assert_allclose(rmac(maps), plain, rtol=1e-5, atol=1e-5)
    whitened = [naive(image, kernel, bias) for image in maps]
    np.testing.assert_allclose(rmac(maps, 3, kernel, bias), whitened, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("levels", [2, *slow(1, 4)])
def test_masks_for_sizes_unknown_until_run_time_equal_what_is_cut_out(levels):
    random = np.random.default_rng(0)
    for size in [*SIZES[::3], *TIES, (2, 40), (40, 1), (24, 32)]:
        maps = random.normal(size=(2, *size, 4)).astype(np.float32)
        kernel, bias = random.normal(size=(4, 3)).astype(np.float32), random.normal(size=3).astype(np.float32)
        masked = keras_network.masked_rmac(maps, levels, None)
        np.testing.assert_allclose(masked, rmac(maps, levels), rtol=1e-5, atol=1e-5, err_msg=str(size))
        whitened = keras_network.masked_rmac(
            maps, levels, lambda vectors, kernel=kernel, bias=bias: vectors @ kernel + bias
        )
        np.testing.assert_allclose(whitened, rmac(maps, levels, kernel, bias), rtol=1e-5, atol=1e-5, err_msg=str(size))


def test_negative_activations_have_their_own_maximum():
    maps = -np.ones((1, 4, 4, 2), np.float32)
    np.testing.assert_array_equal(region_maxima(maps, 1), -np.ones((1, 1, 2)))


def test_layer_whitens_regions_by_its_weights():
    maps = np.random.default_rng(1).uniform(size=(2, 7, 7, 4)).astype(np.float32)
    layer = POOLINGS["rmac"](dimension=3)
    np.testing.assert_allclose(layer(maps), rmac(maps, 3, np.eye(4, 3, dtype=np.float32), 0.0), rtol=1e-6)
    kernel, bias = np.full((4, 3), 0.5, np.float32), np.array([1, 2, 3], np.float32)
    layer.set_weights([kernel, bias])
    np.testing.assert_allclose(layer(maps), rmac(maps, 3, kernel, bias), rtol=1e-6)
    assert [weight.name for weight in layer.weights] == ["kernel", "bias"]
