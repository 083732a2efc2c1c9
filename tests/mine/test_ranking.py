"""Runs of triplets, ranked in ranges of losses, against one sort of all of them."""

from types import SimpleNamespace

import numpy as np
import pytest
from in_process import Here

from dim.mine import ranking
from dim.mine.ranking import Run, ranked, run_of
from dim.mine.triplets import Triplets, hardest, joined, means

POSITIONS = 40
NAMES = ("anchors", "positives", "negatives", "distance_ap", "distance_an", "loss")


def triplets(count, seed, losses):
    random = np.random.default_rng(seed)
    rows = random.integers(0, POSITIONS, (3, count))
    near, far = random.random((2, count), np.float32)
    loss = random.integers(1, losses + 1, count).astype(np.float32)
    return Triplets(*rows, near, far, loss, 2 * count, count)


@pytest.fixture(params=[(4, 2, 1), (64, 8, 3), (1 << 18, 1024, 4096)])
def small(request, monkeypatch):
    """Sizes that make many ranges of few triplets, several, or one."""
    for name, value in zip(("ROWS", "_SAMPLED", "_PIECE"), request.param, strict=True):
        monkeypatch.setattr(ranking, name, value)


@pytest.mark.parametrize("losses", [1, 5, 10**6])
@pytest.mark.parametrize("top", [None, 1, 50, 10**6])
def test_any_ranges_give_the_order_of_one_sort(small, losses, top):
    ranks = np.random.default_rng(0).permutation(POSITIONS)
    parts = [triplets(count, seed, losses) for seed, count in enumerate((100, 0, 1, 33, 150))]
    pool = SimpleNamespace(id_ranks=ranks, rows=np.arange(POSITIONS) + 1000)
    found = ranked(
        Here(),
        SimpleNamespace(pool=pool, reference=pool, share=1),
        [Run(*run_of([part], ranks, top)) for part in parts],
        top,
    )
    expected = hardest(joined(parts), ranks, top)
    pieces = list(found.parts)
    assert (found.candidates, found.active, found.kept) == (568, 284, expected.kept)
    assert all(piece.kept == ranking.ROWS for piece in pieces[:-1])
    for name in NAMES:
        own = np.concatenate([getattr(piece, name) for piece in pieces])
        assert own.tolist() == (getattr(expected, name) + 1000 * (name in NAMES[:3])).tolist()
    summary = expected.summary()
    assert means(pieces) == {name: pytest.approx(summary[name]) for name in ("mean_distance_ap", "mean_distance_an")}


def test_no_triplets_are_no_parts():
    pool = SimpleNamespace(id_ranks=np.arange(3), rows=np.arange(3))
    stored = SimpleNamespace(pool=pool, reference=pool, share=1)
    found = ranked(Here(), stored, [Run(*run_of([Triplets.none()], pool.id_ranks, None))], None)
    assert (found.kept, list(found.parts), found.whole().kept) == (0, [], 0)
