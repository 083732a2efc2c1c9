"""Diffusion: a query's similarity to its nearest rows spreads over the database's nearest-neighbour graph."""

from dataclasses import replace

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import cg

from dim.search import exact
from dim.search.neighbours import others
from dim.search.retrieval import Retrieval

ALPHA = 0.99
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
    system = laplacian(*others(database, k))

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
    return (sparse.eye_array(size) - ALPHA * (scale @ mutual @ scale)).tocsr()
