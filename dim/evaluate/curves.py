"""What the report draws of an evaluation: means over its queries that have a positive."""

from collections.abc import Sequence

import numpy as np

from dim.evaluate.evaluation import Judged

RECALLS = np.linspace(0, 1, 11)
AP_EDGES = np.linspace(0, 1, 11)
DEPTHS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)


def histogram(aps: Sequence[float]) -> np.ndarray:
    """How many of `aps` lie between each two of `AP_EDGES`; 1 counts to the last bin."""
    return np.histogram(aps, AP_EDGES)[0]


def precision_by_recall(judged: Sequence[Judged]) -> np.ndarray:
    """The 11-point interpolated curve of TREC (11,): at each recall the highest precision at that recall or beyond."""
    curves = [_interpolated(query.ranks, query.n_positives) for query in judged if query.n_positives]
    mean: np.ndarray = np.mean(curves, axis=0)
    return mean


def _interpolated(ranks: np.ndarray, n_positives: int) -> np.ndarray:
    precision = np.zeros(n_positives)
    precision[: len(ranks)] = (np.arange(len(ranks)) + 1) / (ranks + 1)
    highest_from = np.maximum.accumulate(precision[::-1])[::-1]
    needed = np.ceil(RECALLS * n_positives - 1e-9).astype(int)  # positives that make up each recall
    found: np.ndarray = highest_from[np.maximum(needed, 1) - 1]
    return found


def found_within(judged: Sequence[Judged], depths: Sequence[int]) -> tuple[list[float], list[float]]:
    """For each of `depths` k: the share of queries with a positive among the first k, which is recall@k, and the mean
    share of a query's positives that are among them.
    """
    queries = [query for query in judged if query.n_positives]
    counts = np.array([np.searchsorted(query.ranks, depths) for query in queries])
    shares = counts / np.array([[query.n_positives] for query in queries])
    return (counts > 0).mean(axis=0).tolist(), shares.mean(axis=0).tolist()
