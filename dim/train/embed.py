"""Embedding and validation during training: the descriptors of photos by the current weights, and their mAP.

Each worker embeds the photos that it owns, and all workers get all descriptors. The mAP is that of `dim.evaluate`'s
protocol `labels`, computed from descriptors in memory.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from dim.app.progress import Progress
from dim.evaluate import metrics
from dim.extract import embedder
from dim.search import exact
from dim.train.features import Features
from dim.train.locality import Ownership
from dim.train.step import TrainedNetwork
from dim.train.training_set import Job

LISTED = 10  # photos of each ranking that are kept
RANKING = pa.schema(
    {"query_id": pa.string(), "ap": pa.float64(), "found": pa.list_(pa.string()), "scores": pa.list_(pa.float64())}
)


class Inference:
    """Embeds the photos of `job` as worker `rank`. All workers must call each method, and all get the same result."""

    def __init__(self, trained: TrainedNetwork, features: Features, job: Job, rank: int, ownership: Ownership) -> None:
        self._trained, self._features, self._rank, self._ownership = trained, features, rank, ownership
        self._photos, self._batch_size = job.photos, job.config.batch_size

    def embed(self, rows: np.ndarray, pooled: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Embeds `rows`, which ascend; with `pooled`, without the PCA layer.

        Returns:
            The readable ones of `rows`, ascending, and their descriptors, float32 (n, D).
        """
        if not len(rows):
            return rows, np.zeros((0, self._trained.dimension(pooled)), np.float32)
        shares = [self._ownership.rows(rows, worker) for worker in range(len(self._ownership.machines))]
        # A gather takes equally many rows from each worker: −1 stands for padding and for unreadable photos.
        size = max(map(len, shares))
        gathered = np.full(size, -1, np.int64)
        vectors = np.zeros((size, self._trained.dimension(pooled)), np.float32)
        for place, (row, vector) in enumerate(self._embed_own(shares[self._rank], pooled).items()):
            gathered[place], vectors[place] = row, vector
        gathered, vectors = from_all(self._trained.strategy, gathered), from_all(self._trained.strategy, vectors)
        order = np.argsort(gathered, kind="stable")[np.count_nonzero(gathered < 0) :]
        if not (np.diff(gathered[order]) > 0).all() or not np.isin(gathered[order], rows).all():
            raise RuntimeError("the workers embedded a photo twice, or one that they were not asked for")
        return gathered[order], vectors[order]

    def _embed_own(self, rows: np.ndarray, pooled: bool) -> dict[int, np.ndarray]:
        lists = [rows[start : start + self._batch_size].tolist() for start in range(0, len(rows), self._batch_size)]
        descriptors: dict[int, np.ndarray] = {}
        progress = Progress("embedding", len(rows), errors=True)
        for asked, activations in zip(lists, self._features.read(lists), strict=True):
            own = list(activations)
            for positions, batch in embedder.batches(list(activations.values()), self._batch_size):
                outputs = self._trained.describe(batch, pooled)
                descriptors |= zip([own[position] for position in positions], outputs, strict=True)
            progress.add(len(asked), errors=len(asked) - len(activations))
        return descriptors

    def unreadable(self) -> dict[int, str]:
        """Row → why, of the photos that some worker could not read."""
        found = objects_from_all(self._trained.strategy, list(self._features.unreadable.items()))
        return {row: reason for pairs in found for row, reason in pairs}

    def reads(self) -> dict[str, float]:
        """`cached_share` and number `computed` of the features that all workers read since the last call."""
        own = np.array([[self._features.read_count, self._features.computed_count]])
        self._features.read_count = self._features.computed_count = 0
        read, computed = from_all(self._trained.strategy, own).sum(axis=0).tolist()
        return {"cached_share": round(1 - computed / max(1, read), 4), "computed": computed}

    def map(self, split: str, rows: np.ndarray, vectors: np.ndarray) -> float | None:
        """The mAP of those of `rows` that are in `split`, by their `vectors`; None if no query has a positive."""
        return mean_average_precision(*self._of_split(split, rows, vectors))

    def rankings(self, split: str, rows: np.ndarray, vectors: np.ndarray) -> pa.Table:
        """The `rankings` of those of `rows` that are in `split`, by their `vectors`."""
        return rankings(*self._of_split(split, rows, vectors))

    def _of_split(self, split: str, rows: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = self._photos.splits[rows] == split
        rows = rows[chosen]
        return vectors[chosen], self._photos.labels[rows], self._photos.image_ids[rows]


def mean_average_precision(vectors: np.ndarray, labels: np.ndarray, image_ids: np.ndarray) -> float | None:
    """The mean trapezoid AP of each photo as a query among the others; None if there is no query.

    Args:
        vectors: Descriptors, (N, D).
        labels: str or None, (N,). Positives share a label. A photo without a label, or alone with it, is no query.
        image_ids: They break ties, (N,).
    """
    return metrics.mean(ap for ap, _ in _judge(vectors, labels, image_ids))


def rankings(vectors: np.ndarray, labels: np.ndarray, image_ids: np.ndarray) -> pa.Table:
    """The head of each query's ranking: `query_id`, `ap` (null without a positive), the ids `found`, their `scores`."""
    rows = []
    place = exact.tie_order_of(image_ids)
    for query, (ap, scores) in enumerate(_judge(vectors, labels, image_ids)):
        best = exact.best(scores, LISTED, place)
        values = (image_ids[query], ap, image_ids[best].tolist(), scores[best].tolist())
        rows.append(dict(zip(RANKING.names, values, strict=True)))
    return pa.Table.from_pylist(rows, RANKING)


def _judge(vectors: np.ndarray, labels: np.ndarray, image_ids: np.ndarray) -> Iterator[tuple[float | None, np.ndarray]]:
    """Each query's AP and its scores (N,), with −inf for itself."""
    place = exact.tie_order_of(image_ids)
    for query, scores in enumerate(exact.scores(vectors, [vectors], len(vectors))):
        positives = np.flatnonzero(labels == labels[query]) if labels[query] is not None else np.zeros(0, np.int64)
        positives = positives[positives != query]
        scores[query] = -np.inf
        yield metrics.average_precision(np.sort(exact.ranks(scores, positives, place)), len(positives)), scores


def from_all(strategy: tf.distribute.Strategy, values: np.ndarray) -> np.ndarray:
    """The `values` (n, …) of all workers in their order, (workers × n, …); n must be the same for each."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return values
    gathered: np.ndarray = strategy.gather(tf.constant(values), axis=0).numpy()
    return gathered


def objects_from_all(strategy: tf.distribute.Strategy, value: Any) -> list[Any]:
    """The `value` of each worker in their order, as JSON carries it."""
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = from_all(strategy, np.array([len(content)]))
    padded = np.zeros((1, sizes.max()), np.int32)  # TensorFlow cannot gather bytes
    padded[0, : len(content)] = content
    rows = from_all(strategy, padded).astype(np.uint8)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
