"""Diffusion: a query's similarity to its nearest rows spreads over the database's nearest-neighbour graph.

k-reciprocal re-ranking: what is near has the same neighbours, and is among theirs.

Query expansion and database augmentation: a vector is moved towards its neighbours in the database.
"""

from dataclasses import replace

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import cg

from dim.search import exact
from dim.search.database import Database, Retrieval, from_array, neighbour_blocks, neighbours, temporary_file_of

DIFFUSION_ALPHA = 0.99
GAMMA = 3.0  # the power of similarities
SOURCES = 10  # a query's nearest rows, from which the diffusion starts
STEPS = 20
TOLERANCE = 1e-6


def diffusion(search: Retrieval, k: int) -> Retrieval:
    """Ranks by the f that solves (I − αS) f = y by conjugate gradients (Iscen et al., 1611.05113), α = 0.99.

    Affinity is max(0, similarity)³ between rows that are among the k nearest of each other, S = D^−½ A D^−½ with D the
    sums of A's rows, and y the query's similarities³ to its 10 nearest rows. The gradients stop after 20 steps, or when
    the residual is 1e-6 of y. Rows that the diffusion doesn't reach follow by their similarity, less 2.
    """
    database = search.database.held()
    system = laplacian(*neighbours(database, k))

    def rescore(row: np.ndarray) -> np.ndarray:
        source = np.zeros(len(row))
        near = exact.best(row, SOURCES, database.place)
        source[near] = np.maximum(row[near], 0) ** GAMMA
        reached, _ = cg(system, source, rtol=TOLERANCE, maxiter=STEPS)
        return np.where(reached != 0, reached, row - 2)

    return replace(search, database=database, rescore=rescore)


def laplacian(rows: np.ndarray, scores: np.ndarray) -> sparse.csr_array:
    """I − αS of the graph in which row i has the neighbours `rows` (N, k) with `scores` (N, k)."""
    size = len(rows)
    near = scores > 0
    starts = np.concatenate([[0], np.cumsum(near.sum(axis=1))])
    directed = sparse.csr_array((scores[near] ** GAMMA, rows[near], starts), shape=(size, size))
    mutual = directed.minimum(directed.T)
    degree = mutual.sum(axis=1)
    scale = sparse.diags_array(np.where(degree > 0, degree, 1) ** -0.5)
    return (sparse.eye_array(size) - DIFFUSION_ALPHA * (scale @ mutual @ scale)).tocsr()


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
    rows, scores = neighbours(database, k)
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


EXPANSION_ALPHA = 3.0
_QUERIES = 256  # whose neighbours' vectors are in memory at once


def aqe(search: Retrieval, k: int) -> Retrieval:
    """Average query expansion: q ← L2(q + Σ d) over the k rows d nearest to q (Chum et al., ICCV 2007)."""
    rows, scores = search.nearest(k)
    return replace(search, queries=_moved(search.queries, rows, (scores > -np.inf).astype(float), search.database))


def alpha_qe(search: Retrieval, k: int) -> Retrieval:
    """α query expansion: q ← L2(q + Σ max(0, qᵀd)^α d) over the k rows d nearest to q (Radenović et al., 1711.02512).

    α is 3. A negative similarity must not add the opposite of what is near, as an odd power of it would.
    """
    rows, scores = search.nearest(k)
    return replace(
        search, queries=_moved(search.queries, rows, np.maximum(scores, 0) ** EXPANSION_ALPHA, search.database)
    )


def dba(search: Retrieval, k: int) -> Retrieval:
    """Database augmentation: `alpha_qe` of every row, over the k other rows nearest to it (Arandjelović and Zisserman,
    CVPR 2012, with α weights). What comes out is searched exactly, also where an index gave the neighbours.
    """
    database = search.database.held()
    augmented = (
        _moved(vectors, rows, np.maximum(scores, 0) ** EXPANSION_ALPHA, database)
        for vectors, rows, scores in neighbour_blocks(database, k)
    )
    return replace(search, database=from_array(temporary_file_of(augmented, len(database.place)), database.place))


def _moved(vectors: np.ndarray, rows: np.ndarray, weights: np.ndarray, database: Database) -> np.ndarray:
    """L2(v + Σ weight · d) for each v of `vectors` (n, D), over the d of its `rows` (n, k); −1 is none, of weight 0."""
    moved = vectors.astype(np.float64)
    for start in range(0, len(vectors), _QUERIES):
        part = slice(start, start + _QUERIES)
        near = database.take(np.maximum(rows[part], 0).ravel()).reshape(*rows[part].shape, -1)
        for number in range(rows.shape[1]):  # one after the other, so that the same sum is the same to the bit
            moved[part] += weights[part, number, None] * near[:, number]
    moved /= np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)
    return moved.astype(np.float32)
