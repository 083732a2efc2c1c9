"""The optimizer against its formulas in NumPy; and an optimizer that is restored takes the steps of one that is not."""

import functools
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from dim.errors import UserError
from dim.train import checkpoint
from dim.train.checkpoint import State
from dim.train.config import TrainConfig
from dim.train.optimizer import apply_gradients, averaged, learning_rate, optimizer_of, use_averages
from dim.train.worker import Worker

PHOTOS = 100
RATE = 0.5
EVERYTHING = {
    "learning_rate": RATE, "epochs": 2, "top": 40, "batch_size": 8, "schedule": "cosine", "warm_up": 0.2,
    "weight_decay": 0.1, "clip_norm": 1.0, "ema": 0.8,
}  # fmt: skip
GENERATOR = np.random.default_rng(2)
START = [GENERATOR.normal(size=shape).astype(np.float32) for shape in ((3, 2), (2,), ())]
GRADIENTS = [[GENERATOR.normal(size=np.shape(value)).astype(np.float32) for value in START] for _ in range(10)]


@functools.cache
def strategy():
    return tf.distribute.MirroredStrategy(["/cpu:0"])


def made(**options):
    """Variables and their optimizer."""
    with strategy().scope():
        variables = [keras.Variable(value) for value in START]
        return variables, optimizer_of(TrainConfig(**options), PHOTOS, variables)


def steps(variables, optimizer, gradients):
    def on_replica(parts):
        # As those of a tape, the gradients are computed on the replica's device.
        apply_gradients(optimizer, list(map(tf.identity, parts)), variables)

    step = tf.function(lambda parts: strategy().run(on_replica, args=(parts,)))
    for parts in gradients:
        step([*map(tf.constant, parts)])


def values(variables):
    return [variable.numpy() for variable in variables]


def expected_rate(step, planned=10, warm_up=2):
    if step < warm_up:
        return RATE * step / warm_up
    return RATE * (1 + np.cos(np.pi * min(1, (step - warm_up) / (planned - warm_up)))) / 2


def test_the_rate_rises_and_then_falls_to_zero_over_the_planned_steps():
    config = TrainConfig(**EVERYTHING)
    assert config.planned_steps(PHOTOS) == 10
    found = [float(learning_rate(config, PHOTOS)(step)) for step in range(13)]
    np.testing.assert_allclose(found, [expected_rate(step) for step in range(13)], atol=1e-6)
    assert found[2] == RATE and found[10] == found[12] == pytest.approx(0, abs=1e-7)


def test_a_constant_rate_may_have_a_warm_up():
    rate = learning_rate(TrainConfig(**EVERYTHING | {"schedule": "constant", "warm_up": 0.5}), PHOTOS)
    np.testing.assert_allclose([float(rate(step)) for step in range(8)], [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5])
    assert learning_rate(TrainConfig(learning_rate=RATE), PHOTOS) == RATE
    with_no_warm_up = learning_rate(TrainConfig(**EVERYTHING | {"warm_up": 0.0}), PHOTOS)
    assert float(with_no_warm_up(0)) == RATE
    only_warm_up = learning_rate(TrainConfig(**EVERYTHING | {"warm_up": 1.0}), PHOTOS)
    assert float(only_warm_up(5)) == RATE / 2


@pytest.mark.parametrize(
    ("photos", "options", "planned"),
    [
        (100, {}, 3 * (200 // 32)),
        (5000, {}, 3 * (1600 // 32)),
        (100, {"top": 70, "epochs": 4}, 4 * 2),
        (3, {"epochs": 7}, 7),  # fewer triplets than a batch make one step
    ],
)
def test_the_planned_steps_are_those_of_epochs_with_all_triplets(photos, options, planned):
    assert TrainConfig(**options).planned_steps(photos) == planned


def test_a_step_clips_decays_and_averages_as_the_formulas_say():
    variables, optimizer = made(**EVERYTHING, optimizer="sgd")
    steps(variables, optimizer, GRADIENTS)
    weights, means = [value.astype(float) for value in START], None
    for step, gradients in enumerate(GRADIENTS):
        rate = expected_rate(step)
        norm = np.sqrt(sum(float(np.sum(gradient**2)) for gradient in gradients))
        decays = [0.1, 0.0, 0.0]  # neither the bias nor the scalar decays
        weights = [
            weight - rate * decay * weight - rate * gradient * min(1.0, 1.0 / norm)
            for weight, gradient, decay in zip(weights, gradients, decays, strict=True)
        ]
        means = weights if means is None else [0.8 * m + 0.2 * w for m, w in zip(means, weights, strict=True)]
    for found, expected in zip(values(variables), weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    with averaged(optimizer, variables):
        for found, expected in zip(values(variables), means, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    for found, expected in zip(values(variables), weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    use_averages(optimizer, variables)
    for found, expected in zip(values(variables), means, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [EVERYTHING, {"ema": 0.0}])
def test_without_a_step_or_without_averaging_the_weights_are_their_own_averages(options):
    variables, optimizer = made(**options)
    with averaged(optimizer, variables):
        assert all(map(np.array_equal, values(variables), START))


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_an_optimizer_that_was_restored_takes_the_same_steps(tmp_path, name):
    variables, optimizer = made(**EVERYTHING, optimizer=name)
    steps(variables, optimizer, GRADIENTS[:5])
    state = State(epoch=1, history=[{"epoch": 1, "val_map": 0.5}])
    checkpoint.write(str(tmp_path), state, variables, optimizer)
    with averaged(optimizer, variables):  # a look at the averages changes nothing
        pass
    steps(variables, optimizer, GRADIENTS[5:])
    others, other = made(**EVERYTHING, optimizer=name)
    checkpoint.read(str(tmp_path), 1, others, other)
    steps(others, other, GRADIENTS[5:])
    assert all(map(np.array_equal, values(variables), values(others)))
    assert all(map(np.array_equal, values(optimizer.variables), values(other.variables)))


class Restoring(Worker):
    """A worker that only restores from `folder`."""

    def __init__(self, folder, variables, optimizer):
        self.trained, self._optimizer = SimpleNamespace(variables=variables), optimizer
        self.job, self._checkpoints = SimpleNamespace(fit_pca=True), folder

    def _whole(self, epochs):
        return epochs[0]


@pytest.mark.parametrize("best", [0, 1])
def test_the_best_epoch_is_restored_with_its_averages_and_the_beginning_with_its_weights(tmp_path, best):
    variables, optimizer = made(**EVERYTHING)
    expected = {0: values(variables)}
    states = [
        State(val_fitted=0.5),
        State(epoch=1, val_fitted=0.5, history=[{"epoch": 1, "val_map": 0.4 + 0.2 * best}]),
    ]
    checkpoint.write(str(tmp_path), states[0], variables, optimizer)
    steps(variables, optimizer, GRADIENTS[:5])
    checkpoint.write(str(tmp_path), states[1], variables, optimizer)
    with averaged(optimizer, variables):
        expected[1] = values(variables)
    steps(variables, optimizer, GRADIENTS[5:])
    assert Restoring(str(tmp_path), variables, optimizer).restore_best(states[1]).epoch == best
    assert all(map(np.array_equal, values(variables), expected[best]))
    assert not np.array_equal(expected[0][0], expected[1][0])


@pytest.mark.parametrize(
    "wrong", [{"warm_up": 1.5}, {"ema": 1.0}, {"weight_decay": -0.1}, {"clip_norm": -1.0}, {"patience": 0}]
)
def test_a_setting_out_of_range_is_refused(wrong):
    with pytest.raises(UserError, match=r"--.* must be"):
        TrainConfig(**wrong)
