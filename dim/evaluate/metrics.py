"""Retrieval metrics of one query.

Each takes `ranks`, the 0-based positions at which the query's positives stand in its list, ascending and counted
without junk, and `n_pos`, how many positives there are, found or not. Each is None where there are none.
"""

from collections.abc import Callable, Iterable

import numpy as np

GROUP = 4  # photos of an object of UKBench
Metric = Callable[[np.ndarray, int], float | None]


def without_junk(ranks: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """`ranks` (P,) as they are once the items at the positions `junk` (J,) have left the list; both ascending."""
    return ranks - np.searchsorted(junk, ranks)


def average_precision(ranks: np.ndarray, n_pos: int) -> float | None:
    """The area under the precision–recall curve by the trapezoid rule, as Oxford5k's `compute_ap` has it.

    AP = Σ_j (p0 + p1) / 2 / n_pos, p0 = 1 if rank_j = 0 else j / rank_j, p1 = (j + 1) / (rank_j + 1)
    (Philbin et al. 2007; Radenović et al. 1803.11285).
    """
    if n_pos == 0:
        return None
    found = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    after = (found + 1) / (ranks + 1)
    return float(((before + after) / 2).sum() / n_pos)


def printed_average_precision(ranks: np.ndarray, n_pos: int) -> float | None:
    """`average_precision` in the single precision of Oxford5k's `compute_ap`, operation by operation.

    It equals what that program prints to the last of its six digits; without the roundings one in forty differs there.
    """
    if n_pos == 0:
        return None
    single, area = np.float32, np.float32(0)
    for found, rank in enumerate(ranks):
        step = single((found + 1) / n_pos) - single(found / n_pos)
        before = single(found / rank) if rank else single(1)
        after = single((found + 1) / (rank + 1))
        area = single(float(area) + float(step) * float(before + after) / 2)
    return float(area)


def finite_average_precision(ranks: np.ndarray, n_pos: int, k: int | None = None) -> float | None:
    """The mean precision at each positive among the first `k` (None: all), of the min(n_pos, k) that could stand there.

    With k = 100 it is GLDv2's AP@100 (Weyand et al. 2004.01804).
    """
    if n_pos == 0:
        return None
    kept = ranks if k is None else ranks[ranks < k]
    return float(((np.arange(len(kept)) + 1) / (kept + 1)).sum() / min(n_pos, k or n_pos))


def average_precision_at_r(ranks: np.ndarray, n_pos: int) -> float | None:
    """AP@R: the finite sum over the first R = n_pos (Musgrave et al. 2003.08505)."""
    return finite_average_precision(ranks, n_pos, n_pos)


def recall_at(ranks: np.ndarray, n_pos: int, k: int) -> float | None:
    """Recall@k of metric learning: 1 if a positive is among the first `k`, else 0."""
    return float((ranks < k).any()) if n_pos else None


def precision_at(ranks: np.ndarray, n_pos: int, k: int) -> float | None:
    """P@k of Revisited Oxford/Paris: the share of positives in the first min(k, the last positive's rank from 1)."""
    if n_pos == 0:
        return None
    if len(ranks) == 0:
        return 0.0
    depth = min(int(ranks[-1]) + 1, k)
    return float((ranks < depth).sum() / depth)


def ns_score(ranks: np.ndarray, n_pos: int) -> float | None:
    """UKBench's N-S score: how many of the group of 4, the query included, are among the first 4 (0 to 4)."""
    return float((ranks < GROUP).sum()) if n_pos else None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is not None, None where nothing is left."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None
