"""Fits the network to mined triplets: the gradient descent of one epoch, which `train.loop` calls.

All workers take each step together, on parts of one batch.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from ray.train import collective

from dim.app.progress import Progress
from dim.errors import JobFailed
from dim.io import csv_files, files
from dim.model.backend import keras
from dim.train import batches
from dim.train.augmentation import CachedViews, FreshViews, augmentation_of
from dim.train.batches import ReplicaBatch
from dim.train.config import TrainConfig
from dim.train.features import Features, pass_size
from dim.train.locality import Ownership
from dim.train.loss import ANY, LOSSES
from dim.train.step import Step, TrainedNetwork, local_replicas, packed
from dim.train.training_set import Job
from dim.train.two_pass import TwoPassStep

DIVERGED = "diverged.csv"  # file in the run's folder with the triplets of the step whose loss was not a number


def from_pixels(config: TrainConfig) -> bool:
    """Whether a step runs the whole network on fresh augmented views. Otherwise, it runs the head on features."""
    return augmentation_of(config) is not None and not config.variants


class Fitting:
    """Fits the network `trained` to triplets, as worker `rank`."""

    def __init__(
        self,
        job: Job,
        trained: TrainedNetwork,
        optimizer: keras.optimizers.Optimizer,
        features: Features,
        *,
        rank: int,
        ownership: Ownership,
    ) -> None:
        self._config, self._photos, self._features = job.config, job.photos, features
        local = local_replicas(trained.strategy)
        self._machines, self._owners = np.repeat(ownership.machines, local), ownership.owners
        self._own = slice(rank * local, (rank + 1) * local)
        loss, one_shape = LOSSES[job.config.loss], job.source.spec.resize == "squash"
        function, self._chunk = loss.function(job.config), pass_size(job)
        self._step: Step | TwoPassStep
        if loss.listwise:
            self._step = TwoPassStep(trained, optimizer, function)
        else:
            self._step = Step(trained, optimizer, function, one_shape=one_shape)

    def fit(
        self, triplets: np.ndarray, labels: np.ndarray, epoch: int, most_similar: float | None = None
    ) -> dict[str, Any]:
        """Takes all steps of `epoch` (from 0), and returns the figures of the epoch. All workers must call this method.

        `triplets` (T, 3) has the rows of the anchor, the positive and the negative of each triplet, and `labels` the
        label of each row. A listwise loss leaves out negatives with a cosine above `most_similar`, if any.
        Raises JobFailed if the loss is not a number, or if a photo can no longer be read.
        """
        generator = np.random.default_rng([self._config.seed, epoch])
        size, machines, owners = self._config.batch_size, self._machines, self._owners
        plan = list(batches.epoch(triplets, labels, size, machines=machines, owners=owners, generator=generator))
        rows = [self._rows(batch) for batch in plan]
        seen = sum(map(_size, plan))
        losses, active = [], 0
        progress = Progress("fitting", seen, "triplets", epoch=epoch + 1)
        own = [parts[self._own] for parts in rows]
        for number, (batch, parts, inputs) in enumerate(zip(plan, rows, self._inputs(own, epoch), strict=True)):
            images = [[self._readable(inputs, row) for row in part.tolist()] for part in parts[self._own]]
            loss, hard = self._take_step(batch, parts, images, (labels, ANY if most_similar is None else most_similar))
            if not math.isfinite(loss):
                raise JobFailed(self._diverged(batch, epoch, number))
            losses.append(loss)
            active += hard
            progress.add(_size(batch))
        embedded = sum(len(part) for parts in rows for part in parts)
        judged = embedded if isinstance(self._step, TwoPassStep) else seen
        return {
            "loss": float(np.mean(losses)) if losses else 0.0,
            "active_share": active / max(1, judged),  # of the triplets or, with a listwise loss, of the photos
            "steps": len(losses),
            "images_per_triplet": embedded / max(1, seen),
        }

    def _rows(self, batch: list[ReplicaBatch]) -> list[np.ndarray]:
        """The rows of the photos that each replica embeds. With a listwise loss, each photo is on one replica only."""
        if isinstance(self._step, TwoPassStep):
            return batches.distinct(batch, machines=self._machines, owners=self._owners)
        return [part.rows for part in batch]

    def _take_step(
        self,
        batch: list[ReplicaBatch],
        rows: list[np.ndarray],
        images: list[list[np.ndarray]],
        known: tuple[np.ndarray, float],
    ) -> tuple[float, int]:
        """Takes a step on `batch`. Returns its mean loss, and the number of triplets or photos with a loss.

        `rows` are those of all replicas, and `images` the photos of this worker's replicas. `known` are the labels of
        all photos, and the greatest cosine of a negative.
        """
        if not isinstance(self._step, TwoPassStep):
            return self._step(list(map(packed, images)), [part.indices for part in batch[self._own]], _size(batch))
        whole = np.sort(np.concatenate(rows))
        places = [np.searchsorted(whole, part) for part in rows[self._own]]
        labels = np.unique(known[0][whole].astype(np.str_), return_inverse=True)[1]
        return self._step([packed(part, self._chunk) for part in images], places, labels, known[1])

    def _inputs(self, own: list[list[np.ndarray]], epoch: int) -> Iterator[dict[int, np.ndarray]]:
        """For each batch, yields row → features or pixels. `own` has the rows of this worker's parts of the batch."""
        lists = [np.unique(np.concatenate(parts)).tolist() for parts in own]
        augmentation = augmentation_of(self._config)
        if augmentation is None:
            return self._features.read(lists)
        if from_pixels(self._config):
            return self._features.fresh_views(lists, FreshViews(augmentation, (self._config.seed, epoch)))
        return self._features.read(lists, CachedViews(augmentation, self._config.variants, self._config.seed), epoch)

    def _readable(self, inputs: dict[int, np.ndarray], row: int) -> np.ndarray:
        if row not in inputs:
            raise JobFailed(
                f"photo {self._photos.image_ids[row]!r} was readable when it was mined and no longer is: "
                f"{self._features.unreadable[row]}; repair {self._photos.paths[row]!r} and run the same command again"
            )
        return inputs[row]

    def _diverged(self, batch: list[ReplicaBatch], epoch: int, number: int) -> str:
        """Writes the triplets of step `number` to DIVERGED, and returns the error message."""
        ids = np.concatenate([self._photos.image_ids[part.rows[part.indices]] for part in batch], axis=1)
        path = files.join(self._config.out, DIVERGED)
        if self._own.start == 0:  # rank 0 writes for all
            csv_files.write_escaped(path, pa.table(ids.tolist(), ["anchor_id", "positive_id", "negative_id"]))
        collective.barrier()  # waits until rank 0 has written, as the first worker that fails ends all workers
        return (
            f"the loss is not a number at step {number + 1} of epoch {epoch + 1}; its {ids.shape[1]} triplets are in "
            f"{path!r}, the first of them {ids[:, 0].tolist()}; lower --learning-rate, or try --precision float32, "
            "with another --out"
        )


def _size(batch: list[ReplicaBatch]) -> int:
    return sum(part.indices.shape[1] for part in batch)
