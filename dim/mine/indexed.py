"""The hardest triplets of a large training set (`--candidates`): a FAISS index proposes each anchor's negatives.

Above about 100,000 descriptors, there are too many pairs to compare. Positives are still searched exactly. Exact
distances rank the proposed negatives, but negatives that the index misses are lost.

The index is in parts, so that no process holds all of it. One task trains an empty index on a sample. Each part is a
copy of it with the rows of some blocks. A unit of work is the search of one part for the anchors of one group of
blocks. Of the proposals of all parts, an anchor gets those with the best scores, as from one index. An HNSW index
differs from run to run if FAISS builds it with several threads, so each part is built with one.
"""

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

from dim.mine import hardest
from dim.mine.blocks import StoredPool
from dim.mine.config import Mining
from dim.mine.partners import Found, no_partners
from dim.mine.pool import Pool, too_similar
from dim.mine.ranking import Run, Sizes
from dim.mine.remote import Remote, fetched
from dim.mine.triplets import Triplets
from dim.search import approximate, index_factory

# For each negative wanted, an anchor gets PROPOSED negatives from the index. The search of a part returns as many rows
# more as the largest label in the anchor's block has images, because the nearest rows may be positives. It returns at
# most MOST_PROPOSED rows.
PROPOSED, MOST_PROPOSED = 10, 2048
# Bytes of the descriptors of a part. Each part is filled by one thread, so smaller parts are filled sooner. But each
# anchor is searched for in each part: to search three graphs (HNSW) of n / 3 rows takes twice as long as one of n rows.
_MOST_PART = 1 << 28
_ANCHORS = 8  # most blocks of anchors that a task searches a part for; each task first copies the part

Proposals = tuple[np.ndarray, np.ndarray, np.ndarray]  # scores, rows and distances of negatives, (anchors, n) each


def empty_index(settings: Mining, dimension: int) -> Any:
    """Makes an untrained index. Raises UserError if FAISS does not know the index or its search parameters."""
    factory, parameters = str(settings.candidates), settings.candidate_parameters
    return index_factory.proposing_index(factory, parameters, dimension, settings.seed)


