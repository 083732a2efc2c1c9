"""What each worker has, brought to all of them. All must call at the same point: each waits for the others.

mAP while training: protocol `labels` on descriptors in memory, as `dim.evaluate` computes it from a store.

Descriptors and mAP with the current weights: each worker embeds its share of the photos, all get all.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from dim.app.progress import Progress
from dim.evaluate import metrics
from dim.search import exact
from dim.train.features import Trunk, by_shape
from dim.train.locality import Ownership
from dim.train.step import TrainedNetwork
from dim.train.training_set import Job


def from_all(strategy: tf.distribute.Strategy, values: np.ndarray) -> np.ndarray:
    """The `values` (n, …) of all workers, in their order, (workers × n, …); n is the same for each."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return values
    gathered: np.ndarray = strategy.gather(tf.constant(values), axis=0).numpy()
    return gathered


def objects_from_all(strategy: tf.distribute.Strategy, value: Any) -> list[Any]:
    """What JSON makes of the `value` of each worker, in their order."""
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = from_all(strategy, np.array([len(content)]))
    padded = np.zeros((1, sizes.max()), np.int32)  # bytes can't be gathered
    padded[0, : len(content)] = content
    rows = from_all(strategy, padded).astype(np.uint8)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


LISTED = 10  # of each list that is kept


def mean_average_precision(vectors: np.ndarray, labels: np.ndarray, image_ids: np.ndarray) -> float | None:
    """The mean trapezoid AP of each row of `vectors` (N, D) as a query among the others; positives share its label.

    Rows without a positive are left out of the mean; None where there is no other row. `labels` (N,): str or None.
    """
    return metrics.mean(ap for ap, _ in _judged(vectors, labels, image_ids))


def rankings(vectors: np.ndarray, labels: np.ndarray, image_ids: np.ndarray) -> pa.Table:
    """The same queries one by one: `query_id`, `ap` (null without a positive), and what heads the list of each: the
    ids `found` and their `scores`.
    """
    rows: dict[str, list[object]] = {"query_id": [], "ap": [], "found": [], "scores": []}
    place = exact.tie_order_of(image_ids)
    for query, (ap, scores) in enumerate(_judged(vectors, labels, image_ids)):
        best = exact.best(scores, LISTED, place)
        values = (image_ids[query], ap, image_ids[best].tolist(), scores[best].tolist())
        for column, value in zip(rows.values(), values, strict=True):
            column.append(value)
    types = (pa.string(), pa.float64(), pa.list_(pa.string()), pa.list_(pa.float64()))
    return pa.table({name: pa.array(column, kind) for (name, column), kind in zip(rows.items(), types, strict=True)})


def _judged(
    vectors: np.ndarray, labels: np.ndarray, image_ids: np.ndarray
) -> Iterator[tuple[float | None, np.ndarray]]:
    """Each query's AP and its scores (N,), its own −inf."""
    place = exact.tie_order_of(image_ids)
    for query, scores in enumerate(exact.scores(vectors, [vectors], len(vectors))):
        positives = np.flatnonzero(labels == labels[query]) if labels[query] is not None else np.zeros(0, np.int64)
        positives = positives[positives != query]
        scores[query] = -np.inf
        yield metrics.average_precision(np.sort(exact.ranks(scores, positives, place)), len(positives)), scores


class Inference:
    """The network of a run at work on its photos, as worker `rank` of those that own them."""

    def __init__(self, trainee: TrainedNetwork, trunk: Trunk, job: Job, rank: int, ownership: Ownership) -> None:
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
