"""k-reciprocal re-ranking: what is near has the same neighbours, and is among theirs."""

from dataclasses import replace

import numpy as np
from scipy import sparse

from dim.search import exact
from dim.search.database import Database
from dim.search.neighbours import others
from dim.search.retrieval import Retrieval

AVERAGED = 6  # k2: how many encodings are averaged, the own included
LAMBDA = 0.3
_PAIRS = 4096  # whose cosines are computed at once


def k_reciprocal(search: Retrieval, k: int) -> Retrieval:
    """Ranks by (1 − λ)·J + λ·cosine, with J the Jaccard similarity of encodings (Zhong et al., 1701.08398), λ = 0.3.

    R(i, k) are i and those of the k rows nearest to i that have i among the k nearest to them. R*(i) adds to R(i, k)
    each R(j, k/2), j in R(i, k), of which more than two thirds lie in R(i, k). The encoding V_i(j) is exp(cosine − 1)
    on R*(i), divided by its sum, and averaged over i and the 5 rows nearest to i. J is Σ min / Σ max of two encodings.
    The database is encoded once, by itself, then each query with it, so that no list depends on the other queries. A
    query that is a row of the database finds itself there.
    """
    database = search.database.held()
    rows, scores = others(database, k)
    half = _mutual(rows[:, : round(k / 2)])
    encoded = _encoded(_expanded(_mutual(rows), half), database)
    averages = _with_own(rows[:, : AVERAGED - 1])
    averaged = sparse.diags_array(1 / averages.sum(axis=1)) @ averages @ encoded
    totals, columns = averaged.sum(axis=1), averaged.tocsc()

    def rescore(row: np.ndarray) -> np.ndarray:
        listed = exact.best(row, k, database.place)
        mutual = listed[row[listed] >= scores[listed, -1]]
        star = _expanded(_graph(mutual[None], len(row)), half).indices
        own = np.zeros(len(row))
        own[star] = np.exp(row[star] - 1) / np.exp(row[star] - 1).sum()
        nearest = listed[: AVERAGED - 1]
        own = (own + encoded[nearest].sum(axis=0)) / (1 + len(nearest))
        (used,) = np.nonzero(own)
        beside = columns[:, used]
        lesser = np.minimum(beside.data, np.repeat(own[used], np.diff(beside.indptr)))
        shared = np.bincount(beside.indices, lesser, len(row))
        similarity: np.ndarray = shared / (own.sum() + totals - shared)
        return (1 - LAMBDA) * similarity + LAMBDA * row

    return replace(search, database=database, rescore=rescore)


def _graph(rows: np.ndarray, size: int) -> sparse.csr_array:
    """The matrix (n, size) with ones where row i names a column in `rows` (n, k); −1 names none."""
    starts = np.concatenate([[0], np.cumsum((rows >= 0).sum(axis=1))])
    columns = rows[rows >= 0]
    return sparse.csr_array((np.ones(len(columns)), columns, starts), shape=(len(rows), size))


def _with_own(rows: np.ndarray) -> sparse.csr_array:
    """The graph of the neighbours `rows` (N, k), each row its own neighbour, too."""
    return _graph(np.hstack([np.arange(len(rows))[:, None], rows]), len(rows))


def _mutual(rows: np.ndarray) -> sparse.csr_array:
    """R(i, k) for every i, from the neighbours `rows` (N, k)."""
    graph = _with_own(rows)
    return graph.multiply(graph.T).tocsr()


def _expanded(near: sparse.csr_array, half: sparse.csr_array) -> sparse.csr_array:
    """R*: `near` (n, N), and each R(j, k/2), row j of `half` (N, N), of which more than two thirds lie in it."""
    common = near.multiply(near @ half).tocoo()
    chosen = 3 * common.data > 2 * half.sum(axis=1)[common.col]
    kept = sparse.csr_array((common.data[chosen], (common.row[chosen], common.col[chosen])), shape=near.shape)
    return near + kept @ half


def _encoded(star: sparse.csr_array, database: Database) -> sparse.csr_array:
    """The encodings on the pattern `star` (N, N), before they are averaged."""
    pairs = star.tocoo()
    cosines = np.empty(pairs.nnz)
    for start in range(0, pairs.nnz, _PAIRS):
        part = slice(start, start + _PAIRS)
        left, right = database.take(pairs.row[part]), database.take(pairs.col[part])
        cosines[part] = np.einsum("ij,ij->i", left, right, dtype=np.float64)
    weights = sparse.csr_array((np.exp(cosines - 1), (pairs.row, pairs.col)), shape=star.shape)
    return (sparse.diags_array(1 / weights.sum(axis=1)) @ weights).tocsr()
