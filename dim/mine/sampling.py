"""Random triplets, as the prototype drew them: a number of candidates for each ordered pair of labels.

The draws of a pair are numbered words of one counter-based generator (Philox), so that they depend on the seed and the
pair alone, not on who draws them. They are made with replacement; a triplet drawn twice stands once.
"""

from collections.abc import Iterable

import numpy as np

from dim.mine.config import Mining
from dim.mine.pool import Pool, too_similar
from dim.mine.triplets import Triplets, active, ranked

_DRAWN = 1 << 17  # candidates held at once
_WORDS = 4  # 64-bit words from each step of Philox


def units(pool: Pool) -> int:
    """How many ordered pairs of labels there are; the first label needs two images."""
    _, sizes = _labels(pool)
    return int((sizes >= 2).sum()) * (len(sizes) - 1)


def work(pool: Pool, settings: Mining, start: int, stop: int) -> Triplets:
    """The best triplets of the label pairs `start` to `stop`."""
    step = max(1, _DRAWN // settings.candidates_per_pair)
    parts = (_of_pairs(pool, settings, first, min(first + step, stop)) for first in range(start, stop, step))
    return ranked(parts, pool.id_ranks, settings.top)


def finish(pool: Pool, settings: Mining, parts: Iterable[Triplets]) -> Triplets:
    """The triplets from those of each part of the work."""
    return ranked(parts, pool.id_ranks, settings.top)


def _labels(pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    # The first row of each label and its number of rows.
    _, starts, sizes = np.unique(pool.labels, return_index=True, return_counts=True)
    return starts, sizes


def _of_pairs(pool: Pool, settings: Mining, start: int, stop: int) -> Triplets:
    starts, sizes = _labels(pool)
    own, other = np.divmod(np.arange(start, stop), len(sizes) - 1)
    own = np.flatnonzero(sizes >= 2)[own]
    other += other >= own
    # Triplet t of labels with n and m images is (anchor, positive, negative), t in mixed radix n, n − 1, m.
    n, m = sizes[own][:, None], sizes[other][:, None]
    drawn = np.sort(_words(settings, start, stop) % (n * (n - 1) * m).astype(np.uint64), axis=1).astype(np.int64)
    anchor, rest = np.divmod(drawn, (n - 1) * m)
    positive, negative = np.divmod(rest, m)
    positive += positive >= anchor
    first, first_other = starts[own][:, None], starts[other][:, None]
    new = np.diff(drawn, axis=1, prepend=-1) > 0
    triplets = np.stack([first + anchor, first + positive, first_other + negative])[:, new]
    distance_an = pool.distances(triplets[0], triplets[2])
    if settings.max_similarity is not None:
        fit = ~too_similar(distance_an, settings.max_similarity)
        triplets, distance_an = triplets[:, fit], distance_an[fit]
    return active(triplets, pool.distances(triplets[0], triplets[1]), distance_an, settings.margin, drawn.size)


def _words(settings: Mining, start: int, stop: int) -> np.ndarray:
    # One random word for each candidate (pairs, candidates_per_pair), each pair from a step of its own.
    steps = -(-settings.candidates_per_pair // _WORDS)
    generator = np.random.Philox(key=settings.seed, counter=start * steps)
    words = generator.random_raw((stop - start) * steps * _WORDS)
    return words.reshape(stop - start, -1)[:, : settings.candidates_per_pair]
