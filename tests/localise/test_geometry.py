"""Matches of points against a naive search, and transforms that are known."""

import numpy as np
import pytest

from dim.localise import geometry
from dim.localise.geometry import NO_TRANSFORM, Points, mutual_matches, outline, points_of, transform_between


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def random_points(count, seed=0, channels=16):
    random = np.random.default_rng(seed)
    places = random.random(count) + 1j * random.random(count)
    return Points(places, unit(random.standard_normal((count, channels))).astype(np.float32), 1 / 14, 196)


def test_matches_are_each_others_nearest():
    one, other = random_points(20, 1).vectors, random_points(30, 2).vectors
    naive = {
        (row, column)
        for row in range(20)
        for column in range(30)
        if all(one[row] @ other[column] >= one[row] @ other[k] for k in range(30))
        and all(one[row] @ other[column] >= one[k] @ other[column] for k in range(20))
    }
    found = mutual_matches(one, other)
    assert {tuple(pair) for pair in found.tolist()} == naive
    similarities = np.einsum("mk,mk->m", one[found[:, 0]], other[found[:, 1]])
    assert (np.diff(similarities) <= 0).all()


@pytest.mark.parametrize(("scale", "degrees"), [(1.0, 0), (0.5, 8), (1.7, -30), (0.3, 0)])
@pytest.mark.parametrize("wrong", [0, 20])
def test_a_transform_is_found_among_wrong_matches(scale, degrees, wrong):
    """`wrong` of 40 points lie elsewhere; the others are off by a little."""
    random = np.random.default_rng(3)
    query = random_points(40)
    turn, shift = scale * np.exp(1j * np.radians(degrees)), 0.2 + 0.1j
    places = turn * query.places + shift + random.normal(0, 0.002, 40) + 1j * random.normal(0, 0.002, 40)
    places[:wrong] = random.random(wrong) + 1j * random.random(wrong)
    found = transform_between(query.places, query.vectors, Points(places, query.vectors, 1 / 30, 900))
    assert 40 - wrong <= found.inliers <= 40 - wrong + 3
    assert abs(found.turn - turn) < 0.1 and abs(found.shift - shift) < 0.05
    corners = [turn * z + shift for z in (0, 1, 1j, 1 + 1j)]
    expected = [min(z.real for z in corners), min(z.imag for z in corners), max(z.real for z in corners)]
    assert outline(found, 1, 1)[:3] == pytest.approx(expected, abs=0.1)


def test_the_order_of_points_does_not_matter():
    query, photo = random_points(50, 1), random_points(60, 2)
    photo.vectors[:20], photo.places[:20] = query.vectors[:20], query.places[:20] / 2
    order = np.random.default_rng(0).permutation(60)
    shuffled = Points(photo.places[order], photo.vectors[order], photo.cell, photo.cells)
    assert transform_between(query.places, query.vectors, photo) == transform_between(
        query.places, query.vectors, shuffled
    )


def test_turns_and_scales_beyond_the_limits_are_none():
    query = random_points(30)
    for turn in (1j, -1, 6, 1 / 6):
        assert (
            transform_between(query.places, query.vectors, Points(query.places * turn, query.vectors, 1e-4, 196))
            == NO_TRANSFORM
        )


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_points_have_no_transform(count):
    points = random_points(count)
    assert transform_between(points.places, points.vectors, points) == NO_TRANSFORM


def test_points_are_the_strongest_cells_in_shares_of_the_longer_side(monkeypatch):
    monkeypatch.setattr(geometry, "MOST_POINTS", 2)
    activations = np.ones((2, 4, 3), np.float32)
    activations[1, 2], activations[0, 3] = 9, 5
    found = points_of(activations, 1.0, 0.5)
    np.testing.assert_allclose(found.places, [0.875 + 0.125j, 0.625 + 0.375j])
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, rtol=1e-6)
    assert (found.cell, found.cells) == (0.25, 8)


def test_a_map_without_any_activation_matches_nothing():
    empty = points_of(np.zeros((1, 1, 8)), 1.0, 1.0)
    assert transform_between(empty.places, empty.vectors, empty) == NO_TRANSFORM


def test_the_meaning_is_the_number_of_such_transforms_by_chance():
    """M matches at random places: how often one has k inliers, against the number that is expected."""
    random, matches, cells = np.random.default_rng(5), 12, 400
    vectors = np.eye(matches, dtype=np.float32)
    found = []
    for _ in range(300):
        one, other = (random.random(matches) + 1j * random.random(matches) for _ in range(2))
        found.append(transform_between(one, vectors, Points(other, vectors, 1 / 20, cells)))
    meanings = np.array([transform.meaning for transform in found if transform.inliers])
    assert len(meanings) and max(transform.inliers for transform in found) <= 6
    # An event that is expected once in 10 or 100 tries happens no more often than that, but for chance.
    assert (meanings >= 1).sum() <= 300 / 10 + 15 and (meanings >= 2).sum() <= 300 / 100 + 6 and meanings.max() < 5
    all_agree = random_points(12)
    assert transform_between(all_agree.places, all_agree.vectors, all_agree).meaning > 10
