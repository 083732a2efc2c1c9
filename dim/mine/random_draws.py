"""The strategy `random`: draws a number of candidates for each ordered pair of labels, with replacement.

Repeated candidates are dropped. Each pair has its own random words from Philox, a counter-based generator. The pair's
draws therefore depend only on the seed and the pair, not on the task that draws them.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from dim.mine.blocks import StoredPool
from dim.mine.config import Mining
from dim.mine.pool import Pool, too_similar
from dim.mine.ranking import Run, Sizes, run_of
from dim.mine.remote import Remote, fetched
from dim.mine.triplets import Triplets, active

_DRAWN = 1 << 20  # random candidates that a task draws, some seconds of work
_AT_ONCE = 1 << 17  # random candidates whose distances are computed at a time
_WORDS = 4  # 64-bit words that Philox makes per step


def groups(pool: Pool, settings: Mining) -> list[range]:
    """The groups of labels. The pairs of labels of two groups are a unit of work."""
    starts, _ = _labels(pool)
    size = max(1, math.isqrt(_DRAWN // settings.candidates_per_pair))
    return [range(first, min(first + size, len(starts))) for first in range(0, len(starts), size)]


def calls(stored: StoredPool, settings: Mining) -> int:
    """The number of calls of `runs`."""
    return len(groups(stored.pool, settings)) ** 2


def runs(remote: Remote, stored: StoredPool, settings: Mining) -> Iterator[Run]:
    """Draws all triplets by tasks. Yields a run of sorted triplets for each pair of groups."""
    pool = stored.pool
    starts, sizes = _labels(pool)
    for pair in itertools.product(groups(pool, settings), repeat=2):
        spans = [pool.blocks_of(starts[group[0]], starts[group[-1]] + sizes[group[-1]]) for group in pair]
        yield Run(*remote.call(drawn, stored.reference, settings, *pair, stored.of(*spans), returns=2))


def drawn(pool: Pool, settings: Mining, owns: range, others: range, blocks: dict[int, Any]) -> tuple[Sizes, Triplets]:
    """Draws triplets for the pairs of a label of `owns`, for anchors, and one of `others`, for negatives."""
    pool = pool.holding(fetched(blocks))
    starts, sizes = _labels(pool)
    numbers = np.cumsum(sizes >= 2) - 1  # a label of one image has no anchor, and no number
    step = max(1, _AT_ONCE // settings.candidates_per_pair)
    parts = [Triplets.none()]
    for own in owns:
        if sizes[own] < 2:
            continue
        # Each anchor's label has a pair with each label but itself.
        start, stop = (numbers[own] * (len(sizes) - 1) + end - (end > own) for end in (others.start, others.stop))
        pairs = (range(first, min(first + step, stop)) for first in range(start, stop, step))
        parts += (_of_pairs(pool, settings, starts, sizes, some) for some in pairs)
    return run_of(parts, pool.id_ranks, settings.top)


def _labels(pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    # The first row, and the number of rows, of each label.
    sizes = np.bincount(pool.labels)
    return np.cumsum(sizes) - sizes, sizes


def _of_pairs(pool: Pool, settings: Mining, starts: np.ndarray, sizes: np.ndarray, pairs: range) -> Triplets:
    own, other = np.divmod(np.arange(pairs.start, pairs.stop), len(sizes) - 1)
    own = np.flatnonzero(sizes >= 2)[own]
    other += other >= own
    # A draw is a number that stands for a triplet. If the anchor's label has n images and the negative's label has m,
    # the digits of the number in the mixed radix (n, n − 1, m) are the anchor, the positive and the negative.
    n, m = sizes[own][:, None], sizes[other][:, None]
    drawn = np.sort(_words(settings, pairs) % (n * (n - 1) * m).astype(np.uint64), axis=1).astype(np.int64)
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


def _words(settings: Mining, pairs: range) -> np.ndarray:
    # Random words, one per candidate: (pairs, candidates_per_pair). Each pair has its own steps of the generator.
    steps = -(-settings.candidates_per_pair // _WORDS)
    generator = np.random.Philox(key=settings.seed, counter=pairs.start * steps)
    words = generator.random_raw(len(pairs) * steps * _WORDS)
    return words.reshape(len(pairs), -1)[:, : settings.candidates_per_pair]
