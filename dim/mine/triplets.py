"""Triplets, their ranking (hardest first), and the strategy `random`.

`random` draws a number of candidates for each ordered pair of labels, with replacement, and drops repeated candidates.
Each pair has its own random words from Philox, a counter-based generator. The pair's draws therefore depend only on the
seed and the pair, not on the task that draws them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from dim.mine.config import Mining
from dim.mine.pool import Pool, too_similar

_COLUMNS = ("anchors", "positives", "negatives", "distance_ap", "distance_an", "loss")
_DRAWN = 1 << 17  # random candidates that are in memory at a time
_WORDS = 4  # 64-bit words that Philox makes per step


@dataclass(frozen=True)
class Triplets:
    """T triplets, which were chosen from `candidates` candidates. Of those, `active` have a loss above 0.

    `anchors`, `positives`, `negatives`: positions, int64 (T,). `distance_ap`, `distance_an`: squared L2 distances,
    float32 (T,). `loss`: max(0, margin + ‖a − p‖² − ‖a − n‖²), float32 (T,).
    """

    anchors: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    distance_ap: np.ndarray
    distance_an: np.ndarray
    loss: np.ndarray
    candidates: int
    active: int

    @property
    def kept(self) -> int:
        """The number of triplets, T."""
        return len(self.anchors)

    def take(self, rows: np.ndarray) -> "Triplets":
        """The triplets at `rows`. The counts `candidates` and `active` stay the same."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})

    def at(self, positions: np.ndarray) -> "Triplets":
        """The same triplets, but with `positions[i]` in place of each position i."""
        return replace(self, **{name: positions[getattr(self, name)] for name in _COLUMNS[:3]})

    def table(self, image_ids: np.ndarray) -> pa.Table:
        """The columns of triplets.parquet: rank (from 1), the three ids, distance_ap, distance_an, loss."""
        ids = np.asarray(image_ids, dtype=object)
        named = {f"{name[:-1]}_id": pa.array(ids[getattr(self, name)], pa.string()) for name in _COLUMNS[:3]}
        measured = {name: pa.array(getattr(self, name)) for name in _COLUMNS[3:]}
        return pa.table({"rank": pa.array(np.arange(1, self.kept + 1)), **named, **measured})

    def summary(self) -> dict[str, Any]:
        """The counts and the mean distances of the triplets. Without triplets, the distances are None."""
        means = {
            f"mean_{name}": float(getattr(self, name).mean(dtype=np.float64)) if self.kept else None
            for name in ("distance_ap", "distance_an")
        }
        return {"candidates": self.candidates, "active": self.active, "kept": self.kept, **means}


def active(
    rows: np.ndarray, distance_ap: np.ndarray, distance_an: np.ndarray, margin: float, candidates: int
) -> Triplets:
    """Keeps the triplets whose loss is above 0. `rows` (3, T) are the anchors, positives and negatives."""
    loss = (margin + distance_ap.astype(np.float64) - distance_an).astype(np.float32)
    hard = loss > 0
    anchors, positives, negatives = rows[:, hard]
    return Triplets(
        anchors, positives, negatives, distance_ap[hard], distance_an[hard], loss[hard], candidates, int(hard.sum())
    )


def ranked(parts: Iterable[Triplets], id_ranks: np.ndarray, top: int | None) -> Triplets:
    """The `top` hardest triplets of all parts (None: all), hardest first.

    The ids of the anchor, the positive and the negative, in this order, decide ties. `id_ranks` (N,) is the rank of
    each position's id. If `top` is given, memory holds only one part and the hardest triplets so far.
    """
    held: list[Triplets] = []
    for part in parts:
        held.append(part)
        if top is not None:
            held = [_hardest(_joined(held), id_ranks, top)]
    return _hardest(_joined(held), id_ranks, top)


def _joined(parts: list[Triplets]) -> Triplets:
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    joined |= {name: sum(getattr(part, name) for part in parts) for name in ("candidates", "active")}
    return Triplets(**joined)


def _hardest(triplets: Triplets, id_ranks: np.ndarray, top: int | None) -> Triplets:
    if top is not None and triplets.kept > top:
        # Sorting is slow, so first drop the triplets whose loss is below the `top`-th largest loss.
        least = np.partition(triplets.loss, -top)[-top]
        triplets = triplets.take(np.flatnonzero(triplets.loss >= least))
    indices = (triplets.negatives, triplets.positives, triplets.anchors)
    order = np.lexsort((*(id_ranks[index] for index in indices), -triplets.loss))
    return triplets.take(order[:top])


def random_units(pool: Pool) -> int:
    """The number of ordered pairs of labels. The first label of a pair has at least two images."""
    _, sizes = _labels(pool)
    return int((sizes >= 2).sum()) * (len(sizes) - 1)


def random_work(pool: Pool, settings: Mining, start: int, stop: int) -> Triplets:
    """Draws triplets for the label pairs from `start` to `stop` − 1 and returns the hardest."""
    step = max(1, _DRAWN // settings.candidates_per_pair)
    parts = (_of_pairs(pool, settings, first, min(first + step, stop)) for first in range(start, stop, step))
    return ranked(parts, pool.id_ranks, settings.top)


def _labels(pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    # The first row, and the number of rows, of each label.
    _, starts, sizes = np.unique(pool.labels, return_index=True, return_counts=True)
    return starts, sizes


def _of_pairs(pool: Pool, settings: Mining, start: int, stop: int) -> Triplets:
    starts, sizes = _labels(pool)
    own, other = np.divmod(np.arange(start, stop), len(sizes) - 1)
    own = np.flatnonzero(sizes >= 2)[own]
    other += other >= own
    # A draw is a number that stands for a triplet. If the anchor's label has n images and the negative's label has m,
    # the digits of the number in the mixed radix (n, n − 1, m) are the anchor, the positive and the negative.
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
    # Random words, one per candidate: (pairs, candidates_per_pair). Each pair has its own steps of the generator.
    steps = -(-settings.candidates_per_pair // _WORDS)
    generator = np.random.Philox(key=settings.seed, counter=start * steps)
    words = generator.random_raw((stop - start) * steps * _WORDS)
    return words.reshape(stop - start, -1)[:, : settings.candidates_per_pair]
