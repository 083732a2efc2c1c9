"""The strategies `hardest` and `distinct`: each of an anchor's farthest positives with each of its nearest negatives.

The search is exact. A unit of work is a tile: all pairs of rows of two groups of blocks. The similarity matrix is
symmetric, so a tile finds partners for the anchors of both groups. Tasks merge what several tiles have found for a
group, and make its triplets.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from dim.mine.blocks import StoredPool
from dim.mine.config import Mining
from dim.mine.partners import Found, Partners, entries, no_partners
from dim.mine.pool import Pool, too_similar
from dim.mine.ranking import Run, Sizes, run_of
from dim.mine.remote import Remote, fetched
from dim.mine.triplets import Triplets, active

# The pool is divided into about GROUPS groups of blocks. A group has at most MOST_BLOCKS blocks, so that a tile is some
# seconds of work. Smaller groups would have more results to merge, and a call costs the driver about 2 ms.
GROUPS, MOST_BLOCKS = 8, 4
_MERGED = 16  # results for a group that one task merges; this bounds what waits in the object store


def groups(pool: Pool, most: int = MOST_BLOCKS) -> list[range]:
    """The groups of blocks, at most `most` in each. They depend on the pool only."""
    size = min(most, -(-pool.block_count // GROUPS))
    return [range(i, min(i + size, pool.block_count)) for i in range(0, pool.block_count, size)]


def calls(stored: StoredPool, _: Mining) -> int:
    """The number of calls of `runs`: one for each tile, and for each group the merges and the last call."""
    count = len(groups(stored.pool))
    return count * (count + 1) // 2 + count * ((count - 1) // (_MERGED - 1) + 1)


def runs(remote: Remote, stored: StoredPool, settings: Mining) -> Iterator[Run]:
    """Mines all triplets by tasks. Yields a run of sorted triplets for each group."""
    every = groups(stored.pool)
    found: list[list[Any]] = [[] for _ in every]
    for i, first in enumerate(every):
        for j, second in enumerate(every[i:], i):
            needed, both = stored.of(first, second), sorted({i, j})
            results = remote.call(tile, stored.reference, settings, first, second, needed, returns=len(both))
            for group, result in zip(both, results, strict=True):
                found[group].append(result)
                if len(found[group]) == _MERGED:
                    found[group] = remote.call(merged, stored.reference, settings, *found[group])
        yield Run(*remote.call(crossed, stored.reference, settings, first, *found[i], returns=2))
        found[i] = []


def tile(pool: Pool, settings: Mining, first: range, second: range, blocks: dict[int, Any]) -> list[Found]:
    """Finds the best partners in `second` for the rows of the blocks `first`, and vice versa. Returns both results.

    If the groups are the same, there is one result.
    """
    pool = pool.holding({i: block.astype(np.float32, copy=False) for i, block in fetched(blocks).items()})
    found = no_partners(settings)
    for i, j in itertools.product(first, second):
        if i <= j:
            _screen_pair(pool, settings, i, j, found)
    positives, negatives = found
    both = [first] if first == second else [first, second]
    return [(positives.of(group), negatives.of(group)) for group in both]


def merged(pool: Pool, settings: Mining, *parts: Found) -> list[Found]:
    """Merges results for the same rows."""
    positives, negatives = no_partners(settings)
    for other_positives, other_negatives in parts:
        positives.merge(pool, other_positives)
        negatives.merge(pool, other_negatives)
    return [(positives, negatives)]


def crossed(pool: Pool, settings: Mining, group: range, *parts: Found) -> tuple[Sizes, Triplets]:
    """Makes the triplets of the anchors of `group` from all results for them. Returns the results of `run_of`."""
    [(positives, negatives)] = merged(pool, settings, *parts)
    return run_of([_triplets(pool, settings, i, positives, negatives) for i in group], pool.id_ranks, settings.top)


def _screen_pair(pool: Pool, settings: Mining, i: int, j: int, found: Found) -> None:
    positives, negatives = found
    similarity = pool.block(i) @ pool.block(j).T
    if pool.labels[pool.span(i)][-1] >= pool.labels[pool.span(j)][0]:  # true if the blocks share a label
        score = mates(pool, i, j, similarity)
        _screen_both(pool, i, j, score, positives)
        similarity[score > -np.inf] = -np.inf
    if i == j:
        np.fill_diagonal(similarity, -np.inf)
    if settings.max_similarity is not None:
        rows, columns = entries(similarity > settings.max_similarity - pool.tolerance)
        distances = pool.distances(rows + pool.span(i).start, columns + pool.span(j).start)
        similar = too_similar(distances, settings.max_similarity)
        similarity[rows[similar], columns[similar]] = -np.inf
    _screen_both(pool, i, j, similarity, negatives)


def mates(pool: Pool, i: int, j: int, similarity: np.ndarray) -> np.ndarray:
    """The scores of the rows of block j as positives of those of block i; −inf for a row with another label.

    The scores and `similarity`, the float32 products, have the shape (rows of i, rows of j).
    """
    same = pool.labels[pool.span(i)][:, None] == pool.labels[pool.span(j)]
    score: np.ndarray = np.where(same, -similarity, -np.inf)
    if i == j:
        np.fill_diagonal(score, -np.inf)
    return score


def _screen_both(pool: Pool, i: int, j: int, score: np.ndarray, partners: Partners) -> None:
    partners.screen(pool, i, j, score)
    if i != j:
        partners.screen(pool, j, i, score.T)


def _triplets(pool: Pool, settings: Mining, i: int, positives: Partners, negatives: Partners) -> Triplets:
    (cost_ap, p), (distance_an, n) = positives.held(pool, i), negatives.held(pool, i)
    rows, first, second = np.nonzero(np.isfinite(cost_ap)[:, :, None] & np.isfinite(distance_an)[:, None, :])
    triplets = np.stack([rows + pool.span(i).start, p[rows, first], n[rows, second]])
    return active(triplets, -cost_ap[rows, first], distance_an[rows, second], settings.margin, len(rows))
