"""A worker of a training run: how it is set up, and which steps it takes together with the other workers.

Ray Train starts each worker as a process. All workers build the same network, and each embeds a part of the photos.
`dim.train.loop` calls the steps in the order of the epochs.
"""

import contextlib
import dataclasses
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

from dim.app import progress, worker_placement
from dim.extract.embedder import set_up_tensorflow
from dim.group.components import rows_within
from dim.io import files
from dim.mine.mining import mine
from dim.mine.remote import Remote
from dim.mine.triplets import Triplets
from dim.model import network
from dim.model.backend import keras
from dim.train import checkpoint, failures, fitted_layers, history, optimizer, pseudo_labels
from dim.train.checkpoint import State, mean_of
from dim.train.embed import Embedded, Inference, objects_from_all
from dim.train.features import features_of
from dim.train.fitted_layers import Dense
from dim.train.gradient_descent import Fitting, from_pixels
from dim.train.history import EpochHistory
from dim.train.locality import ownership
from dim.train.pseudo_labels import PseudoLabels
from dim.train.step import TrainedNetwork
from dim.train.training_set import Job
from dim.whiten.fit import Moments

log = logging.getLogger(__name__)


class Worker:
    """Worker `rank` of the `workers` of `job`. The network is `trained`; `inference` embeds, and `fitting` fits."""

    def __init__(self, job: Job, strategy: tf.distribute.Strategy, rank: int, workers: int) -> None:
        config, spec = job.config, job.source.spec
        self.job, self.rank, self.workers, self._strategy = job, rank, workers, strategy
        self._checkpoints = files.join(config.out, checkpoint.FOLDER)
        self._history = EpochHistory(config.out, job.tracking) if rank == 0 else None
        with strategy.scope():
            model = network.load(job.source, job.precision)
            self.trained = TrainedNetwork(strategy, model, spec, config.train_layers, from_pixels(config))
            self._optimizer = optimizer.optimizer_of(config, len(job.photos.mined()), self.trained.variables)
        features = features_of(job, self.trained, workers)
        # Each machine owns photos and caches their features. A machine has the same name in later runs.
        owned = ownership(job.photos, objects_from_all(strategy, platform.node()))
        self.inference = Inference(self.trained, features, job, rank, owned)
        self.fitting = Fitting(job, self.trained, self._optimizer, features, rank=rank, ownership=owned)

    @progress.step("reading the last checkpoint")
    def resume(self) -> State | None:
        """Restores weights and optimizer from the newest whole checkpoint. Returns its state; None if there is none."""
        epoch = self._whole(checkpoint.newest_first(self._checkpoints))
        return None if epoch is None else self._read(epoch)

    def restore_best(self, state: State) -> State | None:
        """Restores the best epoch with a whole checkpoint, and returns its state; None if there is none.

        The weights are the averaged ones if the run averages them.
        """
        epoch = self._whole(self._best_first(state))
        found = None if epoch is None else self._read(epoch)
        optimizer.use_averages(self._optimizer, self.trained.variables)
        return found

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Within this context, the network has the averaged weights if the run averages them."""
        return optimizer.averaged(self._optimizer, self.trained.variables)

    def _read(self, epoch: int) -> State:
        return checkpoint.read(self._checkpoints, epoch, self.trained.variables, self._optimizer)

    def _best_first(self, state: State) -> list[int]:
        # If no PCA layer was fitted, epoch 0 is the network as it came. The run did not make this network.
        return [epoch for epoch in state.best_first() if epoch or self.job.fit_pca]

    def _whole(self, epochs: list[int]) -> int | None:
        # Rank 0 decides for all workers, because a storage may show different files to different workers.
        own = checkpoint.whole(self._checkpoints, epochs) if self.rank == 0 else None
        found: int | None = broadcast_from_rank_zero(own)
        return found

    def save(self, state: State) -> None:
        """Rank 0 writes the figures and the checkpoint of `state`, and deletes checkpoints that are not needed."""
        if self._history is None:
            return
        if state.history:
            self._history.write(state.history)
        with progress.step(f"writing the checkpoint of epoch {state.epoch}"):
            checkpoint.write(self._checkpoints, state, self.trained.variables, self._optimizer)
        if state.epoch:
            checkpoint.keep(self._checkpoints, {self._best_first(state)[0], state.epoch, state.epoch - 1})

    def save_model(self, training: dict[str, Any] | None, whitening: dict[str, Any] | None = None) -> None:
        """Rank 0 writes the model: the network with its current weights or, if `training` is None, as it came.

        `training` says how the network was trained. `whitening` describes its PCA layer, unless the source's spec does.
        """
        if self.rank == 0:
            source = self.job.source if training else self.job.as_it_came
            model = self.trained.model if training else network.load(source)
            spec = dataclasses.replace(source.spec, whitening=whitening) if whitening else source.spec
            with progress.step("writing the network"):
                network.save(model, spec, files.join(self.job.config.out, history.MODEL), training or source.training)

    @progress.step("fitting the whitening of regions")
    def fit_regions(self, rows: np.ndarray) -> None:
        """Sets the whitening of R-MAC's regions to the principal components of the regions of the photos `rows`."""
        self._fit_pca("pooling", self.inference.region_moments(rows), self.trained.dimension(pooled=True))

    @progress.step("fitting the PCA layer")
    def fit_pca(self, embedded: Embedded) -> None:
        """Sets the PCA layer to the principal components of `embedded`, pooled descriptors of split train."""
        moments = fitted_layers.moments(embedded.parts, self.trained.dimension(pooled=True))
        self._fit_pca("pca", moments, self.trained.dimension(pooled=False))

    def _fit_pca(self, layer: str, moments: Moments, width: int) -> None:
        """Fits the layer to the `moments` that rank 0 has."""
        own = None
        if self.rank == 0:
            own = fitted_layers.as_dense(fitted_layers.pca(moments, width, self.job.config.power), width)
        self.set_layer(layer, broadcast_from_rank_zero(own))

    @progress.step("fitting the whitening after training")
    def whitened(self, train: Embedded, val: Embedded, labels: np.ndarray) -> tuple[Dense, dict[str, Any], np.ndarray]:
        """Fits --final-whitening to `train`, and measures it on `val`; both are pooled descriptors.

        `labels` has the label of each photo of the run.

        Returns:
            The weights of the PCA layer with this whitening, what model.json says of them, and the AP of each photo of
            split val. If several whitenings are possible, it is the one with the best mAP there.
        """
        own, config = None, self.job.config
        if self.rank == 0:
            width = self.trained.dimension(pooled=False)
            if config.final_whitening == "learned":
                fitted = fitted_layers.learned(train.parts, labels[train.rows], width, config.budget.share)
            else:
                moments = fitted_layers.moments(train.parts, self.trained.dimension(pooled=True))
                fitted = [fitted_layers.pca(moments, width, config.power)]
            judged = [(one, self.inference.own_average_precisions("val", val.mapped(one.apply))) for one in fitted]
            best, ap = max(judged, key=lambda pair: mean_of(pair[1]) or 0.0)
            own = fitted_layers.as_dense(best, width), self.job.whitening_after(best), ap
        found: tuple[Dense, dict[str, Any], np.ndarray] = broadcast_from_rank_zero(own)
        return found

    def set_layer(self, name: str, weights: Dense) -> None:
        """Sets the kernel and the bias of the layer `name`."""
        for variable, value in zip(self.trained.model.get_layer(name).weights, weights, strict=True):
            variable.assign(value)

    def group(self, embedded: Embedded) -> tuple[np.ndarray, float]:
        """Groups the photos of `embedded`. Returns the table of pseudo-labels, and the greatest cosine of negatives.

        See `PseudoLabels`. Rank 0 groups for all workers.
        """
        own = None
        if self.rank == 0:
            most_rows = rows_within(self.job.config.budget.share, self.trained.dimension(pooled=False))
            own = pseudo_labels.found_in(embedded, self.job.photos.image_ids[embedded.rows], most_rows)
            _, sizes = np.unique(own.table[:, 1], return_counts=True)
            log.info(
                "%d groups of %d photos, whose cosine is %.3f in the median; %d photos are alone, and %d in doubt",
                np.count_nonzero(sizes > 1), sizes[sizes > 1].sum(), own.most_similar, np.count_nonzero(sizes == 1),
                len(embedded.rows) - len(own.table),
            )  # fmt: skip
        found: PseudoLabels = broadcast_from_rank_zero(own)
        most = self.job.config.max_similarity
        return found.table, found.most_similar if most is None else min(most, found.most_similar)

    def mine(self, embedded: Embedded, labels: np.ndarray, epoch: int, most_similar: float | None) -> Triplets:
        """The hardest triplets of the photos of `embedded`, as positions in its rows.

        `labels` has the label of each photo of the run. A negative has a cosine of at most `most_similar`, if any. Rank
        0 mines by Ray tasks. The tasks may use the CPUs of all workers, because the workers wait meanwhile.
        """
        triplets = None
        if self.rank == 0:
            config, photos, rows = self.job.config, self.job.photos, embedded.rows
            image_ids, remote, share = photos.image_ids[rows], Remote(beside=True), config.budget.share
            settings = dataclasses.replace(config.mining(len(rows)), max_similarity=most_similar)
            triplets = mine(embedded.parts, labels[rows], image_ids, settings, remote=remote, share=share).whole()
            history.keep_hardest(self.job.config.out, epoch + 1, triplets, image_ids)
        found: Triplets = broadcast_from_rank_zero(triplets)
        return found

    def require_equal_weights(self) -> None:
        """Raises RuntimeError on every worker if the workers' weights differ, so that no checkpoint is written."""
        if self.workers == 1:
            return
        own = hashlib.sha256(b"".join(variable.numpy().tobytes() for variable in self.trained.variables)).hexdigest()
        if len({*objects_from_all(self._strategy, own)}) > 1:
            raise RuntimeError("the workers no longer hold the same weights")


def start_worker(job: Job) -> Worker:
    """Sets up this process as one of the job's workers: its log, its CPUs, its seed, and its part of the strategy."""
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    # Rank 0 logs the progress of the run; the others would repeat it.
    failures.log_to(job.queue, logging.INFO if rank == 0 else logging.WARNING, rank)
    with progress.step("loading the network"):
        set_up_tensorflow(worker_placement.threads(ray.get_runtime_context().get_assigned_resources().get("CPU", 0)))
        keras.utils.set_random_seed(job.config.seed)
        return Worker(job, _strategy(workers), rank, workers)


def _strategy(workers: int) -> tf.distribute.Strategy:
    if workers == 1:
        return tf.distribute.MirroredStrategy()
    implementation = tf.distribute.experimental.CommunicationImplementation
    chosen = implementation.NCCL if tf.config.get_visible_devices("GPU") else implementation.AUTO
    options = tf.distribute.experimental.CommunicationOptions(implementation=chosen)
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


class Clock:
    """Measures the time of each step of an epoch. `laps` maps a step's name, as `NAME_seconds`, to its seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Ends the step `name`, which began at the end of the step before it."""
        now = time.monotonic()
        self.laps[f"{name}_seconds"] = round(now - self._last, 3)
        self._last = now
