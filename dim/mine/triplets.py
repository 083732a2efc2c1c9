"""Triplets, their table and their order: hardest first."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from dim.mine.pool import Column, strings

_COLUMNS = ("anchors", "positives", "negatives", "distance_ap", "distance_an", "loss")
_SUMMED = 1 << 18  # triplets whose distances are summed at a time


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

    @classmethod
    def none(cls) -> "Triplets":
        """No triplets, of no candidates."""
        rows, distances = np.zeros(0, np.int64), np.zeros(0, np.float32)
        return cls(rows, rows, rows, distances, distances, distances, 0, 0)

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

    def table(self, image_ids: Column, first_rank: int = 1) -> pa.Table:
        """The columns of triplets.parquet: rank, the three ids, distance_ap, distance_an, loss."""
        ids = strings(image_ids)
        named = {f"{name[:-1]}_id": ids.take(pa.array(getattr(self, name))) for name in _COLUMNS[:3]}
        measured = {name: pa.array(getattr(self, name)) for name in _COLUMNS[3:]}
        return pa.table({"rank": pa.array(np.arange(first_rank, first_rank + self.kept)), **named, **measured})

    def summary(self) -> dict[str, Any]:
        """The counts and the mean distances of the triplets. Without triplets, the distances are None."""
        return {"candidates": self.candidates, "active": self.active, "kept": self.kept, **means([self])}


def means(parts: Iterable[Triplets]) -> dict[str, float | None]:
    """`mean_distance_ap` and `mean_distance_an` of all triplets of `parts`, or None without triplets.

    The means are the same for any parts of a multiple of `_SUMMED` triplets each.
    """
    names = ("distance_ap", "distance_an")
    sums: dict[str, list[float]] = {name: [] for name in names}
    kept = 0
    for part in parts:
        kept += part.kept
        for name, start in itertools.product(names, range(0, part.kept, _SUMMED)):
            sums[name].append(float(getattr(part, name)[start : start + _SUMMED].sum(dtype=np.float64)))
    return {f"mean_{name}": math.fsum(sums[name]) / kept if kept else None for name in names}


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


def joined(parts: Sequence[Triplets]) -> Triplets:
    """All triplets of `parts`, one part after the other. `candidates` and `active` are the sums."""
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    return Triplets(
        **columns, **{name: sum(getattr(part, name) for part in parts) for name in ("candidates", "active")}
    )


def hardest(triplets: Triplets, id_ranks: np.ndarray, top: int | None) -> Triplets:
    """The `top` hardest triplets (None: all), hardest first.

    The ids of the anchor, the positive and the negative, in this order, decide ties. `id_ranks` (N,) is the rank of
    each position's id.
    """
    if top is not None and triplets.kept > top:
        # Sorting is slow, so first drop the triplets whose loss is below the `top`-th largest loss.
        least = np.partition(triplets.loss, -top)[-top]
        triplets = triplets.take(np.flatnonzero(triplets.loss >= least))
    indices = (triplets.negatives, triplets.positives, triplets.anchors)
    order = np.lexsort((*(id_ranks[index] for index in indices), -triplets.loss))
    return triplets.take(order[:top])
