"""The training loop that each Ray Train worker runs: embed → mine → fit → validate → checkpoint, every epoch."""

import hashlib
import logging
import platform
import time
from typing import Any

import numpy as np
import ray
import ray.train
import tensorflow as tf
from ray.train.collective import broadcast_from_rank_zero

from dim.app import placement
from dim.errors import JobFailed
from dim.evaluate import metrics
from dim.extract.embedder import set_up_tensorflow
from dim.io import files
from dim.mine.mining import mine
from dim.mine.triplets import Triplets
from dim.model import network
from dim.model.backend import keras
from dim.train import augmentation, checkpoint, failures, history
from dim.train.checkpoint import State
from dim.train.embed import Inference, objects_from_all
from dim.train.features import trunk_of
from dim.train.fit import Fitting, from_pixels
from dim.train.history import MODEL, EpochHistory
from dim.train.locality import ownership
from dim.train.step import TrainedNetwork
from dim.train.training_set import Job
from dim.whiten import fit
from dim.whiten.fit import fit_pca

log = logging.getLogger(__name__)

OPTIMIZERS = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}


def run(job: Job) -> dict[str, Any]:
    """Runs this worker's part of `job`, from the last checkpoint if there is one, and returns the run's figures."""
    context = ray.train.get_context()
    rank = context.get_world_rank()
    # What worker 0 has to say of the run is what all would say.
    failures.speak_through(job.queue, logging.INFO if rank == 0 else logging.WARNING, rank)
    assigned = ray.get_runtime_context().get_assigned_resources()
    set_up_tensorflow(placement.threads(assigned.get("CPU", 0)))
    keras.utils.set_random_seed(job.config.seed)
    strategy = _strategy(context.get_world_size())
    return Run(job, strategy, rank, context.get_world_size()).run()


def _strategy(workers: int) -> tf.distribute.Strategy:
    if workers == 1:
        return tf.distribute.MirroredStrategy()
    how = tf.distribute.experimental.CommunicationImplementation
    chosen = how.NCCL if tf.config.get_visible_devices("GPU") else how.AUTO
    options = tf.distribute.experimental.CommunicationOptions(implementation=chosen)
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


