"""The order of triplets, their table and their means."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from dim.mine.triplets import active, hardest

IDS = np.array(["b", "a", "c", "d"], dtype=object)
ID_RANKS = np.array([1, 0, 2, 3])


def all_tied():
    rows = np.array([row for row in itertools.product(range(4), repeat=3) if len(set(row)) == 3]).T
    half = np.full(rows.shape[1], 0.5, dtype=np.float32)
    return active(rows, half, half, margin=0.1, candidates=rows.shape[1])


def test_loss_is_that_of_the_definition():
    rows, near, far = np.arange(9).reshape(3, 3), np.float32([0.2, 0.2, 0.2]), np.float32([0.1, 0.25, 0.4])
    triplets = active(rows, near, far, margin=0.1, candidates=3)
    assert triplets.loss == pytest.approx([0.2, 0.05])
    assert (triplets.candidates, triplets.active, triplets.kept) == (3, 2, 2)
    assert triplets.anchors.tolist() == [0, 1] and triplets.negatives.tolist() == [6, 7]


@pytest.mark.parametrize("top", [None, 1, 7, 100])
def test_ties_are_ordered_by_ids(top):
    table = hardest(all_tied().take(np.arange(24)[::-1]), ID_RANKS, top).table(IDS)
    expected = sorted(itertools.permutations("abcd", 3))[:top]
    ids = zip(*(table[name].to_pylist() for name in ("anchor_id", "positive_id", "negative_id")), strict=True)
    assert list(ids) == expected


def test_table_is_that_of_the_contract():
    table = all_tied().table(IDS)
    assert table.schema == pa.schema(
        [
            ("rank", pa.int64()),
            ("anchor_id", pa.string()),
            ("positive_id", pa.string()),
            ("negative_id", pa.string()),
            ("distance_ap", pa.float32()),
            ("distance_an", pa.float32()),
            ("loss", pa.float32()),
        ]
    )
    assert table["rank"].to_pylist() == list(range(1, 25))


def test_summary_means_are_of_the_kept():
    summary = all_tied().summary()
    assert summary == {"candidates": 24, "active": 24, "kept": 24, "mean_distance_ap": 0.5, "mean_distance_an": 0.5}
