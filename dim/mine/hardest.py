"""The hardest triplets: the farthest positives of each anchor, crossed with its nearest negatives.

With strategy `distinct` each label gives an anchor at most one negative (Radenović, 1604.02426).
"""

from collections.abc import Iterable, Iterator

import numpy as np

from dim.mine.config import Mining
from dim.mine.partners import Partners, entries
from dim.mine.pool import Pool, too_similar
from dim.mine.triplets import Triplets, active, ranked

Found = tuple[Partners, Partners]  # positives and negatives


def units(pool: Pool) -> int:
    """How many pairs of blocks there are; the similarity matrix is symmetric, so half of it suffices."""
    return len(pool.blocks) * (len(pool.blocks) + 1) // 2


def work(pool: Pool, settings: Mining, start: int, stop: int) -> Found:
    """The positives and negatives that the pairs of blocks `start` to `stop` offer."""
    found = nothing(settings)
    firsts, seconds = np.triu_indices(len(pool.blocks))
    for i, j in zip(firsts[start:stop].tolist(), seconds[start:stop].tolist(), strict=True):
        _screen_pair(pool, settings, i, j, found)
    return found


def finish(pool: Pool, settings: Mining, parts: Iterable[Found]) -> Triplets:
    """The triplets from what each part of the work found."""
    positives, negatives = nothing(settings)
    for other_positives, other_negatives in parts:
        positives.merge(pool, other_positives)
        negatives.merge(pool, other_negatives)
    return ranked(_crossed(pool, settings, positives, negatives), pool.id_ranks, settings.top)


def nothing(settings: Mining) -> Found:
    """No positives and no negatives yet."""
    return (
        Partners(settings.positives_per_anchor, sign=-1),
        Partners(settings.negatives_per_anchor, sign=1, one_per_label=settings.strategy == "distinct"),
    )


def _screen_pair(pool: Pool, settings: Mining, i: int, j: int, found: Found) -> None:
    positives, negatives = found
    similarity = pool.block(i) @ pool.block(j).T
    if pool.labels[pool.span(i)][-1] >= pool.labels[pool.span(j)][0]:  # labels ascend, so that only then they share one
        same = screen_positives(pool, i, j, similarity, positives)
        similarity[same] = -np.inf
    if settings.max_similarity is not None:
        _drop_similar(pool, i, j, similarity, settings.max_similarity)
    _screen_both(pool, i, j, similarity, negatives)


def screen_positives(pool: Pool, i: int, j: int, similarity: np.ndarray, positives: Partners) -> np.ndarray:
    """Offers the pairs of one label in blocks i and j to each other; returns which these are, bool (rows of i, of j).

    `similarity` (rows of i, of j): the float32 products.
    """
    same: np.ndarray = pool.labels[pool.span(i)][:, None] == pool.labels[pool.span(j)]
    mates = np.where(same, -similarity, -np.inf)
    if i == j:
        np.fill_diagonal(mates, -np.inf)
    _screen_both(pool, i, j, mates, positives)
    return same


def _screen_both(pool: Pool, i: int, j: int, score: np.ndarray, partners: Partners) -> None:
    partners.screen(pool, i, j, score)
    if i != j:
        partners.screen(pool, j, i, score.T)


def _drop_similar(pool: Pool, i: int, j: int, similarity: np.ndarray, most: float) -> None:
    rows, columns = entries(similarity > most - pool.tolerance)
    distances = pool.distances(rows + pool.span(i).start, columns + pool.span(j).start)
    similar = too_similar(distances, most)
    similarity[rows[similar], columns[similar]] = -np.inf


def _crossed(pool: Pool, settings: Mining, positives: Partners, negatives: Partners) -> Iterator[Triplets]:
    for i in range(len(pool.blocks)):
        distance_ap, distance_an = -positives.best[i][0], negatives.best[i][0]
        pairs = np.isfinite(distance_ap)[:, :, None] & np.isfinite(distance_an)[:, None, :]
        rows, p, n = np.nonzero(pairs)
        anchors = rows + pool.span(i).start
        triplets = np.stack([anchors, positives.best[i][1][rows, p], negatives.best[i][1][rows, n]])
        yield active(triplets, distance_ap[rows, p], distance_an[rows, n], settings.margin, len(rows))
