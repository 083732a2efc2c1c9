"""The strategies `hardest` and `distinct`: each of an anchor's farthest positives with each of its nearest negatives.

The search is exact. A float32 matrix product of two blocks rules out most pairs; a tolerance allows for its rounding.
`Pool.distances` then decides the remaining pairs. The result depends on neither the blocks nor their order.

`Partners` holds the best positives, or the best negatives, found so far. `work` fills two `Partners` from a range of
the pairs of blocks. `finish` merges the results of `work` and makes the triplets. With `distinct`, an anchor gets at
most one negative from each label (Radenović et al., arXiv:1604.02426).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from dim.mine.config import Mining
from dim.mine.pool import Pool, too_similar
from dim.mine.triplets import Triplets, active, ranked

_OFFERED = 1 << 18  # pairs whose distances are computed at a time; this bounds the memory if very many pairs tie


@dataclass(frozen=True)
class Partners:
    """The best `count` partners of each row, of all partners that were offered to the row so far.

    `sign` is 1 for the nearest partners, −1 for the farthest. A partner's cost is sign · distance. The least cost is
    best, and image ids decide ties. With `one_per_label`, a row has at most one partner from each label. `best` maps a
    block to the costs, float32 (rows, count), and the partners, int64 (rows, count), of its rows. Without a partner,
    the cost is inf.
    """

    count: int
    sign: int
    one_per_label: bool = False
    best: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def screen(self, pool: Pool, i: int, j: int, score: np.ndarray) -> None:
        """Offers block j's rows to block i's rows. `score` (rows of i, rows of j) is sign · xᵀy; −inf: no offer."""
        cost, _ = self._held(pool, i)
        # |distance − (2 − 2xᵀy)| ≤ tolerance, so only a score of at least `limit` can beat a row's worst partner.
        limit = self.sign - (cost[:, -1].astype(np.float64) + pool.tolerance) / 2
        if np.isinf(limit).any():
            rows, columns = self._within_block(pool, j, np.ascontiguousarray(score), limit)
        else:
            rows, columns = entries(score >= limit.astype(np.float32)[:, None])
        for start in range(0, len(rows), _OFFERED):
            part = slice(start, start + _OFFERED)
            own, other = rows[part] + pool.span(i).start, columns[part] + pool.span(j).start
            self.offer(pool, i, rows[part], other, self.sign * pool.distances(own, other))

    def _within_block(self, pool: Pool, j: int, score: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # A row with fewer than `count` partners so far has no limit yet. Its `count` best scores in this block set one.
        starts = np.flatnonzero(np.diff(pool.labels[pool.span(j)], prepend=-1))
        best = np.maximum.reduceat(score, starts, axis=1) if self.one_per_label else score
        if best.shape[1] >= self.count:
            limit = np.maximum(limit, np.partition(best, -self.count, axis=1)[:, -self.count] - pool.tolerance)
        rows, columns = entries(score >= np.maximum(limit, -2).astype(np.float32)[:, None])
        if self.one_per_label:
            label = np.searchsorted(starts, columns, side="right") - 1
            near = score[rows, columns] >= best[rows, label] - np.float32(pool.tolerance)
            rows, columns = rows[near], columns[near]
        return rows, columns

    def offer(self, pool: Pool, i: int, rows: np.ndarray, partners: np.ndarray, costs: np.ndarray) -> None:
        """Offers P partners, at P costs, to the P `rows` of block i at the same positions. A row keeps its best."""
        best_cost, best_partner = self._held(pool, i)
        touched, rows = np.unique(rows, return_inverse=True)
        held = np.isfinite(best_cost[touched])
        rows = np.concatenate([np.nonzero(held)[0], rows])
        partners = np.concatenate([best_partner[touched][held], partners])
        costs = np.concatenate([best_cost[touched][held], costs])
        order = np.lexsort((pool.id_ranks[partners], costs, rows))
        if self.one_per_label:
            keys = rows * len(pool) + pool.labels[partners]
            order = order[np.sort(np.unique(keys[order], return_index=True)[1])]
        rows, partners, costs = rows[order], partners[order], costs[order]
        places = np.arange(len(rows)) - np.searchsorted(rows, rows)
        kept = places < self.count
        at = touched[rows[kept]], places[kept]
        best_cost[at], best_partner[at] = costs[kept], partners[kept]

    def merge(self, pool: Pool, other: "Partners") -> None:
        """Offers all partners that `other` holds. They come from other pairs of blocks."""
        for i, (costs, partners) in other.best.items():
            rows, places = np.nonzero(np.isfinite(costs))
            self.offer(pool, i, rows, partners[rows, places], costs[rows, places])

    def _held(self, pool: Pool, i: int) -> tuple[np.ndarray, np.ndarray]:
        if i not in self.best:
            span = pool.span(i)
            shape = (span.stop - span.start, self.count)
            self.best[i] = np.full(shape, np.inf, dtype=np.float32), np.zeros(shape, dtype=np.int64)
        return self.best[i]


def entries(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Does the same as np.nonzero for a matrix in C or Fortran order, ten times as fast."""
    if mask.flags.c_contiguous:
        rows, columns = np.divmod(np.flatnonzero(mask), mask.shape[1])
    else:
        columns, rows = np.divmod(np.flatnonzero(mask.T), mask.shape[0])
    return rows, columns


