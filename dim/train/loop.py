"""The training loop. `do_train` is a whole run in one function, and all workers execute it together.

In each step (embed, mine, fit, validate, checkpoint, report), the workers wait for each other. So each worker must take
every step.
"""

import logging
from typing import Any

import numpy as np
import ray.train
from ray.train.collective import broadcast_from_rank_zero

from dim.errors import JobFailed
from dim.evaluate import metrics
from dim.io import files
from dim.train import checkpoint, history, verdict
from dim.train.checkpoint import State, mean_of
from dim.train.embed import Embedded
from dim.train.training_set import Job
from dim.train.verdict import Whitened
from dim.train.worker import Clock, Worker, start_worker

log = logging.getLogger(__name__)

# Columns of history.csv with the figures of an epoch's mining. They are empty for an epoch that does not mine.
MINING = ("candidates", "active", "kept", "mean_distance_ap", "mean_distance_an")


def run(job: Job) -> dict[str, Any]:
    """Sets up this process as a worker of `job`, and trains; see `do_train`."""
    return do_train(start_worker(job))


def do_train(worker: Worker) -> dict[str, Any]:
    """Trains the network of `worker`, together with the other workers.

    Always resumes from the newest whole checkpoint in the run's folder. If there is none, `_begin` first measures the
    network and, if necessary, fits its PCA layer. The parts of a resumed run come from these places:

    1. The frozen layers come from the network that the run began with. Their activations may still be cached.
    2. The trained weights and the optimizer's variables come from the checkpoint.
    3. The epochs done, their figures, and the triplets of the last mining come from the checkpoint, too.
    4. The random numbers of the next epoch are drawn anew. They depend only on the run's seed and the epoch's number.

    Returns:
        The figures of the run, such as mAP before and after, the best epoch and the warnings. All workers return the
        same figures.

    Raises:
        JobFailed: The run cannot go on, and another try would fail, too.
        UserError: The photos that can be read give no triplets.
    """
    config, photos = worker.job.config, worker.job.photos

    # Resume, or begin.
    state = worker.resume()
    if state:
        log.info("resumed after epoch %d", state.epoch)
    _log_workers(worker, state.epoch if state else 0)
    state = state or _begin(worker)

    for epoch in range(state.epoch, config.epochs):
        # Stop early if val mAP has not risen for long enough.
        if config.patience and state.epochs_without_gain() >= config.patience:
            break
        clock = Clock()
        worker.inference.reads()  # resets the counts of the features read and computed

        mined: dict[str, Any] = dict.fromkeys(MINING)
        clock.laps |= {"embed_seconds": 0.0, "mine_seconds": 0.0}
        if epoch % config.mine_every == 0 or not len(state.triplets):
            # Embed the training photos with the current weights.
            embedded = worker.inference.embed(photos.mined())
            clock.lap("embed")

            # Without labels, group the photos that are similar with the current weights.
            state.most_similar = config.max_similarity
            if config.labels == "groups":
                state.groups, state.most_similar = worker.group(embedded)

            # Mine the triplets that are hardest for the current weights.
            triplets = worker.mine(embedded, photos.labelled(state.groups), epoch, state.most_similar)
            mined = triplets.summary()
            positions = np.stack([triplets.anchors, triplets.positives, triplets.negatives], axis=1)
            state.triplets = photos.image_ids[embedded.rows[positions]]
            clock.lap("mine")

        # Fit the network to the triplets, batch by batch.
        rows, labels = photos.positions(state.triplets), photos.labelled(state.groups)
        fitted = worker.fitting.fit(rows, labels, epoch, state.most_similar)
        clock.lap("fit")

        # Validate: mAP on split val.
        with worker.averaged():
            state.ap = _aps_of(worker, "val")
        val_map = mean_of(state.ap)
        clock.lap("validate")

        # Write the checkpoint. If the workers hold different weights, an error is raised instead.
        worker.require_equal_weights()
        figures = {"epoch": epoch + 1, **fitted, "val_map": val_map, **mined, **worker.inference.reads(), **clock.laps}
        figures["workers"] = worker.workers
        state.epoch = epoch + 1
        state.history.append(figures)
        worker.save(state)

        # Report the figures to the log, then to Ray Train. Ray Train's report waits for all workers.
        log.info(
            "epoch %d of %d: loss %.4f, %.0f %% active, val mAP %s, %.0f %% of activations from the cache, "
            "%d computed, %.0f s",
            epoch + 1, config.epochs, fitted["loss"], 100 * fitted["active_share"],
            "–" if val_map is None else f"{val_map:.4f}", 100 * figures["cached_share"], figures["computed"],
            sum(clock.laps.values()),
        )  # fmt: skip
        ray.train.report(history.numbers(figures))

    return _finish(worker, state)


def _log_workers(worker: Worker, done: int) -> None:
    config = worker.job.config
    if config.workers > 1 and done < config.epochs:
        fewer = ", as many as there is room for; when more nodes come, all start again from the last checkpoint"
        log.info(
            "from epoch %d on, %d of %d workers train%s",
            done + 1, worker.workers, config.workers, fewer if worker.workers < config.workers else "",
        )  # fmt: skip


