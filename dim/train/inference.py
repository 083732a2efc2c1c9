"""Descriptors and mAP with the current weights: each worker embeds its share of the photos, all get all."""

import numpy as np
import pyarrow as pa

from dim.progress import Progress
from dim.train.gathered import from_all, objects_from_all
from dim.train.inputs import Job
from dim.train.ownership import Ownership
from dim.train.trainee import Trainee
from dim.train.trunk import Trunk, by_shape
from dim.train.validate import mean_average_precision, rankings


class Inference:
    """The network of a run at work on its photos, as worker `rank` of those that own them."""

    def __init__(self, trainee: Trainee, trunk: Trunk, job: Job, rank: int, ownership: Ownership) -> None:
        self._trainee, self._trunk, self._photos, self._batch_size = trainee, trunk, job.photos, job.config.batch_size
        self._rank, self._ownership = rank, ownership

    def embed(self, rows: np.ndarray, pooled: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The readable ones of `rows`, ascending, and their descriptors (n, D); with `pooled`, those before the PCA."""
        if not len(rows):  # of a split that isn't there
            return rows, np.zeros((0, self._trainee.dimension(pooled)), np.float32)
        shares = [self._ownership.rows(rows, worker) for worker in range(len(self._ownership.machines))]
        size = max(map(len, shares))
        # All workers bring the same number of rows; the row number −1 marks one that is missing or unreadable.
        marks = np.full(size, -1, np.int64)
        vectors = np.zeros((size, self._trainee.dimension(pooled)), np.float32)
        for place, (row, vector) in enumerate(self._own(shares[self._rank], pooled).items()):
            marks[place], vectors[place] = row, vector
        marks, vectors = from_all(self._trainee.strategy, marks), from_all(self._trainee.strategy, vectors)
        order = np.argsort(marks, kind="stable")[np.count_nonzero(marks < 0) :]
        if not (np.diff(marks[order]) > 0).all() or not np.isin(marks[order], rows).all():
            raise RuntimeError("the workers brought a row twice, or one that was not asked for")
        return marks[order], vectors[order]

    def _own(self, rows: np.ndarray, pooled: bool) -> dict[int, np.ndarray]:
        lists = [rows[start : start + self._batch_size].tolist() for start in range(0, len(rows), self._batch_size)]
        descriptors: dict[int, np.ndarray] = {}
        progress = Progress("embedding", len(rows), errors=True)
        for asked, activations in zip(lists, self._trunk.read(lists), strict=True):
            for group in by_shape(activations):
                outputs = self._trainee.describe(np.stack([activations[row] for row in group]), pooled)
                descriptors |= dict(zip(group, outputs, strict=True))
            progress.add(len(asked), errors=len(asked) - len(activations))
        return descriptors

    def unreadable(self) -> dict[int, str]:
        """Row → why, of the photos that could not be read; all workers get those of all."""
        found = objects_from_all(self._trainee.strategy, list(self._trunk.unreadable.items()))
        return {row: reason for pairs in found for row, reason in pairs}

    def reads(self) -> dict[str, float]:
        """The share of the activations that all workers have read since this was asked last that came from the cache,
        and how many were computed.
        """
        own = np.array([[self._trunk.asked, self._trunk.computed]])
        self._trunk.asked = self._trunk.computed = 0
        asked, computed = from_all(self._trainee.strategy, own).sum(axis=0).tolist()
        return {"cached_share": round(1 - computed / max(1, asked), 4), "computed": computed}

    def map(self, split: str, rows: np.ndarray, vectors: np.ndarray) -> float | None:
        """The mAP of those of `rows` that are in `split`, by their `vectors`; None where no query has a positive."""
        return mean_average_precision(*self._of(split, rows, vectors))

    def rankings(self, split: str, rows: np.ndarray, vectors: np.ndarray) -> pa.Table:
        """What each of those of `rows` that are in `split` finds among them; see `validate.rankings`."""
        return rankings(*self._of(split, rows, vectors))

    def _of(self, split: str, rows: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = self._photos.splits[rows] == split
        rows = rows[chosen]
        return vectors[chosen], self._photos.labels[rows], self._photos.image_ids[rows]
