"""An epoch of train.py against a faithful port of the prototype's, and what each measure contributes.

    python tests/benchmarks/epoch.py --manifest $DIM_BENCH/manifest.csv

Ours is run whole, with the parts of the training loop in this process: embed the photos of split train again, mine, fit
1,600 triplets; block5 and PCA are trained, the cache is filled (`fill_seconds`). The prototype's is extrapolated from a
measured part, `prototype` shows the arithmetic: each photo through the network three times, one at a time, float32;
12,740 random candidates ranked in a table row by row (run whole); 50 steps of 32 triplets through three branches, the
full network each.

`without` has the seconds of our epoch with one measure switched off, from a measured part too: the cache, images shared
within a batch, bfloat16, mining by matrix products. `loss_difference` is the largest relative difference between the
losses of the same steps with and without the cache. Prints one JSON line.
"""

import argparse
import json
import os
import tempfile
import time
from typing import Any
from unittest import mock

import keras
import numpy as np
import pandas as pd
import ray
import tensorflow as tf

from dim.app.memory import budget
from dim.data import manifest as manifests
from dim.extract import identity
from dim.extract.embedder import set_up_tensorflow
from dim.mine.mining import mine
from dim.mine.remote import Remote, referring
from dim.model import network, spec
from dim.model.devices import best_precision
from dim.search.exact import Part
from dim.train import batches
from dim.train.batches import ReplicaBatch
from dim.train.config import TrainConfig
from dim.train.embed import Inference
from dim.train.feature_cache import FeatureCache
from dim.train.features import Features, Ingest
from dim.train.gradient_descent import Fitting
from dim.train.job import DEMO, photos_of, with_pca
from dim.train.locality import ownership
from dim.train.step import TrainedNetwork
from dim.train.training_set import Job, TrainingPhotos
from dim.whiten import fit
from dim.whiten.fit import fit_pca

CANDIDATES, MARGIN, TRIPLETS, BATCH = 12_740, 0.1, 1600, 32
PART = 3  # steps of a measured part
CURVE = 8  # steps whose losses are compared
FEATURES = 24  # photos of a measured part


