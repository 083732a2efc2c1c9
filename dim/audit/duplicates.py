"""Pairs of nearly identical photos with different labels or splits: all are counted, the nearest are listed.

If each of two splits has n near-identical photos, they form n² pairs. Pairs with the same two labels and splits are a
group. Only the nearest pairs of a group are listed.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from dim.audit.neighbours import Neighbours
from dim.audit.photos import AuditedPhotos
from dim.search.exact_scores import scores_of_pairs

PAIRS_OF_A_GROUP, PAIRS_IN_ALL = 1000, 100_000  # most pairs listed
MARGIN = 0.1  # a pair that an index proposes is looked at if its score is at most so much too low
_ROWS = 65536  # photos whose neighbours are looked at, at a time

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # one row, another row, and their cosine


def listed(photos: AuditedPhotos, pairs: Iterable[Pairs]) -> tuple[np.ndarray, int]:
    """Lists the nearest of the `pairs` whose labels or splits differ, and counts all of them.

    Each pair occurs once in `pairs`, in either order.

    Returns:
        The pairs as (P, 4), nearest first: one row, the other row, the cosine, and the number of pairs in the same
        group. And the number of all pairs. The photo that comes first in the manifest is the first of its pair.
    """
    kept, totals = np.zeros((0, 4)), np.zeros((2, 0), np.int64)
    waiting: list[np.ndarray] = []
    held = 0
    sides, positions = photos.sides, photos.positions
    width = int(sides.max()) + 1
    for left, right, cosine in pairs:
        differ = sides[left] != sides[right]
        both = np.stack([left[differ], right[differ]])
        one, other = np.take_along_axis(both, np.argsort(positions[both], axis=0), axis=0)
        low, high = np.sort(sides[both], axis=0)
        waiting.append(np.column_stack([low * width + high, one, other, cosine[differ]]))
        held += len(waiting[-1])
        if held > PAIRS_IN_ALL:
            totals = _counted(totals, waiting)
            kept, waiting, held = _nearest(np.concatenate([kept, *waiting])), [], 0
    totals = _counted(totals, waiting)
    kept = _nearest(np.concatenate([kept, *waiting]))
    found: np.ndarray = np.column_stack([kept[:, 1:], totals[1][np.searchsorted(totals[0], kept[:, 0])]])
    return found, int(totals[1].sum())


def _counted(totals: np.ndarray, pairs: list[np.ndarray]) -> np.ndarray:
    """Adds `pairs` to `totals`, int64 (2, G): the groups, ascending, and the number of pairs of each."""
    new = [part[:, 0].astype(np.int64) for part in pairs]
    groups, place = np.unique(np.concatenate([totals[0], *new]), return_inverse=True)
    ones = np.ones(len(place) - totals.shape[1], np.int64)
    counts = np.bincount(place, np.concatenate([totals[1], ones]), len(groups)).astype(np.int64)
    return np.stack([groups, counts])


def _nearest(pairs: np.ndarray) -> np.ndarray:
    """Selects the pairs to list. `pairs` (P, 4) has the columns group, row, other row and cosine."""
    group, one, other, score = pairs.T
    pairs = pairs[np.lexsort((other, one, -score, group))]
    pairs = pairs[np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0]) < PAIRS_OF_A_GROUP]
    return pairs[np.lexsort((pairs[:, 2], pairs[:, 1], -pairs[:, 3]))[:PAIRS_IN_ALL]]


def near_pairs(photos: AuditedPhotos, neighbours: Neighbours, least: float) -> Iterator[Pairs]:
    """Yields all pairs with a cosine of `least` or more, if the neighbours are exact.

    If an index has proposed the neighbours, yields the pairs among them, with exact cosines. The index scores a pair
    approximately, and perhaps from one side only.
    """
    yield from (_proposed if neighbours.proposed else _exact)(photos, neighbours, least)


def _exact(photos: AuditedPhotos, neighbours: Neighbours, least: float) -> Iterator[Pairs]:
    rows, scores = neighbours.rows, neighbours.scores
    all_near = scores[:, -1] >= least  # photos that may have more than k near ones
    for start in range(0, len(rows), _ROWS):
        block = slice(start, start + _ROWS)
        one, place = np.nonzero((scores[block] >= least) & ~all_near[block, None])
        one += start
        once = one < rows[one, place]  # the other photo finds the pair, too
        one, place = one[once], place[once]
        yield one, rows[one, place], scores[one, place]
    full = np.flatnonzero(all_near)
    for start in range(0, len(full), photos.most_rows):
        some = full[start : start + photos.most_rows]
        for row, found in zip(some, photos.database.scores(photos.database.take(some)), strict=True):
            others = row + 1 + np.flatnonzero(found[row + 1 :] >= least)
            yield np.full(len(others), row), others, found[others]


def _proposed(photos: AuditedPhotos, neighbours: Neighbours, least: float) -> Iterator[Pairs]:
    rows, near = neighbours.rows, neighbours.scores >= least - MARGIN
    sides = photos.sides
    waiting: list[np.ndarray] = []
    held = 0
    for start in range(0, len(rows), _ROWS):
        one, place = np.nonzero(near[start : start + _ROWS])
        one += start
        other = rows[one, place]
        from_both = ((rows[other] == one[:, None]) & near[other]).any(axis=1)
        wanted = (sides[one] != sides[other]) & ((one < other) | ~from_both)
        waiting.append(np.sort([one[wanted], other[wanted]], axis=0))
        held += int(wanted.sum())
        if held >= photos.most_rows // 2:
            yield _measured(photos, np.concatenate(waiting, axis=1), least)
            waiting, held = [], 0
    if held:
        yield _measured(photos, np.concatenate(waiting, axis=1), least)


def _measured(photos: AuditedPhotos, pairs: np.ndarray, least: float) -> Pairs:
    """The `pairs` (2, P) with a cosine of `least` or more, and their cosines, computed as exact search does."""
    distinct, place = np.unique(pairs, return_inverse=True)
    vectors = photos.database.take(distinct)
    one, other = place.reshape(pairs.shape)
    cosine = scores_of_pairs(vectors, one, vectors, other)
    near = cosine >= least
    return pairs[0, near], pairs[1, near], cosine[near]
