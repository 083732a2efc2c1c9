"""Embeds photos with the current weights during training, and computes the mAP of the descriptors.

Each worker embeds its own photos of a block of rows. Then rank 0 puts the descriptors of the block into Ray's object
store, so that no worker holds all descriptors. The mAP follows the protocol `labels` of `dim.evaluate`, but is computed
from these blocks.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import tensorflow as tf
from ray.train.collective import broadcast_from_rank_zero

from dim.app.progress import Progress, step
from dim.evaluate import metrics
from dim.extract import embedder
from dim.mine.remote import referring
from dim.search import exact
from dim.search.database import Exact
from dim.search.exact import Part
from dim.train.features import Features, pass_size
from dim.train.locality import Ownership
from dim.train.step import TrainedNetwork
from dim.train.training_set import Job
from dim.whiten.fit import Moments, merged, moments_of

LISTED = 10  # number of photos kept per ranking
BLOCK_BYTES = 2**26  # of the descriptors that each worker gets at a time
RANKING = pa.schema(
    {"query_id": pa.string(), "ap": pa.float64(), "found": pa.list_(pa.string()), "scores": pa.list_(pa.float64())}
)


@dataclass(frozen=True)
class Embedded:
    """The `rows` of the photos that could be read, ascending, and their descriptors, float32 (n, D).

    Rank 0 has the descriptors as `parts` in Ray's object store. The other workers have no parts.
    """

    rows: np.ndarray
    parts: Sequence[Part]

    def where(self, chosen: np.ndarray) -> "Embedded":
        """Only the photos of the mask `chosen` (n,)."""
        parts, start = [], 0
        for part in self.parts:
            mask = chosen[part.start : part.start + part.size]
            if size := int(np.count_nonzero(mask)):
                parts.append(Part(start, size, partial(_filtered, part.load, mask)))
                start += size
        return Embedded(self.rows[chosen], parts)

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> "Embedded":
        """The same photos with the descriptors function(descriptors), for a function of each row alone."""
        parts = [Part(part.start, part.size, partial(_mapped, part.load, function)) for part in self.parts]
        return Embedded(self.rows, parts)


def _mapped(load: Callable[[], np.ndarray], function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return function(load())


def _filtered(load: Callable[[], np.ndarray], mask: np.ndarray) -> np.ndarray:
    vectors: np.ndarray = load()[mask]
    return vectors


class Inference:
    """Embeds the photos of `job` as worker `rank`. All workers must call each method."""

    def __init__(self, trained: TrainedNetwork, features: Features, job: Job, rank: int, ownership: Ownership) -> None:
        self._trained, self._features, self._rank, self._ownership = trained, features, rank, ownership
        self._photos, self._batch_size, self._channels = job.photos, pass_size(job), job.source.spec.channels

    def embed(self, rows: np.ndarray, pooled: bool = False) -> Embedded:
        """Embeds the photos `rows`, which are in ascending order. If `pooled`, the PCA layer is left out."""
        found, parts, start = [rows[:0]], [], 0
        for own, vectors in self.blocks(rows, pooled):
            found.append(own)
            if self._rank == 0 and len(own):
                parts.append(Part(start, len(own), referring(ray.put(vectors))))
                start += len(own)
        return Embedded(np.concatenate(found), parts)

    def blocks(self, rows: np.ndarray, pooled: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Embeds the photos `rows`, as `embed` does.

        Yields to all workers the rows of the photos of a block that could be read, ascending, and their descriptors,
        float32 (n, D). The blocks do not depend on the number of workers.
        """
        step = BLOCK_BYTES // (4 * self._trained.dimension(pooled))
        progress = Progress("embedding", len(self._ownership.rows(rows, self._rank)), errors=True)
        for start in range(0, len(rows), step):
            yield self._block(rows[start : start + step], pooled, progress)

    def _block(self, rows: np.ndarray, pooled: bool, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        shares = [self._ownership.rows(rows, worker) for worker in range(len(self._ownership.machines))]
        # A gather needs the same number of rows from each worker. −1 stands for padding and for unreadable photos.
        size = max(map(len, shares))
        gathered = np.full(size, -1, np.int64)
        vectors = np.zeros((size, self._trained.dimension(pooled)), np.float32)
        for place, (row, vector) in enumerate(self._embed_own(shares[self._rank], pooled, progress).items()):
            gathered[place], vectors[place] = row, vector
        gathered, vectors = from_all(self._trained.strategy, gathered), from_all(self._trained.strategy, vectors)
        order = np.argsort(gathered, kind="stable")[np.count_nonzero(gathered < 0) :]
        if not (np.diff(gathered[order]) > 0).all() or not np.isin(gathered[order], rows).all():
            raise RuntimeError("the workers embedded a photo twice, or one that they were not asked for")
        return gathered[order], vectors[order]

    def _embed_own(self, rows: np.ndarray, pooled: bool, progress: Progress) -> dict[int, np.ndarray]:
        descriptors: dict[int, np.ndarray] = {}
        for own, batch in self._batches(rows, progress):
            descriptors |= zip(own, self._trained.describe(batch, pooled), strict=True)
        return descriptors

    def _batches(self, rows: np.ndarray, progress: Progress) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yields the rows and the activations of the readable photos of `rows`, in batches of one shape."""
        lists = [rows[start : start + self._batch_size].tolist() for start in range(0, len(rows), self._batch_size)]
        for asked, activations in zip(lists, self._features.read(lists), strict=True):
            own = list(activations)
            for positions, batch in embedder.batches(list(activations.values()), self._batch_size):
                yield [own[position] for position in positions], batch
            progress.add(len(asked), errors=len(asked) - len(activations))

    def region_moments(self, rows: np.ndarray) -> Moments:
        """The moments of the vectors of R-MAC's regions of the photos `rows`, before their whitening."""
        own = self._ownership.rows(rows, self._rank)
        progress = Progress("summing", len(own), errors=True)
        found = (moments_of(self._trained.regions(batch)) for _, batch in self._batches(own, progress))
        total = merged(found, self._channels)
        flat = np.concatenate([[total.count], total.mean, total.scatter.reshape(-1)])
        # Each worker has summed its own photos, so only the sums travel. They are added in the order of the ranks.
        return merged(map(self._moments, from_all(self._trained.strategy, flat[None])), self._channels)

    def _moments(self, flat: np.ndarray) -> Moments:
        count, mean, scatter = np.split(flat, [1, 1 + self._channels])
        return Moments(int(count[0]), mean, scatter.reshape(self._channels, self._channels))

    def unreadable(self) -> dict[int, str]:
        """The photos that some worker could not read: row → reason."""
        found = objects_from_all(self._trained.strategy, list(self._features.unreadable.items()))
        return {row: reason for pairs in found for row, reason in pairs}

    def reads(self) -> dict[str, float]:
        """The `cached_share` of the features that all workers read since the last call, and the number `computed`."""
        own = np.array([[self._features.read_count, self._features.computed_count]])
        self._features.read_count = self._features.computed_count = 0
        read, computed = from_all(self._trained.strategy, own).sum(axis=0).tolist()
        return {"cached_share": round(1 - computed / max(1, read), 4), "computed": computed}

    @step("computing mAP")
    def average_precisions(self, split: str, embedded: Embedded) -> np.ndarray:
        """The AP of each photo of `split` (n,), in the order of its rows. NaN without positives, or if not embedded."""
        own = self.own_average_precisions(split, embedded) if self._rank == 0 else None
        found: np.ndarray = broadcast_from_rank_zero(own)
        return found

    def own_average_precisions(self, split: str, embedded: Embedded) -> np.ndarray:
        """The same, computed by rank 0 for itself."""
        rows = self._photos.rows(split)
        found = np.full(len(rows), np.nan)
        found[np.isin(rows, embedded.rows)] = average_precisions(*self._of_split(split, embedded))
        return found

    @step("computing mAP")
    def rankings(self, split: str, embedded: Embedded) -> pa.Table | None:
        """The table `rankings` for the photos of `split` among `embedded`, on rank 0; None on the other workers."""
        return rankings(*self._of_split(split, embedded)) if self._rank == 0 else None

    def _of_split(self, split: str, embedded: Embedded) -> tuple[Sequence[Part], np.ndarray, np.ndarray]:
        chosen = embedded.where(self._photos.splits[embedded.rows] == split)
        return chosen.parts, self._photos.labels[chosen.rows], self._photos.image_ids[chosen.rows]


def average_precisions(parts: Sequence[Part], labels: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """The AP of each photo as a query among the others, float64 (N,), by the trapezoid rule; NaN without a positive.

    Args:
        parts: Descriptors, (N, D).
        labels: str, or None, which matches no label, (N,). A query's positives are the other photos with its label.
        image_ids: Their order breaks ties between scores, (N,).
    """
    return np.array([ap for ap, _ in _judge(parts, labels, image_ids)], np.float64)  # None becomes NaN


def rankings(parts: Sequence[Part], labels: np.ndarray, image_ids: np.ndarray) -> pa.Table:
    """One row per query: `query_id`, `ap` (null without a positive), the LISTED best ids `found`, their `scores`."""
    rows = []
    place = exact.tie_order_of(image_ids)
    for query, (ap, scores) in enumerate(_judge(parts, labels, image_ids)):
        best = exact.best(scores, LISTED, place)
        values = (image_ids[query], ap, image_ids[best].tolist(), scores[best].tolist())
        rows.append(dict(zip(RANKING.names, values, strict=True)))
    return pa.Table.from_pylist(rows, RANKING)


def _judge(
    parts: Sequence[Part], labels: np.ndarray, image_ids: np.ndarray
) -> Iterator[tuple[float | None, np.ndarray]]:
    """For each query, yields its AP (None without a positive) and its scores, (N,). The query itself scores −inf."""
    place = exact.tie_order_of(image_ids)
    database = Exact(parts, place)
    codes = pc.fill_null(pa.array(labels, pa.string()).dictionary_encode().indices, -1).to_numpy()
    scores_of_all = (scores for part in parts for scores in database.scores(part.load()))
    for query, scores in enumerate(scores_of_all):
        positives = np.flatnonzero((codes == codes[query]) & (codes >= 0))
        positives = positives[positives != query]
        scores[query] = -np.inf
        yield metrics.average_precision(np.sort(exact.ranks(scores, positives, place)), len(positives)), scores


def from_all(strategy: tf.distribute.Strategy, values: np.ndarray) -> np.ndarray:
    """Joins the `values` (n, …) of all workers by rank into (workers × n, …). All workers must have the same n."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return values
    gathered: np.ndarray = strategy.gather(tf.constant(values), axis=0).numpy()
    return gathered


def objects_from_all(strategy: tf.distribute.Strategy, value: Any) -> list[Any]:
    """The `value` of each worker, by rank. Each value is sent as JSON, so tuples arrive as lists."""
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = from_all(strategy, np.array([len(content)]))
    padded = np.zeros((1, sizes.max()), np.int32)  # TensorFlow cannot gather bytes
    padded[0, : len(content)] = content
    rows = from_all(strategy, padded).astype(np.uint8)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
