"""The hardest triplets of a large training set (`--candidates`): a FAISS index proposes each anchor's negatives.

Above about 100,000 descriptors, there are too many pairs to compare. Positives are still searched exactly. Exact
distances rank the proposed negatives, but negatives that the index misses are lost. An HNSW index differs from run to
run, because FAISS builds it with several threads.
"""

from typing import Any

import faiss
import numpy as np

from dim.mine.config import Mining
from dim.mine.hardest import Found, Partners, no_partners, screen_positives
from dim.mine.pool import Pool, too_similar
from dim.search import approximate, faiss_files, index_factory

# For an anchor, the index proposes PROPOSED rows per negative wanted, and as many more as the largest label in the
# anchor's block has images, because the nearest rows may be positives. It proposes at most MOST_PROPOSED rows.
PROPOSED, MOST_PROPOSED = 8, 2048
_PAIRS = 8192  # pairs of rows whose products are computed at a time


def empty_index(settings: Mining, dimension: int) -> Any:
    """Makes an untrained index. Raises UserError if FAISS does not know the index or its search parameters."""
    made = index_factory.empty_index(str(settings.candidates), dimension, settings.seed, flag="--candidates")
    if settings.candidate_parameters:
        faiss_files.set_parameters(made, settings.candidate_parameters, "--candidate-parameters")
    return made


def build(pool: Pool, settings: Mining, threads: int) -> np.ndarray:
    """Builds the index of all rows of the pool. Returns the serialised index, uint8 (bytes,)."""
    faiss.omp_set_num_threads(threads)
    made = empty_index(settings, pool.block(0).shape[1])
    if not made.is_trained:
        count = min(len(pool), index_factory.training_rows(made))
        drawn = np.random.default_rng(settings.seed).choice(len(pool), count, replace=False)
        with faiss_files.as_user_error(f"--candidates {settings.candidates!r} can't be trained on {count} rows"):
            index_factory.train(made, pool.take(np.sort(drawn)))
    with faiss_files.as_user_error(f"--candidates {settings.candidates!r} takes no rows"):
        for i in range(len(pool.blocks)):
            made.add(pool.block(i))
    serialised: np.ndarray = faiss.serialize_index(made)
    return serialised


def units(pool: Pool) -> int:
    """The number of blocks."""
    return len(pool.blocks)


def work(pool: Pool, settings: Mining, start: int, stop: int) -> Found:
    """For blocks i from `start` to `stop` − 1, finds positives in the pairs with blocks j ≥ i, and all negatives."""
    faiss.omp_set_num_threads(1)  # each CPU runs a task of its own
    index = faiss.deserialize_index(pool.fetch(pool.index))
    positives, negatives = no_partners(settings)
    for i in range(start, stop):
        for j in range(i, len(pool.blocks)):
            # Labels ascend, so this is true only if the blocks share a label.
            if pool.labels[pool.span(j).start] <= pool.labels[pool.span(i)][-1]:
                screen_positives(pool, i, j, pool.block(i) @ pool.block(j).T, positives)
        _offer_proposed(pool, settings, index, i, negatives)
    return positives, negatives


def _offer_proposed(pool: Pool, settings: Mining, index: Any, i: int, negatives: Partners) -> None:
    labels, first = pool.labels[pool.span(i)], pool.span(i).start
    starts, ends = (np.searchsorted(pool.labels, labels, side) for side in ("left", "right"))
    mates = int((ends - starts).max())
    count = min(len(pool), MOST_PROPOSED, PROPOSED * settings.negatives_per_anchor + mates)
    _, proposed = index.search(pool.block(i), count, params=approximate.search_parameters(index, count))
    rows, places = np.nonzero((proposed >= 0) & (pool.labels[proposed] != labels[:, None]))
    partners = proposed[rows, places]
    if settings.max_similarity is None and not negatives.one_per_label:
        score = np.full(proposed.shape, -np.inf, np.float32)
        score[rows, places] = _products(pool, rows + first, partners)
        # |distance − (2 − 2xᵀy)| ≤ tolerance, so only these rows can be among the nearest.
        limit = np.partition(score, -min(negatives.count, count), axis=1)[:, -min(negatives.count, count)]
        near = score[rows, places] >= limit[rows] - np.float32(pool.tolerance)
        rows, partners = rows[near], partners[near]
    distances = pool.distances(rows + first, partners)
    if settings.max_similarity is not None:
        fit = ~too_similar(distances, settings.max_similarity)
        rows, partners, distances = rows[fit], partners[fit], distances[fit]
    negatives.offer(pool, i, rows, partners, distances)


def _products(pool: Pool, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The float32 dot products (P,) of the rows `left` (P,) with the rows `right` (P,)."""
    found = np.empty(len(left), np.float32)
    for start in range(0, len(left), _PAIRS):
        pairs = slice(start, start + _PAIRS)
        found[pairs] = np.einsum("ij,ij->i", pool.take(left[pairs]), pool.take(right[pairs]))
    return found
