"""Regions of activation maps against direct pooling, and the search for the best of them against a search of all."""

import itertools

import numpy as np
import pytest

from dim.localise import regions
from dim.localise.head import MAXIMUM, NetworkHead, of_network
from dim.localise.regions import Regions, boxes_between
from dim.model import network, spec
from dim.model.pooling import gem, mac, spoc
from dim.model.whitening import Whitening

RANDOM = np.random.default_rng(0)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def maps(height, width, channels=24, sparse=0.6, seed=0):
    """Activations as of a network after ReLU: many zeros, values up to about 100."""
    random = np.random.default_rng(seed)
    values = random.gamma(1, 20, (height, width, channels)) * (random.random((height, width, channels)) > sparse)
    return values.astype(np.float32)


def every_box(height, width):
    return np.array(
        [
            (top, left, bottom, right)
            for top, bottom in itertools.combinations(range(height + 1), 2)
            for left, right in itertools.combinations(range(width + 1), 2)
        ]
    )


@pytest.mark.parametrize(
    ("power", "pool", "tolerance"),
    [(3.0, lambda x: gem(x, 3.0), 1e-4), (1.0, spoc, 1e-5), (2.4, lambda x: gem(x, 2.4), 1e-4)],
)
def test_integral_images_give_what_pooling_gives(power, pool, tolerance):
    activations = maps(9, 7)
    boxes = every_box(9, 7)[::13]
    found = Regions(activations, NetworkHead(power)).descriptors(boxes)
    for descriptor, (top, left, bottom, right) in zip(found, boxes, strict=True):
        expected = unit(np.asarray(pool(activations[None, top:bottom, left:right])))[0]
        np.testing.assert_allclose(descriptor, expected, atol=tolerance)


def test_a_large_power_is_near_the_maximum():
    activations = maps(9, 7)
    boxes = every_box(9, 7)[::13]
    found = Regions(activations, NetworkHead(MAXIMUM)).descriptors(boxes)
    exact = [unit(np.asarray(mac(activations[None, a:c, b:d])))[0] for a, b, c, d in boxes]
    assert np.einsum("bk,bk->b", found, np.array(exact)).min() > 0.98


@pytest.mark.parametrize("model", ["vgg16-gem", "vgg16-spoc", "vgg16-mac", "vgg16-rmac"])
def test_the_head_describes_a_whole_photo_as_the_network_does(model):
    """Also behind the PCA layer and a whitening. R-MAC's own descriptor is a sum of regions, so it is only similar."""
    source = spec.resolve(model, "random", image_size=64, dimension=16)
    built = network.load(source)
    random = np.random.default_rng(1)
    kernel, bias = random.standard_normal((512, 16)).astype(np.float32), random.standard_normal(16).astype(np.float32)
    built.get_layer("pca").set_weights([kernel, bias / 10])
    whitening = Whitening(random.standard_normal(16) / 10, random.standard_normal((8, 16)), np.ones(16), 0.5, "pca", {})
    photo = random.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    expected = whitening.apply(np.asarray(built(photo)))[0]
    regions_of_photo = Regions(
        np.asarray(network.part(built, None, source.spec.layer)(photo))[0], of_network(built, source.spec, whitening)
    )
    found = regions_of_photo.descriptors(regions_of_photo.whole)[0]
    least = {"vgg16-gem": 0.9999, "vgg16-spoc": 0.9999, "vgg16-mac": 0.9, "vgg16-rmac": 0.5}[model]
    assert found @ expected > least


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (5, 7), (7, 7)])
def test_on_a_small_map_the_best_of_all_boxes_is_found(height, width):
    """The grid has a line between any two cells there."""
    found = Regions(maps(height, width), NetworkHead(3.0))
    queries = unit(RANDOM.random((5, 2, 24)).astype(np.float32))
    boxes, cosines = found.most_similar(queries)
    every = np.einsum("bd,qsd->qsb", found.descriptors(every_box(height, width)), queries).max(axis=1)
    np.testing.assert_allclose(cosines, every.max(axis=1), atol=1e-6)
    of_boxes = np.einsum("qd,qsd->qs", found.descriptors(boxes), queries).max(axis=1)
    np.testing.assert_allclose(of_boxes, cosines, atol=1e-6)


def test_on_a_large_map_no_move_of_a_side_makes_the_box_better(monkeypatch):
    monkeypatch.setattr(regions, "ROUNDS", 100)
    found = Regions(maps(23, 30), NetworkHead(3.0))
    queries = unit(RANDOM.random((6, 1, 24)).astype(np.float32))
    boxes, cosines = found.most_similar(queries)
    grid = boxes_between(regions._ticks(23), regions._ticks(30))
    assert (cosines >= (queries[:, 0] @ found.descriptors(grid).T).max(axis=1) - 1e-6).all()
    for query, box, best in zip(queries[:, 0], boxes, cosines, strict=True):
        for side, by in itertools.product(range(4), found._steps()):
            moved = np.clip(box + by * np.eye(4, dtype=int)[side], 0, [23, 30, 23, 30])
            if moved[0] < moved[2] and moved[1] < moved[3]:
                assert found.descriptors(moved[None])[0] @ query <= best + 1e-6


def test_an_object_is_found_where_it_is():
    activations = maps(28, 28, seed=1)
    activations[9:17, 12:22] = maps(8, 10, seed=2)
    query = Regions(maps(8, 10, seed=2), NetworkHead(3.0))
    boxes, cosines = Regions(activations, NetworkHead(3.0)).most_similar(query.descriptors(query.whole)[None])
    assert cosines[0] > 0.99
    assert np.abs(boxes[0] - [9, 12, 17, 22]).max() <= 1


def test_a_query_that_fills_the_photo_is_the_whole_photo():
    whole = Regions(maps(6, 5), NetworkHead(3.0))
    boxes, cosines = whole.most_similar(whole.descriptors(whole.whole)[None])
    assert boxes.tolist() == [[0, 0, 6, 5]]
    assert cosines[0] == pytest.approx(1)


def test_the_result_does_not_depend_on_the_other_queries():
    found = Regions(maps(17, 14), NetworkHead(3.0))
    queries = unit(RANDOM.random((7, 3, 24)).astype(np.float32))
    boxes, cosines = found.most_similar(queries)
    for number in range(7):
        box, cosine = found.most_similar(queries[number : number + 1])
        assert box.tolist() == boxes[number : number + 1].tolist()
        np.testing.assert_allclose(cosine[0], cosines[number], atol=1e-6)


def test_large_activations_stay_within_the_range_of_numbers():
    found, larger = (Regions(factor * maps(6, 5), NetworkHead(MAXIMUM)) for factor in (1, 1024))
    boxes = every_box(6, 5)
    np.testing.assert_allclose(larger.descriptors(boxes), found.descriptors(boxes), atol=1e-5)


def test_a_map_without_any_activation_has_regions():
    empty = Regions(np.zeros((4, 4, 8), np.float32), NetworkHead(3.0))
    boxes, cosines = empty.most_similar(unit(RANDOM.random((1, 1, 8)).astype(np.float32)))
    assert np.isfinite(cosines).all() and boxes.shape == (1, 4)
