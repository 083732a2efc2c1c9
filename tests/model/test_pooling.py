"""Poolings against naive loops, their gradients against finite differences, and their layers."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from dim.model import pooling
from dim.model.layers import L2Normalisation, l2_normalise
from dim.model.pooling import POOLINGS, rmac

SIZES = [(1, 1), (7, 7), (3, 5), (24, 32), (16, 32)]
FUNCTIONS = {
    "mac": pooling.mac,
    "spoc": pooling.spoc,
    "spoc-prior": pooling.spoc_prior,
    "gem": pooling.gem,
    "crow": pooling.crow,
    "rmac": rmac,
}


def activations(height: int, width: int, channels: int = 5, images: int = 3) -> np.ndarray:
    """Maps as a ReLU leaves them: about half zeros, one channel and one image zero throughout."""
    random = np.random.default_rng(height * 100 + width)
    maps = np.maximum(random.normal(size=(images, height, width, channels)) * 30, 0)
    maps[0, ..., 1] = 0
    maps[-1] = 0
    return maps.astype(np.float32)


def naive_mac(x):
    height, width, channels = x.shape
    return [max(x[i, j, k] for i in range(height) for j in range(width)) for k in range(channels)]


def naive_spoc(x):
    height, width, channels = x.shape
    return [sum(x[i, j, k] for i in range(height) for j in range(width)) for k in range(channels)]


def naive_spoc_prior(x):
    height, width, channels = x.shape
    sigma = min(height, width) / 2 / 3
    result = [0.0] * channels
    for i in range(height):
        for j in range(width):
            distance = math.hypot(i - (height - 1) / 2, j - (width - 1) / 2)
            for k in range(channels):
                result[k] += math.exp(-(distance**2) / (2 * sigma**2)) * x[i, j, k]
    return result


def naive_gem(x, p=3.0):
    height, width, channels = x.shape
    result = []
    for k in range(channels):
        powers = [max(x[i, j, k], 1e-6) ** p for i in range(height) for j in range(width)]
        result.append((sum(powers) / len(powers)) ** (1 / p))
    return result


def naive_crow(x):
    height, width, channels = x.shape
    total = [[sum(x[i, j]) for j in range(width)] for i in range(height)]
    norm = math.sqrt(sum(value**2 for row in total for value in row))
    share = [
        sum(x[i, j, k] != 0 for i in range(height) for j in range(width)) / height / width for k in range(channels)
    ]
    result = []
    for k in range(channels):
        weight = math.log(sum(share) / share[k]) if share[k] else 0.0
        pooled = 0.0
        for i in range(height):
            for j in range(width):
                pooled += (math.sqrt(total[i][j] / norm) if norm else 0.0) * x[i, j, k]
        result.append(weight * pooled)
    return result


NAIVE = {"mac": naive_mac, "spoc": naive_spoc, "spoc-prior": naive_spoc_prior, "gem": naive_gem, "crow": naive_crow}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAIVE)
def test_equals_a_naive_loop(name, size):
    maps = activations(*size)
    expected = np.array([NAIVE[name](image) for image in maps.astype(np.float64)])
    np.testing.assert_allclose(FUNCTIONS[name](maps), expected, rtol=1e-5, atol=1e-5)


def test_gem_is_the_mean_at_1_and_near_the_maximum_at_a_high_power_without_overflow():
    maps = activations(7, 7)[:1] + 1
    np.testing.assert_allclose(pooling.gem(maps, 1.0), maps.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(pooling.gem(maps * 1000, 200.0), 1000 * maps.max(axis=(1, 2)), rtol=0.03)


def gradient(function, x):
    """The gradient of Σ_k (k + 1)·f_k, in which all channels count differently."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        pooled = function(x)
        loss = tf.reduce_sum(pooled * tf.range(1, pooled.shape[-1] + 1, dtype=x.dtype))
    return tape.gradient(loss, x).numpy()


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (3, 5)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_equals_finite_differences_where_channels_are_active(name, size):
    maps = activations(*size, channels=3, images=2).astype(np.float64)
    maps[-1] = np.random.default_rng(1).uniform(1, 9, maps[-1].shape)
    found = gradient(FUNCTIONS[name], maps)
    weights = np.arange(1, 4)
    for index in np.argwhere(maps > 0):
        step = np.zeros_like(maps)
        step[tuple(index)] = 1e-5
        higher, lower = (np.sum(np.array(FUNCTIONS[name](maps + sign * step)) * weights) for sign in (1, -1))
        assert found[tuple(index)] == pytest.approx((higher - lower) / 2e-5, rel=1e-5, abs=1e-7), index


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_is_finite_where_activations_are_zero(name, size):
    maps = activations(*size)
    found = gradient(lambda x: l2_normalise(FUNCTIONS[name](x)), maps)
    assert np.isfinite(found).all()
    assert size == (1, 1) or np.abs(found[:-1]).max() > 0


def test_gradient_of_the_power_equals_finite_differences():
    maps, power = activations(7, 7).astype(np.float64), tf.Variable(3.0, dtype="float64")
    with tf.GradientTape() as tape:
        pooled = tf.reduce_sum(pooling.gem(maps, power))
    higher, lower = (float(tf.reduce_sum(pooling.gem(maps, 3.0 + step))) for step in (1e-5, -1e-5))
    assert float(tape.gradient(pooled, power)) == pytest.approx((higher - lower) / 2e-5, rel=1e-6)


@pytest.fixture
def bfloat16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("name", POOLINGS)
def test_layer_is_float32_and_takes_maps_of_unknown_size(name, bfloat16):
    maps = keras.Input((None, None, 5))
    model = keras.Model(maps, POOLINGS[name]()(maps))
    assert model.layers[-1].name == "pooling"
    assert model.output_shape == (None, 5)
    pool = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 5), tf.bfloat16)])
    for size in SIZES:
        x = tf.cast(activations(*size), tf.bfloat16)
        assert pool(x).dtype == tf.float32
        np.testing.assert_allclose(pool(x), FUNCTIONS[name](tf.cast(x, tf.float32)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [*(make() for make in POOLINGS.values()), POOLINGS["gem"](p=2.0)])
def test_layer_is_made_again_from_its_configuration(layer):
    maps = activations(7, 7)
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    np.testing.assert_array_equal(again(maps), layer(maps))


def test_the_power_is_one_trainable_weight():
    layer = POOLINGS["gem"]()
    layer.build((None, None, None, 512))
    assert [(weight.name, weight.shape) for weight in layer.trainable_weights] == [("p", ())]
    assert float(layer.p) == 3


def test_l2_normalisation_keeps_zero_at_zero():
    x = np.array([[3, 4], [0, 0]], np.float32)
    np.testing.assert_allclose(L2Normalisation()(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.isfinite(gradient(l2_normalise, x)).all()
