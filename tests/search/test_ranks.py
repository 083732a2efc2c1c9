"""Ranks counted part by part against the ranks in whole lists of scores."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from dim.search import exact_scores, ranks
from dim.search.exact import Part
from dim.search.ranks import Pairs

ROWS, QUERIES, COUNT = 97, 11, 5


def of_kind(kind, random, count):
    if kind == "ties":  # few values, so that many scores are equal
        vectors = random.integers(-1, 2, (count, 6)) + 0.25
    elif kind == "near ties":  # closer than float32 products tell apart
        vectors = np.ones(6) + 1e-6 * random.standard_normal((count, 6))
    else:
        vectors = random.standard_normal((count, 6))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def loaded(part):
    return part


def cut(vectors, count):
    """The rows in `count` parts, which other processes can load, too."""
    bounds = np.linspace(0, len(vectors), count + 1).astype(int).tolist()
    return [Part(first, last - first, partial(loaded, vectors[first:last])) for first, last in pairwise(bounds)]


def some(kind):
    random = np.random.default_rng(3)
    queries, vectors = of_kind(kind, random, QUERIES), of_kind(kind, random, ROWS)
    own = random.integers(-1, ROWS, QUERIES)
    wanted = [np.setdiff1d(random.choice(ROWS, size), own[n]) for n, size in enumerate(random.permutation(QUERIES))]
    pairs = Pairs(np.repeat(np.arange(QUERIES), list(map(len, wanted))), np.concatenate(wanted))
    return queries, vectors, random.permutation(ROWS), pairs, own


def naive(queries, vectors, tie_order, pairs, own):
    """The rank of each pair, and the first rows of each list and their scores."""
    found, heads = [], []
    for query, scores in enumerate(exact_scores.scores(queries, [vectors], len(vectors))):
        if own is not None and own[query] >= 0:
            scores[own[query]] = -np.inf
        order = np.lexsort((tie_order, -scores)).tolist()
        found += [order.index(row) for row in pairs.rows[pairs.queries == query]]
        heads.append((order[:COUNT], scores[order[:COUNT]].tolist()))
    return found, heads


def as_lists(found):
    counts, best = found
    return counts.tolist(), list(zip(best.rows.tolist(), best.scores.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["ties", "near ties", "any"])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_ranks_and_first_rows_equal_the_naive_lists_for_any_parts(monkeypatch, kind, parts):
    queries, vectors, tie_order, pairs, own = some(kind)
    monkeypatch.setattr(ranks, "ROWS", 30)
    monkeypatch.setattr(ranks, "CELLS", 30 * 4)
    monkeypatch.setattr(ranks, "_QUERIES", 4)
    monkeypatch.setattr(ranks, "_COLUMNS", 8)
    monkeypatch.setattr(exact_scores, "_PAIRS", 3)
    for left_out in (None, own):
        found = ranks.ranks(queries, cut(vectors, parts), tie_order, pairs, count=COUNT, own=left_out)
        assert as_lists(found) == naive(queries, vectors, tie_order, pairs, left_out)


@pytest.mark.parametrize("queries", [0, 3])
def test_no_pairs(queries):
    none = np.zeros(0, np.int64)
    vectors = np.eye(4, dtype=np.float32)
    parts, own = cut(vectors, 2), np.arange(queries)
    found, best = ranks.ranks(vectors[:queries], parts, np.arange(4), Pairs(none, none), count=6, own=own)
    assert found.shape == (0,)
    assert best.rows.tolist() == [[1, 2, 3, -1, -1, -1], [0, 2, 3, -1, -1, -1], [0, 1, 3, -1, -1, -1]][:queries]


def test_ray_tasks_count_the_same(ray_session, monkeypatch):
    queries, vectors, tie_order, pairs, own = some("ties")
    monkeypatch.setattr(ranks, "ROWS", 30)
    found = ranks.ranks(queries, cut(vectors, 7), tie_order, pairs, count=COUNT, own=own)
    assert as_lists(found) == naive(queries, vectors, tie_order, pairs, own)
