"""Query expansion, database augmentation and re-ranking: what `--expansion` applies to a search.

Each method takes a `Retrieval` and a number k of neighbours, and returns a changed `Retrieval`. `aqe` and `alpha_qe`
change the queries, `dba` changes the database, and `k_reciprocal` and `diffusion` replace the scores. In docstrings,
"row" also means the vector of a database row, and L2(x) is x / ‖x‖.
"""

from dataclasses import replace

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import cg

from dim.search import exact
from dim.search.database import Database, from_array, neighbour_blocks, neighbours, temporary_file_of
from dim.search.retrieval import Retrieval

EXPANSION_ALPHA = 3.0  # α in `alpha_qe` and `dba`
_VALUES = 2**25  # most values, of 4 bytes, of the neighbours' vectors that `_moved` holds in memory
AVERAGED = 6  # k₂ in `k_reciprocal`: encodings per average, the row's own included
LAMBDA = 0.3  # λ in `k_reciprocal`
_PAIRS = 4096  # pairs of rows whose cosines are computed at a time
DIFFUSION_ALPHA = 0.99  # α in `diffusion`
GAMMA = 3.0  # exponent of similarities in `diffusion`
SOURCES = 10  # rows nearest to the query, at which the diffusion starts
STEPS = 20  # most steps of conjugate gradients
TOLERANCE = 1e-6  # residual at which conjugate gradients stop, relative to y


def aqe(search: Retrieval, k: int) -> Retrieval:
    """Average query expansion (Chum et al., Total Recall, ICCV 2007).

    Each query q becomes L2(q + Σ d). The sum is over the k rows d nearest to q.
    """
    rows, scores = search.nearest(k)
    return replace(search, queries=_moved(search.queries, rows, (scores > -np.inf).astype(float), search.database))


def alpha_qe(search: Retrieval, k: int) -> Retrieval:
    """α-weighted query expansion (Radenović et al., arXiv 1711.02512), with α = 3.

    Each query q becomes L2(q + Σ max(0, qᵀd)^α d). The sum is over the k rows d nearest to q. Negative similarities
    count as 0, because their cubes would move q away from d.
    """
    rows, scores = search.nearest(k)
    weights = np.maximum(scores, 0) ** EXPANSION_ALPHA
    return replace(search, queries=_moved(search.queries, rows, weights, search.database))


def dba(search: Retrieval, k: int) -> Retrieval:
    """Database-side augmentation (Arandjelović and Zisserman, CVPR 2012), with the weights of `alpha_qe`.

    Each row x becomes L2(x + Σ max(0, xᵀd)^α d). The sum is over the k other rows d nearest to x. The changed rows are
    searched exactly, even if an FAISS index found the neighbours.
    """
    database = search.database.with_random_access()
    augmented = (
        _moved(vectors, rows, np.maximum(scores, 0) ** EXPANSION_ALPHA, database)
        for vectors, rows, scores in neighbour_blocks(search.database, k)
    )
    vectors = temporary_file_of(augmented, len(database.tie_order))
    return replace(search, database=from_array(vectors, database.tie_order))


def _moved(vectors: np.ndarray, rows: np.ndarray, weights: np.ndarray, database: Database) -> np.ndarray:
    """Computes L2(v + Σ w·d) for each v in `vectors` (n, D). The sum is over the k rows d of v, with weights w.

    `rows` and `weights` are (n, k). In `rows`, −1 stands for no row; the weight must then be 0.
    """
    moved = vectors.astype(np.float64)
    step = max(1, _VALUES // max(1, rows.shape[1] * vectors.shape[1]))
    for start in range(0, len(vectors), step):
        part = slice(start, start + step)
        near = database.take(np.maximum(rows[part], 0).ravel()).reshape(*rows[part].shape, -1)
        for number in range(rows.shape[1]):  # adds in a fixed order, so equal vectors stay equal to the bit
            moved[part] += weights[part, number, None] * near[:, number]
    moved /= np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)
    return moved.astype(np.float32)


