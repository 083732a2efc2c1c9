"""The best partners of each row: its farthest positives, or its nearest negatives, found so far.

A float32 matrix product of two blocks rules out most pairs; a tolerance allows for its rounding. `Pool.distances` then
decides the remaining pairs. The result depends on neither the blocks nor their order. With `distinct`, an anchor gets
at most one negative from each label (Radenović et al., arXiv:1604.02426).
"""

from dataclasses import dataclass, field, replace

import numpy as np

from dim.mine.config import Mining
from dim.mine.pool import Pool

_OFFERED = 1 << 18  # pairs whose distances are computed at a time; this bounds the memory if very many pairs tie
_ADJACENT = 32  # columns of a block whose best score stands for them


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
        cost, _ = self.held(pool, i)
        # |distance − (2 − 2xᵀy)| ≤ tolerance, so only a score of at least `limit` can beat a row's worst partner.
        limit = self.sign - (cost[:, -1].astype(np.float64) + pool.tolerance) / 2
        if np.isinf(limit).any():
            rows, columns = self._within_block(pool, j, score, limit)
        else:
            rows, columns = entries(score >= limit.astype(np.float32)[:, None])
        for start in range(0, len(rows), _OFFERED):
            part = slice(start, start + _OFFERED)
            own, other = rows[part] + pool.span(i).start, columns[part] + pool.span(j).start
            self.offer(pool, i, rows[part], other, self.sign * pool.distances(own, other))

    def _within_block(self, pool: Pool, j: int, score: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # A row with fewer than `count` partners so far has no limit yet. The best score of each label or, which is
        # faster than to look at each score, of some adjacent columns sets one.
        width = max(1, min(_ADJACENT, score.shape[1] // (2 * self.count)))
        labels = np.flatnonzero(np.diff(pool.labels[pool.span(j)], prepend=-1))
        starts = labels if self.one_per_label else np.arange(0, score.shape[1], width)
        best = np.maximum.reduceat(score, starts, axis=1)
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
        best_cost, best_partner = self.held(pool, i)
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

    def of(self, blocks: range) -> "Partners":
        """The partners of the rows of `blocks` only."""
        return replace(self, best={i: self.best[i] for i in blocks if i in self.best})

    def held(self, pool: Pool, i: int) -> tuple[np.ndarray, np.ndarray]:
        """The costs and the partners of the rows of block i, as in `best`."""
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


def no_partners(settings: Mining) -> Found:
    """Empty positives and negatives."""
    return (
        Partners(settings.positives_per_anchor, sign=-1),
        Partners(settings.negatives_per_anchor, sign=1, one_per_label=settings.strategy == "distinct"),
    )