class Run:
    """A run as one worker sees it: its network, its photos, and the state that is checkpointed."""

    def __init__(self, job: Job, strategy: tf.distribute.Strategy, rank: int, workers: int) -> None:
        self.job, self.config, self.photos = job, job.config, job.photos
        self.strategy, self.rank, self.workers = strategy, rank, workers
        self.checkpoints = files.join(job.config.out, checkpoint.FOLDER)
        with strategy.scope():
            model = network.load(job.source, job.precision)
            self.trainee = TrainedNetwork(
                strategy, model, job.source.spec, job.config.train_layers, from_pixels(self.config)
            )
            self.optimizer = OPTIMIZERS[job.config.optimizer](job.config.learning_rate)
            self.optimizer.build(self.trainee.variables)
        trunk = trunk_of(job, self.trainee, workers)
        # Workers on one host share its cache, so its name says who owns what, also in the next run.
        owned = ownership(self.photos, objects_from_all(strategy, platform.node()))
        self.inference = Inference(self.trainee, trunk, job, rank, owned)
        self.fitting = Fitting(job, self.trainee, self.optimizer, trunk, rank=rank, ownership=owned)
        self.history = EpochHistory(job.config.out, job.tracking) if rank == 0 else None

    def run(self) -> dict[str, Any]:
        """Trains and returns the run's figures."""
        state = self._restored()
        self._say_workers(state.epoch if state else 0)
        state = state or self._started()
        for epoch in range(state.epoch, self.config.epochs):
            self._epoch(state, epoch)
        return self._finished(state)

    def _restored(self) -> State | None:
        epoch = self._whole(checkpoint.newest_first(self.checkpoints))
        if epoch is None:
            return None
        state = checkpoint.read(self.checkpoints, epoch, self.trainee.variables, self.optimizer)
        log.info("resumed after epoch %d", state.epoch)
        return state

    def _say_workers(self, done: int) -> None:
        # Batches are the same for any number of workers: fewer of them cost time only.
        if self.config.workers > 1 and done < self.config.epochs:
            fewer = ", as many as there is room for; when more nodes come, all start again from the last checkpoint"
            log.info(
                "from epoch %d on, %d of %d workers train%s",
                done + 1, self.workers, self.config.workers, fewer if self.workers < self.config.workers else "",
            )  # fmt: skip

    def _whole(self, epochs: list[int]) -> int | None:
        # Worker 0 decides for all: what one of several finds on a storage, another may not.
        found: int | None = broadcast_from_rank_zero(
            checkpoint.whole(self.checkpoints, epochs) if self.rank == 0 else None
        )
        return found

    def _started(self) -> State:
        state = State()
        # The head's inputs are made here; the following passes read them back.
        used = self.photos.used()
        rows, vectors = self.inference.embed(used, pooled=True)
        state.unreadable = len(used) - len(rows)
        reasons = self.inference.unreadable()
        if self.rank == 0:
            augmentation.tell(self.config.out, self.photos, reasons)
        if self.job.fit_pca:
            state.map_before = self._judge(history.BEFORE, rows, vectors)
            state.val_before = self.inference.map("val", rows, vectors)
            self._say("off the shelf", state.map_before)
            self._fit_pca(vectors[np.isin(rows, self.photos.rows("train"))])
            state.map_fitted, state.val_fitted = self._map_of(self._judged), self._map_of("val")
        else:
            state.map_before = self._judge(history.BEFORE, *self.inference.embed(self.photos.rows(self._judged)))
            state.val_before = self._map_of("val")
            state.map_fitted, state.val_fitted = state.map_before, state.val_before
        self._say("with the fitted PCA", state.map_fitted)
        if self.rank == 0:
            self.job.inputs.write(self.config.out)
            checkpoint.write(self.checkpoints, state, self.trainee.variables, self.optimizer)
        return state

    def _say(self, when: str, found: float | None) -> None:
        if found is not None:
            log.info("mAP on split %s: %.4f %s", self._judged, found, when)

    def _map_of(self, split: str) -> float | None:
        return self.inference.map(split, *self.inference.embed(self.photos.rows(split)))

    def _judge(self, moment: str, rows: np.ndarray, vectors: np.ndarray) -> float | None:
        """The mAP of the judged split; what its queries find is kept for the report."""
        found = self.inference.rankings(self._judged, rows, vectors)
        if self.rank == 0:
            history.keep_found(self.config.out, moment, found)
        return metrics.mean(found["ap"].to_pylist())

    @property
    def _judged(self) -> str:
        return "test" if len(self.photos.rows("test")) else "val"

    def _fit_pca(self, vectors: np.ndarray) -> None:
        spec = self.job.source.spec
        whitening = fit_pca(fit.moments_of(vectors), spec.dimension, {"split": "train"}, power=self.config.power)
        # All workers take rank 0's: the signs and last digits of eigenvectors may differ between machines.
        kernel, bias = broadcast_from_rank_zero(whitening.as_dense())
        for variable, value in zip(self.trainee.model.get_layer("pca").weights, (kernel, bias), strict=True):
            variable.assign(value)

    def _epoch(self, state: State, epoch: int) -> None:
        clock = _Clock()
        self.inference.reads()  # those before are not this epoch's
        mined = dict.fromkeys(("candidates", "active", "kept", "mean_distance_ap", "mean_distance_an"))
        clock.laps |= {"embed_seconds": 0.0, "mine_seconds": 0.0}
        if epoch % self.config.mine_every == 0 or not len(state.triplets):
            rows, vectors = self.inference.embed(self.photos.mined())
            clock.lap("embed")
            triplets = self._mine(rows, vectors, epoch)
            mined = triplets.summary()
            found = rows[np.stack([triplets.anchors, triplets.positives, triplets.negatives], axis=1)]
            state.triplets = self.photos.image_ids[found]
            clock.lap("mine")
        fitted = self.fitting.fit(self.photos.positions(state.triplets), epoch)
        clock.lap("fit")
        val_map = self._map_of("val")
        clock.lap("validate")
        self._require_equal_weights()
        state.epoch = epoch + 1
        row = {"epoch": epoch + 1, **fitted, "val_map": val_map, **mined, **self.inference.reads(), **clock.laps}
        row["workers"] = self.workers
        state.history.append(row)
        self._checkpoint(state)
        log.info(
            "epoch %d of %d: loss %.4f, %.0f %% of triplets active, val mAP %s, %.0f %% of activations from the cache, "
            "%d computed, %.0f s",
            epoch + 1, self.config.epochs, fitted["loss"], 100 * fitted["active_share"],
            "–" if val_map is None else f"{val_map:.4f}", 100 * row["cached_share"], row["computed"],
            sum(clock.laps.values()),
        )  # fmt: skip

    def _mine(self, rows: np.ndarray, vectors: np.ndarray, epoch: int) -> Triplets:
        triplets = None
        if self.rank == 0:
            # The workers wait here: the tasks may have their CPUs, too.
            labels, image_ids = self.photos.labels[rows], self.photos.image_ids[rows]
            triplets = mine(vectors, labels, image_ids, self.config, beside=True)
            history.keep_hardest(self.config.out, epoch + 1, triplets, image_ids)
        found: Triplets = broadcast_from_rank_zero(triplets)
        return found

    def _require_equal_weights(self) -> None:
        if self.workers == 1:
            return
        own = hashlib.sha256(b"".join(variable.numpy().tobytes() for variable in self.trainee.variables)).hexdigest()
        # All workers see all, so that none goes on to write a checkpoint.
        if len({*objects_from_all(self.strategy, own)}) > 1:
            raise RuntimeError("the workers no longer hold the same weights")

    def _checkpoint(self, state: State) -> None:
        if self.history is None:
            return
        self.history.write(state.history)
        checkpoint.write(self.checkpoints, state, self.trainee.variables, self.optimizer)
        checkpoint.keep(self.checkpoints, {state.best_first()[0], state.epoch, state.epoch - 1})

    def _finished(self, state: State) -> dict[str, Any]:
        best = self._whole(state.best_first())
        if best is None:
            raise JobFailed(f"every checkpoint in {self.checkpoints!r} is damaged; run the same command again")
        checkpoint.read(self.checkpoints, best, self.trainee.variables)
        map_after = self._judge(history.AFTER, *self.inference.embed(self.photos.rows(self._judged)))
        judged_on = self._judged if len(self.photos.rows(self._judged)) else None
        if self.rank == 0:
            network.save(self.trainee.model, self.job.source.spec, files.join(self.config.out, MODEL))
        return {
            "map_before": state.map_before,
            "map_fitted": state.map_fitted,
            "map_after": map_after,
            "val_before": state.val_before,
            "val_fitted": state.val_fitted,
            "val_after": state.val_maps()[best],
            "judged_on": judged_on,
            "epochs": state.epoch,
            "best_epoch": best,
            "workers": self.workers,
            "unreadable": state.unreadable,
            "warnings": list(checkpoint.warnings(self.config, state, best, judged_on, map_after)),
        }


class _Clock:
    """Times the parts of an epoch."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[f"{name}_seconds"] = round(now - self._last, 3)
        self._last = now
