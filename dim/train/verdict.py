"""Says whether training helped: the verdict of a run, and its warnings.

The verdict compares two networks query by query on split val: the network as it came, and the best one that the run
made: fitted or after an epoch, and then whitened if that is better still (`Whitened`). The run returns the network as
it came unless the other has a higher mAP.

The 95 % interval is of other objects, as `evaluate.significance` resamples whole objects. Resampling queries would give
a narrower interval, but only of other photos of the same objects: the queries of an object gain or lose together. The
interval does not know that the best of several epochs was chosen on the same queries. Split test has no such bias.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dim.evaluate import significance
from dim.evaluate.significance import MeanDifference
from dim.model.spec import Source
from dim.train.checkpoint import State, mean_of
from dim.train.config import TrainConfig
from dim.train.training_set import Job


@dataclass(frozen=True)
class Whitened:
    """The whitening after training (--final-whitening), compared with the best network before it."""

    kind: str  # "pca" or "learned"
    about: dict[str, Any]  # what model.json says of the PCA layer with this whitening
    ap: np.ndarray  # the AP of each photo of split val, NaN if it has none, (n,)
    ap_before: np.ndarray  # the same without this whitening

    @property
    def kept(self) -> bool:
        """Whether mAP on split val is higher with this whitening. Without queries to judge by, it is not kept."""
        after, before = mean_of(self.ap), mean_of(self.ap_before)
        return after is not None and before is not None and after > before

    def line(self) -> str:
        """What became of the whitening, in one line."""
        after, before = mean_of(self.ap), mean_of(self.ap_before)
        what = f"the {self.kind} whitening after training is {'kept' if self.kept else 'not kept'}"
        if after is None or before is None:
            return f"{what}: there are no validation queries to judge it by"
        return f"{what}: mAP on split val is {after:.4f} with it and {before:.4f} without"


@dataclass(frozen=True)
class Judged:
    """How the best network that a run made compares with the network as it came, on the queries of split val."""

    epoch: int  # the epoch of the best network; 0 if this is the fitted one
    origin: str  # what the network as it came is called
    queries: int  # number of queries that have an AP with both networks
    change: MeanDifference | None  # of the mAP, from the network as it came to the best one; None without queries
    interval: tuple[float, float] | None  # the 95 % interval of the mAP of the network that is kept; None like `change`
    ap: np.ndarray  # the AP of each photo of split val with the network that is kept
    final: str | None = None  # the kind of the whitening after training that the best network has

    @property
    def kept(self) -> int | None:
        """The epoch of the network that the run returns; None if this is the network as it came."""
        return self.epoch if self.change is None or self.change.difference > 0 else None

    @property
    def whitening(self) -> str | None:
        """The kind of the whitening after training, if the network that the run returns has it."""
        return None if self.kept is None else self.final

    @property
    def clear(self) -> bool:
        """Whether the best network is better, and the difference is more than chance."""
        return self.change is not None and self.change.low > 0

    def line(self, model: str) -> str:
        """The verdict in one line. `model` is the folder of the network that is kept."""
        made = f"epoch {self.epoch}" if self.epoch else "the fitted PCA"
        made += f" with the {self.final} whitening after training" if self.final else ""
        if self.change is None:
            return f"not judged, because there are no validation queries; {model!r} holds {made}, the last"
        on = f"on {self.queries} validation queries"
        gain, interval = f"mAP {self.change.difference:+.4f}", self.change.interval_in_words()
        if self.change.low == self.change.high == 0:
            interval = "the AP of no query differs"
        if self.kept is None:
            return (
                f"no better than {self.origin} {on} ({made}, the best: {gain}; {interval}): keep that one, "
                f"which {model!r} holds"
            )
        better = "is better" if self.clear else "may be better"
        return f"{made} {better} than {self.origin}: {gain} {on} ({interval}); {model!r} holds it"


def judge(made: State, labels: np.ndarray, origin: str, whitened: Whitened | None = None) -> Judged:
    """Compares the network of the checkpoint `made` with the network as it came, which is called `origin`.

    `labels` (n,) has the label of each photo of split val. The photos of a label show one object. If `whitened` is
    kept, the network is compared with this whitening.
    """
    ap, final = (whitened.ap, whitened.kind) if whitened and whitened.kept else (made.ap, None)
    common = np.isfinite(made.ap_before) & np.isfinite(ap)
    if not common.any():
        return Judged(made.epoch, origin, 0, None, None, ap, final)
    before, after, objects = made.ap_before[common], ap[common], labels[common].astype(np.str_)
    change = significance.paired_test(before, after, objects)
    better = change.difference > 0
    interval = significance.interval_of_mean(after if better else before, objects)
    return Judged(made.epoch, origin, len(objects), change, interval, ap if better else made.ap_before, final)


def origin(source: Source) -> str:
    """What log and verdict call the network that the run began with, `source`."""
    return "off the shelf" if source.saved is None else "as it came"


def stopped(config: TrainConfig, state: State) -> str:
    """The end of the verdict of a run that `--patience` stopped after the epochs of `state`; else an empty string."""
    if state.epoch >= config.epochs:
        return ""
    epochs = "epoch" if config.patience == 1 else f"{config.patience} epochs"
    return f"; stopped after epoch {state.epoch} of {config.epochs}: mAP on split val did not rise in the last {epochs}"


def warnings(job: Job, state: State, judged: Judged, after: float | None) -> Iterator[str]:
    """The reasons to doubt that training helped, one line each.

    `state` is that of the last epoch. `after` is the mAP on the judged split (test, or else val) of the network that is
    kept.
    """
    config, photos, kept = job.config, job.photos, judged.kept
    on_test = len(photos.rows("test")) > 0
    if judged.change is None:
        yield "there is no split val, or no photo in it shares its label with another: the last epoch is kept"
    elif state.best_first()[0] == 0:
        yield (
            "no epoch was better on split val than the network before the first step; try a smaller --learning-rate "
            f"than {config.learning_rate:g}"
        )
    earlier = {judged.origin: state.map_before} | ({"with the fitted PCA": state.map_fitted} if kept else {})
    best = max(earlier, key=lambda name: earlier[name] or 0.0)
    if kept is not None and after is not None and after < (earlier[best] or 0.0):
        yield (
            f"mAP on split {'test' if on_test else 'val'} is {after:.4f} after training and was {earlier[best]:.4f} "
            f"{best}: training did not help there"
        )
    helped = judged.clear or (on_test and after is not None and after > (state.map_before or 0.0))
    if not helped and (few := _few(job, judged)):
        yield few


def _few(job: Job, judged: Judged) -> str | None:
    """Says what there is too little of to learn from or to judge by, and what helps; None if there is enough."""
    config, train = job.config, job.photos.labels[job.photos.mined()]
    found, helps = [], ["more photos of more objects"]
    if len(train) <= config.dimension:  # the covariance of so few photos cannot fill a PCA
        objects = "" if config.labels == "groups" else f" of {len(set(train))} objects"
        found.append(f"split train has {len(train)} photos{objects}")
    if judged.change is not None and 2 * significance.smallest_p(judged.change.objects) > 1 - significance.CONFIDENCE:
        found.append(f"split val has {judged.queries} queries of {judged.change.objects} objects")
        helps.append("a larger share of them in val (split.py --val-labels)")
    if config.train_layers != "pca":
        helps.append("--train-layers pca, which changes the network less")
    if job.fit_pca:
        helps.append(f"no PCA, which is {config.model!r} {judged.origin}")
    if not found:
        return None
    return f"{' and '.join(found)}, too little to be sure that training helps; what helps: {'; '.join(helps)}"