def k_reciprocal(search: Retrieval, k: int) -> Retrieval:
    """k-reciprocal re-ranking (Zhong et al., arXiv 1701.08398), with λ = 0.3 and k₂ = 6.

    - R(i, k) contains i, and each row j if i and j are among the k nearest rows of each other.
    - R*(i) is the union of R(i, k) and all R(j, k/2) such that R(i, k) has j and more than two thirds of R(j, k/2).
    - The encoding of i is a vector with an entry for each row j: exp(cosine(i, j) − 1) if j is in R*(i), otherwise 0.
      Each encoding is divided by its sum, and then averaged with the encodings of the k₂ − 1 rows nearest to i.
    - J is the Jaccard similarity of two encodings, Σ min / Σ max. The score is (1 − λ)·J + λ·cosine.

    The rows are encoded once, without the queries, so a query's list doesn't depend on the other queries. If a query is
    also a row of the database, the row is a neighbour of the query, unless the query's list omits that row.
    """
    database = search.database.with_random_access()
    rows, scores = neighbours(search.database, k)
    half = _reciprocal(rows[:, : round(k / 2)])
    encoded = _encoded(_expanded(_reciprocal(rows), half), database)
    averages = _with_own(rows[:, : AVERAGED - 1])
    averaged = sparse.diags_array(1 / averages.sum(axis=1)) @ averages @ encoded
    totals, columns = averaged.sum(axis=1), averaged.tocsc()

    def rescore(row: np.ndarray) -> np.ndarray:
        listed = exact.best(row, k, database.tie_order)
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
    """The matrix (n, size) with ones in row i at the columns `rows[i]`. In `rows` (n, k), −1 stands for no column."""
    starts = np.concatenate([[0], np.cumsum((rows >= 0).sum(axis=1))])
    columns = rows[rows >= 0]
    return sparse.csr_array((np.ones(len(columns)), columns, starts), shape=(len(rows), size))


def _with_own(rows: np.ndarray) -> sparse.csr_array:
    """The graph of the neighbours `rows` (N, k), with an edge from each row to itself."""
    return _graph(np.hstack([np.arange(len(rows))[:, None], rows]), len(rows))


def _reciprocal(rows: np.ndarray) -> sparse.csr_array:
    """Computes R(i, k) for all rows i, as a graph (N, N), from the neighbours `rows` (N, k)."""
    graph = _with_own(rows)
    return graph.multiply(graph.T).tocsr()


def _expanded(near: sparse.csr_array, half: sparse.csr_array) -> sparse.csr_array:
    """Computes R* as a graph (n, N), from the graphs `near` (n, N) of R(i, k) and `half` (N, N) of R(j, k/2)."""
    common = near.multiply(near @ half).tocoo()
    chosen = 3 * common.data > 2 * half.sum(axis=1)[common.col]
    kept = sparse.csr_array((common.data[chosen], (common.row[chosen], common.col[chosen])), shape=near.shape)
    return near + kept @ half


def _encoded(star: sparse.csr_array, database: Database) -> sparse.csr_array:
    """Computes the encodings of all rows, (N, N), before they are averaged, from the graph `star` (N, N) of R*."""
    pairs = star.tocoo()
    cosines = np.empty(pairs.nnz)
    for start in range(0, pairs.nnz, _PAIRS):
        part = slice(start, start + _PAIRS)
        left, right = database.take(pairs.row[part]), database.take(pairs.col[part])
        cosines[part] = np.einsum("ij,ij->i", left, right, dtype=np.float64)
    weights = sparse.csr_array((np.exp(cosines - 1), (pairs.row, pairs.col)), shape=star.shape)
    return (sparse.diags_array(1 / weights.sum(axis=1)) @ weights).tocsr()


def diffusion(search: Retrieval, k: int) -> Retrieval:
    """Diffusion on the nearest-neighbour graph (Iscen et al., arXiv 1611.05113), α = 0.99.

    The scores f of a query solve (I − αS) f = y:

    - A_ij is max(0, similarity of i and j)³ if the rows i and j are among the k nearest of each other, otherwise 0.
    - S is D^(−½) A D^(−½). D is the diagonal matrix of the row sums of A.
    - y_i is max(0, similarity of i and the query)³ if i is among the 10 rows nearest to the query, otherwise 0.

    Conjugate gradients stop after 20 steps, or when the norm of the residual is 1e-6 of the norm of y. A row that the
    diffusion doesn't reach has its similarity minus 2 as score, so such rows come last, ordered by similarity.
    """
    tie_order = search.database.tie_order
    system = _diffusion_system(*neighbours(search.database, k))

    def rescore(row: np.ndarray) -> np.ndarray:
        source = np.zeros(len(row))
        near = exact.best(row, SOURCES, tie_order)
        source[near] = np.maximum(row[near], 0) ** GAMMA
        reached, _ = cg(system, source, rtol=TOLERANCE, maxiter=STEPS)
        return np.where(reached != 0, reached, row - 2)

    return replace(search, rescore=rescore)


def _diffusion_system(rows: np.ndarray, scores: np.ndarray) -> sparse.csr_array:
    """Computes I − αS (N, N) from the neighbours `rows` (N, k) and their `scores` (N, k)."""
    size = len(rows)
    near = scores > 0
    starts = np.concatenate([[0], np.cumsum(near.sum(axis=1))])
    directed = sparse.csr_array((scores[near] ** GAMMA, rows[near], starts), shape=(size, size))
    mutual = directed.minimum(directed.T)
    degree = mutual.sum(axis=1)
    scale = sparse.diags_array(np.where(degree > 0, degree, 1) ** -0.5)
    return (sparse.eye_array(size) - DIFFUSION_ALPHA * (scale @ mutual @ scale)).tocsr()
