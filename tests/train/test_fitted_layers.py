"""The layers that whiten, fitted to what the network computes, against loops over all rows."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from dim.model import network
from dim.model.pooling import region_maxima
from dim.model.spec import Spec
from dim.search.exact import Part
from dim.train import fitted_layers
from dim.train.embed import Inference
from dim.train.locality import Ownership
from dim.train.step import TrainedNetwork
from dim.whiten.fit import Moments, fit_learned, moments_of

GENERATOR = np.random.default_rng(4)
LABELS = np.array([None if row % 7 == 3 else f"l{row % 5}" if row < 36 else f"alone{row}" for row in range(40)])
SHAPES = [(2, 2, 512), (4, 3, 512), (1, 2, 512)]


def parts_of(vectors, step=13):
    starts = range(0, len(vectors), step)
    return [
        Part(start, len(vectors[start : start + step]), lambda start=start: vectors[start : start + step])
        for start in starts
    ]


def unit(*shape):
    vectors = GENERATOR.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def naive(x, shrinkage):
    """The learned whitening of x, from loops over rows and pairs."""
    partners = [[q for q in range(40) if q != p and LABELS[q] == LABELS[p] is not None] for p in range(40)]
    queries = [row for row in range(40) if partners[row]]
    squares = [[np.outer(x[p] - x[q], x[p] - x[q]) for q in partners[p]] for p in queries]
    count = len(queries) - len({LABELS[row] for row in queries})
    scatter = count * np.mean([np.mean(of_query, axis=0) for of_query in squares], axis=0)
    return fit_learned(moments_of(x[queries]), Moments(count, np.zeros(8), scatter), 6, {}, shrinkage=shrinkage)


def test_learned_whitenings_equal_a_loop_over_pairs():
    x = unit(40, 8)
    found = fitted_layers.learned(parts_of(x), LABELS, 6, share=6 * 8 * 2)
    for fitted, shrinkage in zip(found, fitted_layers.SHRINKAGES, strict=True):
        expected = naive(x, shrinkage)
        np.testing.assert_allclose(fitted.apply(x), expected.apply(x), atol=1e-5)
        assert fitted.learned_on == pytest.approx(expected.learned_on)


def test_a_layer_computes_what_the_whitening_does_and_zeros_where_rows_are_too_few():
    x, labels = unit(6, 8), np.array(list("aaabbb"))
    for fitted, kept in (
        (fitted_layers.pca(moments_of(x), 7, 0.3), 5),
        (fitted_layers.pca(moments_of(x), 4, 0.3), 4),
        (fitted_layers.learned(parts_of(x), labels, 7, 2**20)[1], 5),
    ):
        width = 7 if kept == 5 else 4
        kernel, bias = fitted_layers.as_dense(fitted, width)
        outputs = x @ kernel + bias
        assert outputs.shape == (6, width)
        assert not outputs[:, kept:].any() and outputs[:, :kept].any(axis=0).all()
        unscaled = outputs[:, :kept] / np.linalg.norm(outputs, axis=1, keepdims=True)
        np.testing.assert_allclose(unscaled, fitted.apply(x), atol=1e-5)


def inference(spec, layers, activations, rank=0, workers=1):
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        trained = TrainedNetwork(strategy, network.build(spec), spec, layers, from_pixels=False)
    features = SimpleNamespace(read=lambda lists: [{row: activations[row] for row in rows} for rows in lists])
    job = SimpleNamespace(photos=None, source=SimpleNamespace(spec=spec), config=SimpleNamespace(batch_size=4))
    return Inference(trained, features, job, rank, Ownership(np.arange(workers), np.arange(9) % workers))


@pytest.mark.parametrize("layers", ["pca", "block5"])
def test_the_moments_of_regions_equal_a_loop_for_any_number_of_workers(monkeypatch, layers):
    spec = Spec(pooling="rmac", region_dimension=512, dimension=16, resize="long-side")
    keras.utils.set_random_seed(3)
    activations = {row: GENERATOR.random(SHAPES[row % 3]).astype(np.float16) for row in range(9)}
    alone = inference(spec, layers, activations)
    maps = network.part(alone._trained.model, "block4_pool", "block5_conv3") if layers == "block5" else lambda x: x
    rows = []
    for row in range(9):
        regions = np.array(region_maxima(np.asarray(maps(activations[row][None].astype(np.float32)))))[0]
        rows += [region / np.linalg.norm(region) for region in regions]
    expected, found = moments_of(np.array(rows)), alone.region_moments(np.arange(9))
    assert found.count == expected.count
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-5)
    np.testing.assert_allclose(found.scatter, expected.scatter, atol=1e-3)

    sent = []
    monkeypatch.setattr("dim.train.embed.from_all", lambda _, own: sent.append(own) or own)
    workers = [inference(spec, layers, activations, rank, 2) for rank in range(2)]
    for worker in workers:
        for one, other in zip(worker._trained.model.weights, alone._trained.model.weights, strict=True):
            one.assign(other)
        worker.region_moments(np.arange(9))
    everything = np.concatenate(sent)
    monkeypatch.setattr("dim.train.embed.from_all", lambda *_: everything)
    both = workers[0].region_moments(np.arange(9))
    assert both.count == found.count
    np.testing.assert_allclose(both.scatter, found.scatter, atol=1e-4)
