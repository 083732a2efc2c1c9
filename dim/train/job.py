"""The driver of a training run checks the input, starts the workers by Ray Train, and writes the report.

Each worker runs `dim.train.loop.do_train`.
"""

import dataclasses
import hashlib
import logging
import platform
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

import dim
from dim.app import cluster, output_folder, progress, worker_placement
from dim.data import manifest as manifests
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.extract import identity
from dim.extract.identity import Contents
from dim.extract.resources import resolve_precision
from dim.io import files, lease, scratch
from dim.mine.mining import check_candidates
from dim.mine.pool import check_labels
from dim.model.backbones import BACKBONES
from dim.model.spec import Source
from dim.report import training as training_report
from dim.train import failures, history, training_set
from dim.train.backend import MultiWorkerTensorFlow
from dim.train.config import TrainConfig
from dim.train.history import MODEL
from dim.train.training_set import Inputs, Job, TrainingPhotos

log = logging.getLogger(__name__)

DEMO = Path(dim.__file__).parent / "assets" / "demo" / "manifest.csv"


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains the run in the folder `config.out`, or resumes it.

    Returns:
        The figures of the run, such as mAP before and after and the best epoch. They are also in result.json.

    Raises:
        UserError: Flags or input are wrong. Both are checked before anything is written.
        JobFailed: A worker cannot go on, or workers failed too often. The same command resumes the run.
    """
    # Paths become absolute, because the workers have other working folders than this process.
    config = dataclasses.replace(
        config, out=files.absolute(config.out), scratch=config.scratch and _on_disk(config.scratch)
    )
    manifest = manifests.read(config.manifest or str(DEMO))
    if config.root:
        identity.require_under(config.root, manifest)
    as_it_came = source = _network(config)
    contents = identity.fingerprint_photos(manifest)
    photos = photos_of(manifest, contents, source, config)
    if config.patience and not len(photos.rows("val")):
        raise UserError(f"--patience needs photos of split val, and {manifest.uri!r} has none; leave it out")
    if source.spec.dimension is None:
        source = with_pca(source, config, len(photos.rows("train")))
    check_candidates(config, source.spec.dimension or source.spec.pooled_dimension)
    inputs = training_set.of(manifest, contents, source)

    # Refuse to resume a run that had other flags, other photos or another network.
    _require_same_flags(config)
    _require_same_inputs(config, inputs)
    scratch.require_own(config.scratch)
    if config.mlflow:
        history.require_mlflow()

    with cluster.connected():
        cluster.require_shared(photos.paths)
        gpus = worker_placement.gpus_per_worker(config.gpus_per_worker)
        kept = training_set.kept_precision(config.out) if config.precision == "auto" else None
        precision = kept or resolve_precision(config.precision, gpus)
        inputs = dataclasses.replace(inputs, network=inputs.network | {training_set.PRECISION: precision})
        named = {"manifest": manifest.uri, "model": config.model}
        with output_folder.opened(config.out, "train", config, named) as out, failures.log_queue() as queue:
            tracking = history.tracked(config.mlflow, config) if config.mlflow else None
            job = Job(config, photos, source, inputs, precision, as_it_came, queue, tracking, lease.claims())
            summary = _run_workers(config, gpus, job)
            log.info("%s", summary["verdict"])
            for warning in summary["warnings"]:
                log.warning("%s", warning)
            training_report.write(config, photos, summary, out)
            if tracking:
                tracking.finished(summary)
            return out.finish(summary | {"model": out.path(MODEL)})


def _on_disk(folder: str) -> str:
    if not files.is_local(folder):
        raise UserError(f"--scratch {folder!r} is in an object store; name a folder on each node's disk")
    return files.locate(folder)[1]


def _network(config: TrainConfig) -> Source:
    """The network that the run begins with. Raises UserError if the layer to pool would be frozen."""
    source = config.source(config.model, layer=config.layer)
    tail, layer = BACKBONES[source.spec.backbone].tail, source.spec.layer
    if config.train_layers == "block5" and layer.partition("_")[0] == tail.partition("_")[0]:
        raise UserError(f"--layer {layer} is one of the frozen layers, up to {tail}; use --train-layers pca or all")
    return source


def photos_of(manifest: Manifest, contents: Contents, source: Source, config: TrainConfig) -> TrainingPhotos:
    """The photos of `manifest` at the input size of `source`. Raises UserError if split train gives no triplets."""
    grouped, splits = config.labels == "groups", manifest.table["split"].to_numpy()
    labels, train = manifest.labels, splits == "train"
    if grouped:
        labels = labels.copy()
        labels[train] = None
        if np.count_nonzero(train) < 2:
            raise UserError(f"split train of {manifest.uri!r} has {np.count_nonzero(train)} photos; groups need two")
    else:
        check_labels(manifest.labels[train], config, f"split train of {manifest.uri!r}")
    return TrainingPhotos(
        image_ids=manifest.image_ids,
        labels=labels,
        splits=splits,
        paths=manifest.paths,
        boxes=manifest.boxes,
        keys=[
            hashlib.sha256(f"{path}\t{photo}".encode()).hexdigest()[:32]
            for path, photo in zip(manifest.paths, contents.contents.to_pylist(), strict=True)
        ],
        image_size=source.spec.image_size,
        resize=source.spec.resize,
        limits=config.limits,
        grouped=grouped,
    )


def with_pca(source: Source, config: TrainConfig, rows: int) -> Source:
    """Adds a PCA layer to `source` and, if it lacks it, the whitening of R-MAC's regions. The workers will fit both.

    `rows` is the number of photos of split train.
    """
    # The covariance of n descriptors has a rank of at most n − 1.
    pooled = source.spec.pooled_dimension
    dimension = min(config.dimension, pooled, rows - 1)
    if dimension < config.dimension:
        log.info("the PCA layer has %d dimensions; %d photos of %d values allow no more", dimension, rows, pooled)
    learned_on = {"manifest": config.manifest or "demo", "split": "train"}
    whitening = {"kind": "pca", "power": config.power, "learned_on": learned_on}
    spec = dataclasses.replace(source.spec, dimension=dimension, whitening=whitening)
    if spec.pooling == "rmac" and spec.region_dimension is None:
        spec = dataclasses.replace(spec, region_dimension=spec.channels, region_whitening=whitening)
    return dataclasses.replace(source, spec=spec)


def _require_same_flags(config: TrainConfig) -> None:
    record = output_folder.record_of(config.out)
    if record is None or record["job"] != "train":
        return  # output.opened refuses the folder of another job
    before = record.get("configuration", {})
    # A scheduled learning rate depends on the number of epochs, so that more of them would have needed other steps.
    fixed = config.lasting() | ({"epochs": config.epochs} if config.scheduled else {})
    # A flag that the run's version of dim did not have was at its default.
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, now in sorted(fixed.items()):
        if (had := before.get(name, defaults[name])) != now:
            raise UserError(
                f"{config.out!r} holds a run with {name} {had!r}, not {now!r}; "
                "give the same flags to resume it, or another --out"
            )


def _require_same_inputs(config: TrainConfig, inputs: Inputs) -> None:
    if changed := inputs.changed(config):
        model = files.join(config.out, MODEL)
        further = f", and --model {model} to go on from its best network" if files.exists(model) else ""
        raise UserError(f"{changed}; give another --out{further}")


def _run_workers(config: TrainConfig, gpus: float, job: Job) -> dict[str, Any]:
    """Runs the workers, and returns the run's figures. Raises UserError or JobFailed if the workers cannot go on."""
    cpus = failures.rounded_cpus(worker_placement.worker_cpus(worker_placement.cpu_share(config.workers, gpus), gpus))
    worker_placement.require_room("training worker", config.workers, cpus, gpus)
    each = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    failures.wait_for_room(config.workers, each)
    log.info("starting %d training worker%s", config.workers, "" if config.workers == 1 else "s")
    with tempfile.TemporaryDirectory() as folder:  # Ray Train needs a folder, although no checkpoint goes there
        trainer = DataParallelTrainer(
            train_worker,
            train_loop_config={"job": job},
            backend_config=MultiWorkerTensorFlow(),
            scaling_config=ScalingConfig(
                # The number is elastic: if a node is lost, training goes on with as many workers as fit.
                num_workers=(1, config.workers) if config.workers > 1 else 1,
                use_gpu=gpus > 0,
                resources_per_worker=each,
                # GPUs exchange gradients faster within a node. CPU workers are spread, so each node has CPUs to decode.
                placement_strategy="PACK" if gpus > 0 else "SPREAD",
            ),
            run_config=RunConfig(
                storage_path=folder,
                failure_config=FailureConfig(max_failures=failures.TRIES - 1),
                callbacks=[failures.Failures(job.queue), failures.Starts(job.queue)],
            ),
        )
        interrupt = signal.getsignal(signal.SIGINT)
        try:
            summary: dict[str, Any] = trainer.fit().return_value
        except (TrainingFailedError, RayActorError) as error:
            log.debug("Ray Train's error:", exc_info=True)
            raise failures.as_dim_error(error) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)  # Ray Train leaves its handler, which would ignore Ctrl-C
    return summary


def train_worker(arguments: dict[str, Any]) -> dict[str, Any]:
    """Runs a worker's part of the job `arguments["job"]` and returns the figures of the run.

    It must not swallow an error: the other workers wait for this worker until Ray Train sees the error and ends them.
    """
    from dim.train import loop  # noqa: PLC0415  (only workers need TensorFlow)

    job: Job = arguments["job"]
    try:
        with progress.counting_for("train"), cluster.connected(), lease.under(job.claims):
            return loop.run(job)
    except Exception as error:
        error.add_note(f"on {platform.node()}")  # Ray Train itself names only the rank
        raise
