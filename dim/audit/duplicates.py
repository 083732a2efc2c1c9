"""Pairs of photos that are all but the same, under two labels or in two splits, however many there are of one object.

A burst of n photos in each of two splits has n² such pairs, more than a photo's few nearest others tell of. So a photo
whose nearest others are all this near is held against all photos. Of the pairs between the same two labels and splits
at most `EACH` are listed, and at most `MOST` in all, the nearest; how many there are is counted.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dim.search.database import Exact

EACH, MOST = 1000, 100_000


@dataclass(frozen=True)
class Duplicate:
    """Two rows, `one` before `other`, their cosine, and how many pairs there are between their labels and splits."""

    one: int
    other: int
    score: float
    pairs: int


def duplicates(
    database: Exact, sides: np.ndarray, rows: np.ndarray, scores: np.ndarray, least: float
) -> tuple[list[Duplicate], int]:
    """The pairs of rows of two `sides` (N,), codes from 0, with a cosine of `least` or more, and how many there are.

    `rows` and `scores` (N, k) are the nearest others of each row, as `neighbours.others` has them.
    """
    totals: Counter[int] = Counter()
    kept = np.zeros((0, 4))
    waiting: list[np.ndarray] = []
    held = 0
    for pairs in _near(database, rows, scores, least):
        one, other = pairs[:, :2].astype(np.int64).T
        differ = (one < other) & (sides[one] != sides[other])  # each pair is found from both of its ends
        if not differ.any():
            continue
        both = np.sort([sides[one[differ]], sides[other[differ]]], axis=0)
        group = both[0] * len(sides) + both[1]
        totals.update(group.tolist())
        waiting.append(np.column_stack([group, pairs[differ]]))
        held += len(group)
        if held > MOST:
            kept, waiting, held = _best(np.concatenate([kept, *waiting])), [], 0
    kept = _best(np.concatenate([kept, *waiting]))
    listed = [Duplicate(int(one), int(other), score, totals[int(group)]) for group, one, other, score in kept.tolist()]
    return listed, totals.total()


def _near(database: Exact, rows: np.ndarray, scores: np.ndarray, least: float) -> Iterator[np.ndarray]:
    """Every two rows with a cosine of `least` or more, each pair from both ends: row, other row, cosine (P, 3)."""
    all_near = scores[:, -1] >= least  # so that there may be more
    near, place = np.nonzero((scores >= least) & ~all_near[:, None])
    yield np.column_stack([near, rows[near, place], scores[near, place]])
    full = np.flatnonzero(all_near)
    for row, found in zip(full, database.scores(database.take(full)), strict=True):
        others = np.flatnonzero(found >= least)
        yield np.column_stack([np.full(len(others), row), others, found[others]])


def _best(pairs: np.ndarray) -> np.ndarray:
    """The `MOST` nearest of the `EACH` nearest of each group; `pairs` (P, 4) are group, row, other row, cosine."""
    group, one, other, score = pairs.T
    pairs = pairs[np.lexsort((other, one, -score, group))]
    pairs = pairs[np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0]) < EACH]
    return pairs[np.lexsort((pairs[:, 2], pairs[:, 1], -pairs[:, 3]))[:MOST]]