Found = tuple[Partners, Partners]  # the positives and the negatives


def units(pool: Pool) -> int:
    """The number of pairs of blocks i ≤ j. Pairs i > j need no work: the similarity matrix is symmetric."""
    return len(pool.blocks) * (len(pool.blocks) + 1) // 2


def work(pool: Pool, settings: Mining, start: int, stop: int) -> Found:
    """Finds the best positives and negatives in the pairs of blocks numbered from `start` to `stop` − 1."""
    found = no_partners(settings)
    firsts, seconds = np.triu_indices(len(pool.blocks))
    for i, j in zip(firsts[start:stop].tolist(), seconds[start:stop].tolist(), strict=True):
        _screen_pair(pool, settings, i, j, found)
    return found


def finish(pool: Pool, settings: Mining, parts: Iterable[Found]) -> Triplets:
    """Makes the triplets from all results of `work`."""
    positives, negatives = no_partners(settings)
    for other_positives, other_negatives in parts:
        positives.merge(pool, other_positives)
        negatives.merge(pool, other_negatives)
    return ranked(_crossed(pool, settings, positives, negatives), pool.id_ranks, settings.top)


def no_partners(settings: Mining) -> Found:
    """Empty positives and negatives."""
    return (
        Partners(settings.positives_per_anchor, sign=-1),
        Partners(settings.negatives_per_anchor, sign=1, one_per_label=settings.strategy == "distinct"),
    )


def _screen_pair(pool: Pool, settings: Mining, i: int, j: int, found: Found) -> None:
    positives, negatives = found
    similarity = pool.block(i) @ pool.block(j).T
    if pool.labels[pool.span(i)][-1] >= pool.labels[pool.span(j)][0]:  # true if the blocks share a label
        same = screen_positives(pool, i, j, similarity, positives)
        similarity[same] = -np.inf
    if settings.max_similarity is not None:
        rows, columns = entries(similarity > settings.max_similarity - pool.tolerance)
        distances = pool.distances(rows + pool.span(i).start, columns + pool.span(j).start)
        similar = too_similar(distances, settings.max_similarity)
        similarity[rows[similar], columns[similar]] = -np.inf
    _screen_both(pool, i, j, similarity, negatives)


def screen_positives(pool: Pool, i: int, j: int, similarity: np.ndarray, positives: Partners) -> np.ndarray:
    """Offers each row of blocks i and j the rows of the other block with its label. Returns the mask of these pairs.

    The mask and `similarity`, the float32 products, have the shape (rows of i, rows of j).
    """
    same: np.ndarray = pool.labels[pool.span(i)][:, None] == pool.labels[pool.span(j)]
    mates = np.where(same, -similarity, -np.inf)
    if i == j:
        np.fill_diagonal(mates, -np.inf)
    _screen_both(pool, i, j, mates, positives)
    return same


def _screen_both(pool: Pool, i: int, j: int, score: np.ndarray, partners: Partners) -> None:
    partners.screen(pool, i, j, score)
    if i != j:
        partners.screen(pool, j, i, score.T)


def _crossed(pool: Pool, settings: Mining, positives: Partners, negatives: Partners) -> Iterator[Triplets]:
    for i in range(len(pool.blocks)):
        distance_ap, distance_an = -positives.best[i][0], negatives.best[i][0]
        pairs = np.isfinite(distance_ap)[:, :, None] & np.isfinite(distance_an)[:, None, :]
        rows, p, n = np.nonzero(pairs)
        anchors = rows + pool.span(i).start
        triplets = np.stack([anchors, positives.best[i][1][rows, p], negatives.best[i][1][rows, n]])
        yield active(triplets, distance_ap[rows, p], distance_an[rows, n], settings.margin, len(rows))