def _begin(worker: Worker) -> State:
    """Measures the network at the start, fits its PCA layer if necessary, and writes the checkpoint of epoch 0.

    With R-MAC, the whitening of its regions is fitted first, because the PCA is fitted to the sums of whitened regions.
    """
    job, photos, state = worker.job, worker.job.photos, State()

    # Embed all photos: this fills the feature cache, and shows which photos cannot be read.
    used = photos.used()
    embedded = worker.inference.embed(used, pooled=True)
    state.unreadable = len(used) - len(embedded.rows)
    reasons = worker.inference.unreadable()
    if worker.rank == 0:
        photos.write_unreadable(job.config.out, reasons)

    # Measure the network as it came. If its PCA layer is not fitted yet, fit it and measure the network again.
    if job.fit_pca:
        state.map_before = _judge(worker, history.BEFORE, embedded)
        state.ap_before = worker.inference.average_precisions("val", embedded)
        _log_map(worker, verdict.origin(job.source), state.map_before)
        train = embedded.where(np.isin(embedded.rows, photos.rows("train")))
        if job.fit_regions:
            worker.fit_regions(train.rows)
            train = worker.inference.embed(train.rows, pooled=True)
        worker.fit_pca(train)
        state.map_fitted, state.ap = mean_of(_aps_of(worker, _judged_split(worker))), _aps_of(worker, "val")
        _log_map(worker, "with the fitted PCA", state.map_fitted)
    else:
        state.map_before = state.map_fitted = _judge(worker, history.BEFORE, _embed_judged(worker))
        state.ap_before = state.ap = _aps_of(worker, "val")
        _log_map(worker, verdict.origin(job.source), state.map_before)
    state.val_fitted = mean_of(state.ap)

    if worker.rank == 0:
        job.inputs.write(job.config.out)
    worker.save(state)
    return state


def _finish(worker: Worker, state: State) -> dict[str, Any]:
    """Chooses the network to return, measures and saves it, and returns the figures of the run.

    It is the best network that the run made or, if that is no better on split val, the network as it came.
    """
    job, judged_on = worker.job, _judged_split(worker)
    config, photos = job.config, job.photos
    made = worker.restore_best(state)
    if made is None:
        folder = files.join(config.out, checkpoint.FOLDER)
        raise JobFailed(f"no checkpoint in {folder!r} is whole any more; run the same command again")
    whitens = config.final_whitening != "none" and len(photos.rows("val"))  # split val decides whether it is kept
    final = _whiten(worker, made, photos.labelled(state.groups)) if whitens else None
    judged = verdict.judge(made, photos.labels[photos.rows("val")], verdict.origin(job.source), final)
    if judged.kept is None:
        map_after = state.map_before
        if worker.rank == 0:
            history.keep_found(config.out, history.AFTER, history.found(config.out, history.BEFORE))
    else:
        map_after = _judge(worker, history.AFTER, _embed_judged(worker))
    training = None if judged.kept is None else job.training(state.epoch, judged.kept)
    worker.save_model(training, final.about if final and judged.whitening else None)
    return {
        "map_before": state.map_before,
        "map_fitted": state.map_fitted,
        "map_after": map_after,
        "val_before": state.val_before,
        "val_fitted": state.val_fitted,
        "val_after": mean_of(judged.ap),
        "val_whitened": mean_of(final.ap) if final else None,
        "val_interval": judged.interval,
        "judged_on": judged_on if len(photos.rows(judged_on)) else None,
        "epochs": state.epoch,
        "best_epoch": judged.kept,
        "final_whitening": judged.whitening,
        "verdict": judged.line(files.join(config.out, history.MODEL)) + verdict.stopped(config, state),
        "workers": worker.workers,
        "unreadable": state.unreadable,
        "warnings": list(verdict.warnings(job, state, judged, map_after)),
    }


def _whiten(worker: Worker, made: State, labels: np.ndarray) -> Whitened:
    """Sets the PCA layer of the network of the checkpoint `made` to --final-whitening, if it is better on split val.

    `labels` has the label of each photo.
    """
    train, val = (worker.inference.embed(worker.job.photos.rows(split), pooled=True) for split in ("train", "val"))
    layer, about, ap = worker.whitened(train, val, labels)
    found = Whitened(worker.job.config.final_whitening, about, ap, made.ap)
    if found.kept:
        worker.set_layer("pca", layer)
    log.info("%s", found.line())
    return found


def _judged_split(worker: Worker) -> str:
    return "test" if len(worker.job.photos.rows("test")) else "val"


def _embed_judged(worker: Worker) -> Embedded:
    return worker.inference.embed(worker.job.photos.rows(_judged_split(worker)))


def _judge(worker: Worker, moment: str, embedded: Embedded) -> float | None:
    """The mAP on the judged split: test, or val if test is empty. Rank 0 writes the rankings for the HTML report."""
    rankings, own = worker.inference.rankings(_judged_split(worker), embedded), None
    if rankings is not None:
        history.keep_found(worker.job.config.out, moment, rankings)
        own = metrics.mean(rankings["ap"].to_pylist())
    found: float | None = broadcast_from_rank_zero(own)
    return found


def _aps_of(worker: Worker, split: str) -> np.ndarray:
    return worker.inference.average_precisions(split, worker.inference.embed(worker.job.photos.rows(split)))


def _log_map(worker: Worker, when: str, found: float | None) -> None:
    if found is not None:
        log.info("mAP on split %s: %.4f %s", _judged_split(worker), found, when)