def parts(stored: StoredPool) -> list[range]:
    """The blocks of each part of the index. A task holds a part and a copy of it while FAISS reads it."""
    count = stored.pool.block_count
    size = max(1, min(_MOST_PART, stored.share // 3) // (4 * stored.dimension * stored.pool.block_rows))
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def calls(stored: StoredPool, _: Mining) -> int:
    """The number of calls of `runs`."""
    count, groups = len(parts(stored)), len(hardest.groups(stored.pool, _ANCHORS))
    return 1 + count + groups * (count + 1)


def runs(remote: Remote, stored: StoredPool, settings: Mining) -> Iterator[Run]:
    """Mines triplets by tasks, as `hardest.runs` does, but with the negatives that the index proposes."""
    pool, reference, spans = stored.pool, stored.reference, parts(stored)
    cpus, every = remote.node_cpus, stored.of(range(pool.block_count))
    [empty] = remote.call(trained, reference, settings, stored.dimension, cpus, every, cpus=cpus)
    remote.wait()  # so that no task that waits for the trained index takes a CPU from its training
    indexes = [remote.call(filled, reference, settings, empty, stored.of(span))[0] for span in spans]
    for group in hardest.groups(pool, _ANCHORS):
        proposed = [
            remote.call(proposals, reference, settings, index, stored.of(span), stored.of(group))[0]
            for index, span in zip(indexes, spans, strict=True)
        ]
        needed = stored.of(_blocks_with_labels_of(pool, group))
        yield Run(*remote.call(mined, reference, settings, group, needed, *proposed, returns=2))


def trained(pool: Pool, settings: Mining, dimension: int, threads: int, blocks: dict[int, Any]) -> list[np.ndarray]:
    """Trains an empty index on a sample of the pool. Returns the serialised index, uint8 (bytes,)."""
    faiss.omp_set_num_threads(threads)
    made = empty_index(settings, dimension)
    if not made.is_trained:
        count = min(len(pool), index_factory.training_rows(made))
        drawn = np.sort(np.random.default_rng(settings.seed).choice(len(pool), count, replace=False))
        owners = drawn // pool.block_rows
        sample = np.concatenate(
            [pool.holding(fetched({i: blocks[i]})).take(drawn[owners == i]) for i in np.unique(owners).tolist()]
        )
        index_factory.train(made, sample.astype(np.float32, copy=False), f"--candidates {settings.candidates!r}")
    return [faiss.serialize_index(made)]


def filled(pool: Pool, settings: Mining, empty: np.ndarray, blocks: dict[int, Any]) -> list[np.ndarray]:
    """Adds the rows of `blocks` to a copy of the trained index `empty`. Returns the serialised index."""
    faiss.omp_set_num_threads(1)  # each CPU runs a task of its own
    made = faiss.deserialize_index(empty)
    pool = pool.holding(fetched(blocks))
    index_factory.add(made, map(pool.block, blocks), f"--candidates {settings.candidates!r}")
    return [faiss.serialize_index(made)]


def proposals(
    pool: Pool, settings: Mining, serialised: np.ndarray, part: dict[int, Any], anchors: dict[int, Any]
) -> list[list[Proposals]]:
    """Searches a part of the index, which holds the blocks `part`, for the anchors of each of the blocks `anchors`.

    Returns the proposed negatives of each block, with their exact distances. A score of −inf is no proposal.
    """
    faiss.omp_set_num_threads(1)
    index = faiss.deserialize_index(serialised)
    pool = pool.holding(fetched(part | anchors))
    first = min(part) * pool.block_rows
    return [[_proposed(pool, settings, index, i, first) for i in anchors]]


def _proposed(pool: Pool, settings: Mining, index: Any, i: int, first: int) -> Proposals:
    labels, start = pool.labels[pool.span(i)], pool.span(i).start
    starts, ends = (np.searchsorted(pool.labels, labels, side) for side in ("left", "right"))
    wanted = min(PROPOSED * settings.negatives_per_anchor, MOST_PROPOSED)
    count = min(index.ntotal, MOST_PROPOSED, wanted + int((ends - starts).max()))
    scores, found = index.search(pool.block(i), count, params=approximate.search_parameters(index, count))
    missing = found < 0
    found += first
    scores[missing | (pool.labels[found] == labels[:, None])] = -np.inf
    order = _order(pool, scores, found)[:, :wanted]
    scores, found = np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
    distances = np.full(found.shape, np.inf, np.float32)
    rows, places = np.nonzero(scores > -np.inf)
    if len(rows):
        distances[rows, places] = pool.distances(rows + start, found[rows, places])
    return scores, found, distances


def _order(pool: Pool, scores: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The order of the rows `found` of each anchor: the best score first, by image id if scores are equal."""
    order: np.ndarray = np.lexsort((pool.id_ranks[found], -scores))
    return order


def mined(
    pool: Pool, settings: Mining, group: range, blocks: dict[int, Any], *proposed: list[Proposals]
) -> tuple[Sizes, Triplets]:
    """Makes the triplets of the anchors of `group`. `proposed` has the proposals of each part of the index.

    `blocks` are those that share a label with the group. Returns the results of `hardest.crossed`.
    """
    pool = pool.holding(fetched(blocks))
    found = no_partners(settings)
    for number, i in enumerate(group):
        _find_positives(pool, i, found)
        _offer(pool, settings, i, [part[number] for part in proposed], found)
    return hardest.crossed(pool, settings, group, found)


def _blocks_with_labels_of(pool: Pool, group: range) -> range:
    first, last = pool.labels[pool.span(group[0]).start], pool.labels[pool.span(group[-1]).stop - 1]
    return pool.blocks_of(*(int(np.searchsorted(pool.labels, *end)) for end in ((first, "left"), (last, "right"))))


def _find_positives(pool: Pool, i: int, found: Found) -> None:
    left = pool.block(i)
    for j in _blocks_with_labels_of(pool, range(i, i + 1)):
        found[0].screen(pool, i, j, hardest.mates(pool, i, j, left @ pool.block(j).T))


def _offer(pool: Pool, settings: Mining, i: int, proposed: list[Proposals], found: Found) -> None:
    scores, partners, distances = (np.concatenate(each, axis=1) for each in zip(*proposed, strict=True))
    order = _order(pool, scores, partners)[:, : PROPOSED * settings.negatives_per_anchor]
    fit = np.zeros(scores.shape, bool)
    np.put_along_axis(fit, order, True, axis=1)
    fit &= scores > -np.inf
    if settings.max_similarity is not None:
        fit &= ~too_similar(distances, settings.max_similarity)
    rows, places = np.nonzero(fit)
    found[1].offer(pool, i, rows, partners[rows, places], distances[rows, places])
