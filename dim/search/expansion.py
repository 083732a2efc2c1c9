"""Query expansion and database augmentation: a vector is moved towards its neighbours in the database."""

from dataclasses import replace

import numpy as np

from dim.search.database import Database, of_array, scratch
from dim.search.neighbours import blocks_of_others
from dim.search.retrieval import Retrieval

ALPHA = 3.0
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
    return replace(search, queries=_moved(search.queries, rows, np.maximum(scores, 0) ** ALPHA, search.database))


def dba(search: Retrieval, k: int) -> Retrieval:
    """Database augmentation: `alpha_qe` of every row, over the k other rows nearest to it (Arandjelović and Zisserman,
    CVPR 2012, with α weights). What comes out is searched exactly, also where an index gave the neighbours.
    """
    database = search.database.held()
    augmented = (
        _moved(vectors, rows, np.maximum(scores, 0) ** ALPHA, database)
        for vectors, rows, scores in blocks_of_others(database, k)
    )
    return replace(search, database=of_array(scratch(augmented, len(database.place)), database.place))


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