class Ours:
    """The parts of a run on the photos of split train, as `dim.train.worker.Worker` puts them together."""

    def __init__(self, config: TrainConfig, precision: str, gigabytes: float = 50.0) -> None:
        read = manifests.read(str(config.manifest)).select("train")
        source = spec.resolve(config.model, image_size=config.image_size)
        photos = photos_of(read, identity.fingerprint_photos(read), source, config)
        self.config, self.source = config, with_pca(source, config, len(photos.image_ids))
        self.photos, self.rows = photos, np.arange(len(photos.image_ids))
        job = Job(config, photos, self.source, None, precision, source, None, None, ())  # type: ignore[arg-type]
        strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
        with strategy.scope():
            keras.utils.set_random_seed(0)
            model = network.load(self.source, precision)
            self.trained = TrainedNetwork(strategy, model, self.source.spec, "block5", False)
            self.optimizer = keras.optimizers.Adam(config.learning_rate)
            self.optimizer.build(self.trained.variables)
        cache = FeatureCache(f"{config.scratch}/{gigabytes}", precision, int(gigabytes * 1e9))
        threads = os.cpu_count() or 1
        features = Features(
            photos, Ingest(photos, BATCH, 1), cache, self.trained.trunk, batch_size=BATCH, threads=threads
        )
        alone = ownership(photos, ["here"])
        self.inference = Inference(self.trained, features, job, 0, alone)
        self.fitting = Fitting(job, self.trained, self.optimizer, features, rank=0, ownership=alone)

    def fill(self, rows: np.ndarray) -> float:
        """Computes what is frozen of `rows` and fits the PCA on them; the seconds."""
        started = time.perf_counter()
        ((_, vectors),) = self.inference.blocks(rows, pooled=True)
        seconds = time.perf_counter() - started
        dimension = self.source.spec.dimension
        fitted = fit_pca(fit.moments_of(vectors), dimension, {"split": "train"}, power=self.config.power)
        for variable, value in zip(self.trained.model.get_layer("pca").weights, fitted.as_dense(), strict=True):
            variable.assign(value)
        return seconds

    def trace(self) -> None:
        """Traces what is traced once in a run."""
        self.inference.embed(self.rows[:BATCH])
        self.fitting.fit(self.rows[: 3 * BATCH].reshape(3, BATCH).T, self.photos.labels, 0)

    def weights(self) -> list[np.ndarray]:
        """The trained weights."""
        return [variable.numpy() for variable in self.trained.variables]

    def restore(self, weights: list[np.ndarray]) -> None:
        """Takes `weights`, and forgets what the optimizer knows of others."""
        for variable, value in zip(self.trained.variables, weights, strict=True):
            variable.assign(value)
        for variable in self.optimizer.variables:
            if variable is not self.optimizer.learning_rate:
                variable.assign(keras.ops.zeros_like(variable))

    def mined(self, vectors: np.ndarray) -> np.ndarray:
        """The hardest triplets (T, 3)."""
        parts = [Part(0, len(vectors), referring(ray.put(vectors)))]
        labels, image_ids, share = self.photos.labels, self.photos.image_ids, budget(None).share
        found = mine(parts, labels, image_ids, self.config, remote=Remote(), share=share).whole()
        return np.stack([found.anchors, found.positives, found.negatives], axis=1)

    def losses(self, triplets: np.ndarray) -> list[float]:
        """The loss of each of the first steps, one after the other."""
        parts = (triplets[start : start + BATCH] for start in range(0, CURVE * BATCH, BATCH))
        return [self.fitting.fit(part, self.photos.labels, 0)["loss"] for part in parts]

    def steps_seconds(self, triplets: np.ndarray) -> float:
        """The seconds of an epoch's steps, from those of a few."""
        started = time.perf_counter()
        steps = self.fitting.fit(triplets[: PART * BATCH], self.photos.labels, 0)["steps"]
        return (time.perf_counter() - started) * (TRIPLETS // BATCH) / steps


def laps(ours: Ours) -> tuple[dict[str, float], np.ndarray]:
    """The seconds of our epoch, and its triplets."""
    clock = [time.perf_counter()]
    ((_, vectors),) = ours.inference.blocks(ours.rows)
    clock.append(time.perf_counter())
    triplets = ours.mined(vectors)
    clock.append(time.perf_counter())
    ours.fitting.fit(triplets, ours.photos.labels, 0)
    clock.append(time.perf_counter())
    seconds = dict(zip(("embed", "mine", "fit"), np.diff(clock).round(2).tolist(), strict=True))
    return seconds | {"total": round(clock[-1] - clock[0], 2)}, triplets


def not_shared(triplets: np.ndarray) -> ReplicaBatch:
    """A per-replica batch that shares no image between triplets."""
    return ReplicaBatch(triplets.T.reshape(-1), np.arange(triplets.size).reshape(3, -1))


def without(ours: Ours, triplets: np.ndarray, epoch: dict[str, float]) -> dict[str, Any]:
    """The seconds of our epoch with each measure switched off."""
    some, share = ours.rows[: 4 * BATCH], len(ours.rows) / (4 * BATCH)
    none_kept = Ours(ours.config, best_precision(False), gigabytes=0.0)
    none_kept.trace()
    embed = seconds_of(lambda: none_kept.inference.embed(some)) * share
    found = {"cache": embed + epoch["mine"] + none_kept.steps_seconds(triplets)}
    with mock.patch.object(batches, "_replica_batch", not_shared):
        found["sharing"] = epoch["embed"] + epoch["mine"] + ours.steps_seconds(triplets)
    plain = Ours(ours.config, "float32")
    plain.inference.embed(np.union1d(np.unique(triplets[: PART * BATCH]), some))
    plain.trace()
    embed = seconds_of(lambda: plain.inference.embed(some)) * share
    found["bfloat16"] = embed + epoch["mine"] + plain.steps_seconds(triplets)
    ((_, vectors),) = ours.inference.blocks(ours.rows)
    ranking = seconds_of(lambda: ranked_by_row(vectors, ours.photos))
    found["mining by products"] = epoch["embed"] + ranking + epoch["fit"]
    return {name: round(value, 1) for name, value in found.items()}


def seconds_of(call: Any) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def ranked_by_row(vectors: np.ndarray, photos: TrainingPhotos) -> pd.DataFrame:
    """The prototype's ranking: random candidates in a table, the loss of each computed row by row; the hardest."""
    random = np.random.default_rng(0)
    labels = np.unique(photos.labels.astype(str), return_inverse=True)[1]
    sizes = np.bincount(labels)
    anchors = random.choice(np.flatnonzero(sizes[labels] > 1), CANDIDATES)
    table = pd.DataFrame({"anchor": anchors, "positive": 0, "negative": 0, "loss": 0.0})
    for row in table.index:
        anchor = table.loc[row, "anchor"]
        mates = np.flatnonzero(labels == labels[anchor])
        table.loc[row, "positive"] = random.choice(mates[mates != anchor])
        table.loc[row, "negative"] = random.choice(np.flatnonzero(labels != labels[anchor]))
    for row in table.index:
        a, p, n = (vectors[table.loc[row, side]] for side in ("anchor", "positive", "negative"))
        table.loc[row, "loss"] = max(0.0, MARGIN + float(np.sum((a - p) ** 2)) - float(np.sum((a - n) ** 2)))
    return table.sort_values("loss", ascending=False).head(TRIPLETS)


def prototype_model(size: int) -> keras.Model:
    """The prototype's network for three images: branches that share their weights."""
    inner = keras.Input((size, size, 3))
    whole = keras.applications.VGG16(include_top=False, weights=None, input_tensor=inner)
    for layer in whole.layers:
        layer.trainable = layer.name.startswith("block5")
    x = keras.layers.GlobalMaxPooling2D()(whole.get_layer("block5_pool").output)
    x = keras.layers.UnitNormalization()(x)
    x = keras.layers.UnitNormalization()(keras.layers.Dense(512, kernel_initializer="identity")(x))
    one = keras.Model(inner, x)
    images = [keras.Input((size, size, 3)) for _ in range(3)]
    three = keras.Model(images, keras.layers.Concatenate()([one(image) for image in images]))
    three.compile(optimizer=keras.optimizers.Adam(1e-5), loss=prototype_loss, jit_compile=False)  # XLA is slower
    return three


def prototype_loss(_: Any, y: Any) -> Any:
    """The triplet loss of the three branches' outputs, side by side."""
    a, p, n = keras.ops.split(y, 3, axis=-1)
    distances = (keras.ops.sum(keras.ops.square(a - other), axis=-1) for other in (p, n))
    near, far = distances
    return keras.ops.maximum(MARGIN + near - far, 0.0)


def prototype(photos: TrainingPhotos, count: int) -> dict[str, Any]:
    """The seconds of an epoch of the prototype: a part of each, and what that makes for the whole."""
    three = prototype_model(photos.image_size)
    rows = range(FEATURES)
    images = Ingest(photos, FEATURES, 1).decoded(rows, [""] * FEATURES)
    batch = np.stack([image for image in images if not isinstance(image, str)]).astype(np.float32) / 255
    predict = tf.function(lambda image: three([image, image, image], training=False))
    predict(batch[:1])
    features = seconds_of(lambda: [predict(image[None]) for image in batch]) / len(batch)
    vectors = np.random.default_rng(0).standard_normal((count, 512)).astype(np.float32)
    ranking = seconds_of(lambda: ranked_by_row(vectors, photos))
    triplets = [batch[np.arange(BATCH) % len(batch)] for _ in range(3)]
    nothing = np.zeros((BATCH, 1), np.float32)
    three.train_on_batch(triplets, nothing)
    step = seconds_of(lambda: [three.train_on_batch(triplets, nothing) for _ in range(2)]) / 2
    steps = TRIPLETS // BATCH
    total = count * features + ranking + steps * step
    return {
        "seconds_a_photo": round(features, 3),
        "ranking_seconds": round(ranking, 2),
        "seconds_a_step": round(step, 2),
        "arithmetic": f"{count} × {features:.3f} + {ranking:.2f} + {steps} × {step:.2f}",
        "total": round(total, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", default=str(DEMO))
    parser.add_argument("--image-size", type=int, default=224)
    arguments = parser.parse_args()
    set_up_tensorflow(os.cpu_count() or 1)
    ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            manifest=arguments.manifest,
            image_size=arguments.image_size,
            top=TRIPLETS,
            batch_size=BATCH,
            margin=MARGIN,
            scratch=folder,
        )
        ours = Ours(config, best_precision(False))
        fill = ours.fill(ours.rows)
        start = ours.weights()
        ours.trace()
        ours.restore(start)
        epoch, triplets = laps(ours)
        ours.restore(start)
        kept = ours.losses(triplets)
        again = Ours(config, best_precision(False), gigabytes=0.0)
        again.restore(start)
        computed = again.losses(triplets)
        difference = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(kept, computed, strict=True))
        ours.restore(start)
        off = without(ours, triplets, epoch)
        theirs = prototype(ours.photos, len(ours.rows))
    ray.shutdown()
    result = {
        "photos": len(ours.rows),
        "triplets": len(triplets),
        "cpus": os.cpu_count(),
        "epoch": epoch,
        "fill_seconds": round(fill, 1),
        "prototype": theirs,
        "ratio": round(theirs["total"] / epoch["total"], 1),
        "without": off,
        "losses": {"cached": kept, "computed": computed},
        "loss_difference": difference,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
