"""Multi-scale descriptors against a loop over images and scales that resizes by the definition."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from marks import slow

from dim.model import layers
from dim.model.layers import L2Normalisation

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 72, 100, 3), dtype=np.uint8)


def halves(side: int, new: int) -> np.ndarray:
    """The weights (new, side) of bilinear interpolation, widened by the factor of a reduction so as not to alias."""
    weights = np.zeros((new, side))
    width = max(side / new, 1)
    for i in range(new):
        centre = (i + 0.5) * side / new
        for j in range(side):
            weights[i, j] = max(0, 1 - abs(j + 0.5 - centre) / width)
    return weights / weights.sum(axis=1, keepdims=True)


def resized(image: np.ndarray, scale: float) -> np.ndarray:
    height, width = (max(32, round(side * scale)) for side in image.shape[:2])
    rows, columns = halves(image.shape[0], height), halves(image.shape[1], width)
    return np.rint(np.einsum("yh,xw,hwc->yxc", rows, columns, image.astype(np.float64))).astype(np.uint8)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """Descriptors of 8 values of both signs that depend on every pixel and on the size."""
    images = keras.Input((None, None, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(images)
    x = keras.layers.Conv2D(8, 3, activation="tanh", kernel_initializer=keras.initializers.GlorotUniform(1))(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, L2Normalisation()(x))


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def naive(model: keras.Model, image: np.ndarray, chosen: tuple[float, ...], mean: str) -> np.ndarray:
    found = [np.array(model(resized(image, scale)[None]))[0].astype(np.float64) for scale in chosen]
    if mean == "mean":
        return unit(sum(found) / len(found))
    cubes = sum(vector**3 for vector in found) / len(found)
    return unit(np.array([math.copysign(abs(value) ** (1 / 3), value) for value in cubes]))


@pytest.mark.parametrize("mean", ["mean", "gem"])
@pytest.mark.parametrize("chosen", [(1, 1 / math.sqrt(2), 0.5), (0.2, 1.0), *slow((1.0,), (0.5,), (1.5, 1.0))])
def test_equals_a_naive_loop(model, chosen, mean):
    expected = [naive(model, image, chosen, mean) for image in IMAGES]
    combine = tf.function(
        lambda images: layers.multi_scale_descriptors(model, images, chosen, mean),
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
    )
    np.testing.assert_allclose(combine(IMAGES), expected, atol=1e-5)
    turned = IMAGES.transpose(0, 2, 1, 3)
    np.testing.assert_allclose(combine(turned)[0], naive(model, turned[0], chosen, mean), atol=1e-5)


def test_no_side_is_left_under_32():
    seen = []
    images = keras.Input((None, None, 3), dtype="uint8")
    model = keras.Model(images, ops.mean(ops.cast(images, "float32"), axis=(1, 2)))

    def spy(batch, training):
        seen.append(tuple(batch.shape))
        return model(batch, training=training)

    layers.multi_scale_descriptors(spy, IMAGES, (1.0, 0.5, 0.25), "mean")
    assert seen == [(2, 72, 100, 3), (2, 36, 50, 3), (2, 32, 32, 3)]


@pytest.mark.parametrize("mean", ["mean", "gem"])
def test_descriptors_that_are_zero_stay_zero(mean):
    def zero(batch, training):
        return np.zeros((len(batch), 4), np.float32)

    np.testing.assert_array_equal(layers.multi_scale_descriptors(zero, IMAGES, (1.0, 0.5), mean), np.zeros((2, 4)))
