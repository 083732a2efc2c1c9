import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.search import exact
from dim.search.exact import Part
from dim.search.exact import nearest as found_by


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_scores(queries, vectors, place, count):
    """What `nearest` must return, from the scores of all rows."""
    rows = np.full((len(queries), count), -1)
    scores = np.full((len(queries), count), -np.inf)
    for query, row in enumerate(exact.scores(queries, [vectors], len(vectors))):
        best = exact.best(row, count, place)
        rows[query, : len(best)], scores[query, : len(best)] = best, row[best]
    return rows, scores


def cut(vectors, sizes):
    starts = np.concatenate([[0], np.cumsum(np.resize(sizes, len(vectors)))])
    starts = starts[starts < len(vectors)]
    blocks = np.split(vectors, starts[1:])
    return [Part(start, len(block), lambda block=block: block) for start, block in zip(starts, blocks, strict=True)]


def rows_of(kind, random, count, dimension):
    if kind == "ties":  # few values, so that many scores are equal
        return unit(random.integers(-1, 2, (count, dimension)) + 0.25)
    if kind == "near ties":  # closer than float32 products tell apart
        return unit(np.ones(dimension) + 1e-6 * random.standard_normal((count, dimension)))
    return unit(random.standard_normal((count, dimension)))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["ties", "near ties", "any"]),
    seed=st.integers(0, 10**6),
    dimension=st.sampled_from([1, 3, 64, 512]),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    count=st.sampled_from([1, 2, 7, 90, 200]),
)
def test_nearest_equals_the_best_of_all_scores_for_any_parts(kind, seed, dimension, sizes, count):
    random = np.random.default_rng(seed)
    queries, vectors = rows_of(kind, random, 9, dimension), rows_of(kind, random, 90, dimension)
    place = random.permutation(90)
    rows, scores = found_by(queries, cut(vectors, sizes), place, count)
    expected_rows, expected_scores = by_scores(queries, vectors, place, count)
    assert np.array_equal(rows, expected_rows)
    assert np.array_equal(scores, expected_scores)


def test_many_queries_and_columns_go_in_parts(monkeypatch):
    monkeypatch.setattr(exact, "QUERIES", 8)
    monkeypatch.setattr(exact, "COLUMNS", 16)
    random = np.random.default_rng(0)
    queries, vectors = rows_of("ties", random, 30, 12), rows_of("ties", random, 100, 12)
    place = random.permutation(100)
    found = found_by(queries, cut(vectors, [37]), place, 10)
    for one, other in zip(found, by_scores(queries, vectors, place, 10), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_descriptors_of_photos(shared, dtype):
    with np.load(shared("oracle/offtheshelf_descriptors.npz")) as arrays:
        vectors = unit(arrays["gem_block5_conv3"].astype(dtype).astype(np.float32))
    place = np.random.default_rng(0).permutation(len(vectors))
    found = found_by(vectors, cut(vectors, [100, 7]), place, 20)
    for one, other in zip(found, by_scores(vectors, vectors, place, 20), strict=True):
        assert np.array_equal(one, other)


def test_no_query():
    rows, scores = found_by(np.zeros((0, 4), np.float32), cut(np.eye(4, dtype=np.float32), [2]), np.arange(4), 3)
    assert rows.shape == scores.shape == (0, 3)
