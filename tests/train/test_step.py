"""A step on distinct images is a step on all three images of every triplet, whatever their shapes."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from dim.model import network
from dim.model.spec import Spec
from dim.train.loss import triplet_loss
from dim.train.step import Step, TrainedNetwork, packed

SPEC = Spec(pooling="gem", dimension=8)
TRIPLETS = np.array([[0, 0, 1, 3], [1, 2, 4, 4], [3, 3, 2, 0]])
MARGIN = 0.5
RATE = 0.5


REGIONS = Spec(pooling="rmac", region_dimension=512, dimension=8)


def trained(layers="block5", spec=SPEC):
    keras.utils.set_random_seed(7)
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        return TrainedNetwork(strategy, network.build(spec), spec, layers, from_pixels=False)


def activations(shapes):
    generator = np.random.default_rng(5)
    return [generator.random(shape).astype(np.float16) for shape in shapes]


def naive_update(made, images):
    """The update by the network applied to each image of each triplet, one at a time."""
    with tf.GradientTape() as tape:
        losses = []
        for a, p, n in TRIPLETS.T:
            sides = [made.head(images[row][None].astype(np.float32), training=False) for row in (a, p, n)]
            losses.append(triplet_loss(*sides, MARGIN)[0])
        loss = tf.add_n(losses) / len(losses)
    gradients = tape.gradient(loss, [variable.value for variable in made.variables])
    return float(loss), sum(float(part) > 0 for part in losses), [-RATE * gradient.numpy() for gradient in gradients]


ONE_SHAPE = [(4, 4, 512)] * 5
SHAPES = [(4, 4, 512), (3, 5, 512), (4, 4, 512), (2, 2, 512), (3, 5, 512)]


@pytest.mark.parametrize("shapes", [ONE_SHAPE, SHAPES])
def test_step_on_distinct_images_equals_three_branches(shapes):
    made = trained()
    images = activations(shapes)
    loss, active, expected = naive_update(made, images)
    before = [variable.numpy() for variable in made.variables]
    optimizer = keras.optimizers.SGD(RATE)
    step = Step(made, optimizer, partial(triplet_loss, margin=MARGIN), one_shape=len(set(shapes)) == 1)
    found_loss, found_active = step([packed(images)], [TRIPLETS], TRIPLETS.shape[1])
    assert found_loss == pytest.approx(loss, rel=1e-4)
    assert found_active == active
    for variable, old, update in zip(made.variables, before, expected, strict=True):
        assert np.linalg.norm(variable.numpy() - old - update) <= 1e-3 * np.linalg.norm(update) + np.spacing(
            np.linalg.norm(old)
        )


def test_only_what_is_to_be_trained_is():
    for layers, spec, expected in (
        ("pca", SPEC, {"pca"}),
        ("pca", REGIONS, {"pooling", "pca"}),
        ("block5", SPEC, {"block5_conv1", "block5_conv2", "block5_conv3", "pooling", "pca"}),
    ):
        made = trained(layers, spec)
        assert {variable.path.split("/")[0] for variable in made.variables} == expected
    assert "block1_conv1" in {variable.path.split("/")[0] for variable in trained("all").variables}


@pytest.mark.parametrize("spec", [SPEC, REGIONS])
@pytest.mark.parametrize("layers", ["pca", "block5", "all"])
def test_trunk_and_head_compose_to_the_network(layers, spec):
    made = trained(layers, spec)
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 48, 3), np.uint8)
    kept = made.trunk(images) if made.trunk else images
    np.testing.assert_allclose(made.describe(kept, pooled=False), made.model(images), atol=2e-3)
