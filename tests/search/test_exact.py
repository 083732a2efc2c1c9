import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.search import exact, exact_scores


def unit(rng, rows, dimension):
    vectors = rng.standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cut(vectors, sizes):
    """`vectors` in blocks of the given sizes, over and over."""
    blocks, start = [], 0
    while start < len(vectors):
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(vectors[start : start + size])
        start += size
    return blocks


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dimension=st.sampled_from([1, 3, 64, 129, 512]),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    cells=st.integers(1, 4000),
)
def test_scores_are_the_same_to_the_bit_whatever_the_blocks(seed, dimension, sizes, cells):
    rng = np.random.default_rng(seed)
    queries, database = unit(rng, 17, dimension), unit(rng, 90, dimension)
    whole = np.array(list(exact_scores.scores(queries, [database], 90)))
    blocks = np.array(list(exact_scores.scores(queries, cut(database, sizes), 90, cells)))
    assert np.array_equal(whole, blocks)


def test_scores_are_the_exact_sums_of_the_rounded_components_and_near_the_true_ones():
    rng = np.random.default_rng(0)
    queries, database = unit(rng, 5, 2048), unit(rng, 40, 2048)
    found = np.array(list(exact_scores.scores(queries, [database], 40)))
    rounded = [np.rint(v.astype(np.float64) * 2**26) / 2**26 for v in (queries, database)]
    expected = [[math.fsum(q * d) for d in rounded[1]] for q in rounded[0]]
    assert np.array_equal(found, expected)
    assert np.abs(found - queries.astype(np.float64) @ database.astype(np.float64).T).max() < 2e-8


@settings(deadline=None)
@given(
    row=st.lists(st.sampled_from([0.1, 0.2, 0.3, -np.inf]), min_size=1, max_size=30),
    seed=st.integers(0, 1000),
    count=st.integers(1, 35),
)
def test_ranks_and_best_equal_a_sort_by_score_and_id(row, seed, count):
    ids = np.array([f"{n}" for n in np.random.default_rng(seed).permutation(len(row))], dtype=object)
    listed = [column for column in range(len(row)) if row[column] > -np.inf]
    expected = sorted(listed, key=lambda column: (-row[column], ids[column]))
    scores, place = np.array(row), exact.tie_order_of(ids)
    asked = np.random.default_rng(seed).permutation(listed).astype(int)
    assert exact.ranks(scores, asked, place).tolist() == [expected.index(column) for column in asked]
    assert exact.best(scores, count, place).tolist() == expected[:count]


def test_equal_photos_stand_in_the_order_of_their_ids():
    rng = np.random.default_rng(1)
    one = unit(rng, 1, 512)
    database = np.concatenate([unit(rng, 5, 512), np.repeat(one, 4, axis=0)])
    ids = np.array(["a", "b", "c", "d", "e", "z", "y", "x", "w"], dtype=object)
    (row,) = exact_scores.scores(one, cut(database, [2]), 9)
    assert ids[exact.best(row, 4, exact.tie_order_of(ids))].tolist() == ["w", "x", "y", "z"]


@pytest.mark.parametrize("columns", [[], [3]])
def test_ranks_of_few(columns):
    row = np.array([0.5, 0.1, 0.9, 0.3])
    assert exact.ranks(row, np.array(columns, dtype=int), np.arange(4)).tolist() == [2] * len(columns)
