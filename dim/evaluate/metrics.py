"""Retrieval metrics of one query.

Every metric takes the same two arguments and returns a number, or None for a query that has no positive:

* `ranks`: int (P,), ascending. The 0-based ranks of the positives in the query's list, counted as if the list held no
  junk. A positive that the list lacks has no rank.
* `n_pos`: how many positives the query has, listed or not.
"""

from collections.abc import Callable, Iterable

import numpy as np

GROUP = 4  # photos of each object in UKBench
Metric = Callable[[np.ndarray, int], float | None]


def without_junk(ranks: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Turns `ranks` (P,) into ranks that don't count `junk` (J,). Both are ascending 0-based positions in a list."""
    return ranks - np.searchsorted(junk, ranks)


def average_precision(ranks: np.ndarray, n_pos: int) -> float | None:
    """Average precision: the area under the precision–recall curve by the trapezoid rule.

    AP = Σ_j (p0 + p1) / 2 / n_pos, with p0 = j / rank_j (1 if rank_j = 0) and p1 = (j + 1) / (rank_j + 1), as in
    Oxford5k's `compute_ap` (Philbin et al., CVPR 2007) and Revisited Oxford (Radenović et al., arXiv:1803.11285).
    """
    if n_pos == 0:
        return None
    found = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    after = (found + 1) / (ranks + 1)
    return float(((before + after) / 2).sum() / n_pos)


def printed_average_precision(ranks: np.ndarray, n_pos: int) -> float | None:
    """`average_precision` in single precision, rounded after every operation, as in Oxford5k's C++ `compute_ap`.

    All six digits are then equal to those that `compute_ap` prints. In double precision, one value in forty differs.
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
    """AP@k: the precisions at the positives among the first `k` photos, summed and divided by min(n_pos, k).

    If k is None, the whole list counts. AP@100 is the measure of Google Landmarks v2 (Weyand et al., arXiv:2004.01804),
    and AP@1000 that of ILIAS (Kordopatis-Zilos et al., arXiv:2502.11748).
    """
    if n_pos == 0:
        return None
    kept = ranks if k is None else ranks[ranks < k]
    return float(((np.arange(len(kept)) + 1) / (kept + 1)).sum() / min(n_pos, k or n_pos))


def oracle(ranks: np.ndarray, n_pos: int, k: int) -> float | None:
    """Oracle@k of ILIAS (Kordopatis-Zilos et al., arXiv:2502.11748): the share of the positives among the first `k`.

    A perfect re-ranking of the first `k` photos can't reach a higher AP.
    """
    return float((ranks < k).sum() / n_pos) if n_pos else None


def average_precision_at_r(ranks: np.ndarray, n_pos: int) -> float | None:
    """AP@R: AP@k with k = R, the number of positives (Musgrave et al., arXiv:2003.08505)."""
    return finite_average_precision(ranks, n_pos, n_pos)


def recall_at(ranks: np.ndarray, n_pos: int, k: int) -> float | None:
    """Recall@k of a query as defined in place recognition and metric learning: 1 if a positive is among the first k.

    Otherwise it is 0. Its mean is the share of queries with at least one positive among the first k photos, once the
    protocol has removed junk and, where it says so, the query's own photo (Arandjelović et al., NetVLAD,
    arXiv:1511.07247, section 5; Oh Song et al., arXiv:1511.06452). This is not the share of the positives that are
    found. Returns None for a query without a positive, which the mean leaves out.
    """
    return float((ranks < k).any()) if n_pos else None


def precision_at(ranks: np.ndarray, n_pos: int, k: int) -> float | None:
    """P@k of Revisited Oxford and Paris (arXiv:1803.11285): the share of positives among the first min(k, r).

    r is the 1-based rank of the last positive. Because of r, a query with fewer than k positives can reach 1.
    """
    if n_pos == 0:
        return None
    if len(ranks) == 0:
        return 0.0
    depth = min(int(ranks[-1]) + 1, k)
    return float((ranks < depth).sum() / depth)


def ns_score(ranks: np.ndarray, n_pos: int) -> float | None:
    """UKBench's N-S score, 0 to 4: how many of the first 4 photos show the query's object. The query's photo counts.

    Source: Nistér and Stewénius, CVPR 2006.
    """
    return float((ranks < GROUP).sum()) if n_pos else None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def four_digits(value: float | None) -> str:
    """The text by which pages and logs show a measure such as mAP."""
    return "none" if value is None else f"{value:.4f}"
