"""The gradient in two passes is that in one, whatever the chunks and the photos' shapes."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from dim.model import network
from dim.model.spec import Spec
from dim.train.loss import ap_loss, multi_similarity_loss
from dim.train.step import TrainedNetwork, packed
from dim.train.two_pass import TwoPassStep

SPEC = Spec(pooling="gem", dimension=8)
SHAPES = [(2, 2, 512), (1, 3, 512), (2, 2, 512), (2, 2, 512), (1, 3, 512), (2, 2, 512), (1, 2, 512)]
LABELS = np.array([0, 1, 0, 2, 1, 0, 3])  # two photos have no positive
QUERIES = 5
LOSSES = {"ap": partial(ap_loss, bins=20), "multi-similarity": multi_similarity_loss}


class Kept:
    """An optimizer that keeps the gradients in place of the weights."""

    global_clipnorm = None

    def apply(self, gradients, variables):
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign(gradient)


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(5)
    return [generator.random(shape).astype(np.float16) for shape in SHAPES]


def trained():
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    keras.utils.set_random_seed(7)
    return TrainedNetwork(strategy, network.build(SPEC), SPEC, "block5", from_pixels=False)


def one_pass(made, images, loss):
    """The losses, and the gradients of their mean, with the activations of all photos in memory."""
    with tf.GradientTape() as tape:
        descriptors = tf.concat([made.head(image[None].astype(np.float32), training=False) for image in images], 0)
        losses = loss(descriptors, LABELS)
        mean = tf.reduce_sum(losses) / QUERIES
    gradients = tape.gradient(mean, [variable.value for variable in made.variables])
    return losses.numpy(), [gradient.numpy() for gradient in gradients]


@pytest.mark.parametrize("name", LOSSES)
def test_two_passes_give_the_gradient_of_one(images, name):
    made = trained()
    start = [variable.numpy() for variable in made.variables]
    losses, expected = one_pass(made, images, LOSSES[name])
    step, shuffled = TwoPassStep(made, Kept(), LOSSES[name]), np.random.default_rng(2).permutation(len(images))
    for most in (1, 2, None):
        for variable, value in zip(made.variables, start, strict=True):
            variable.assign(value)
        # The order of the photos on the replica is not that of the batch.
        loss, active = step([packed([images[place] for place in shuffled], most)], [shuffled], LABELS)
        assert loss == pytest.approx(losses.sum() / QUERIES, rel=1e-5)
        assert active == np.count_nonzero(losses > 1e-6) > 0
        for variable, gradient in zip(made.variables, expected, strict=True):
            assert np.linalg.norm(gradient) > 0
            assert np.linalg.norm(variable.numpy() - gradient) <= 1e-5 * np.linalg.norm(gradient)


def test_a_chunk_has_at_most_so_many_photos_of_one_shape(images):
    found = packed(images, 3)
    assert found.groups.tolist() == [[3, 2, 2, 512], [1, 2, 2, 512], [2, 1, 3, 512], [1, 1, 2, 512]]
    order = np.argsort(found.position)
    np.testing.assert_array_equal(found.flat, np.concatenate([images[row].ravel() for row in order]))


def test_a_replica_without_photos_adds_nothing_to_the_gradient():
    made = trained()
    step = TwoPassStep(made, Kept(), LOSSES["ap"])
    loss, _ = step([packed([], 3)], [np.zeros(0, int)], LABELS)
    assert np.isfinite(loss)
    assert not any(variable.numpy().any() for variable in made.variables)
