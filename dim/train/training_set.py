"""The input of a training run: the photos, and the network that the run begins with.

`TrainingPhotos` has the photos as the workers use them. `Inputs` identifies the photos and the network, and is stored
with the checkpoints. After the first epoch, a run resumes only with the same inputs, because figures of different
photos cannot be compared. A `Job` is all that a worker gets from the driver.
"""

import dataclasses
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.util.queue import Queue

import dim
from dim.data.config import Resize
from dim.data.limits import LIMITS, Limits
from dim.data.manifest import Manifest
from dim.errors import count_reasons
from dim.extract.identity import Contents
from dim.io import csv_files, files, tables
from dim.io.lease import Claim
from dim.model.spec import Source
from dim.model.whitening import Whitening
from dim.train import checkpoint
from dim.train.config import TrainConfig
from dim.train.history import UNREADABLE, Tracking

log = logging.getLogger(__name__)

PHOTOS, NETWORK = "photos.parquet", "network.json"  # in the folder of the checkpoints
PRECISION = "precision"  # the key of the precision in NETWORK


@dataclass(frozen=True)
class TrainingPhotos:
    """The photos of a run. The row of a photo is the photo's position in these lists and arrays."""

    image_ids: np.ndarray
    labels: np.ndarray  # str; None for a photo without a label
    splits: np.ndarray  # train, val or test; None for a photo that the run does not use
    paths: list[str]
    boxes: list[tuple[float, float, float, float] | None]  # the part of each photo to use; None: the whole photo
    keys: list[str]  # the key of each photo in the feature cache
    image_size: int  # pixels per side; of both sides or of the longest side, as `resize` says
    resize: Resize
    limits: Limits = LIMITS
    grouped: bool = False  # split train has no labels but those of groups, which the run finds

    def rows(self, split: str) -> np.ndarray:
        """The rows of `split`, ascending."""
        return np.flatnonzero(self.splits == split)

    def used(self) -> np.ndarray:
        """The rows that are in any split, ascending."""
        return np.flatnonzero([split is not None for split in self.splits])

    def mined(self) -> np.ndarray:
        """The rows of split train that triplets are mined from, ascending: all that have a label, or may get one."""
        if self.grouped:
            return self.rows("train")
        return np.flatnonzero([label is not None for label in self.labels] & (self.splits == "train"))

    def labelled(self, table: np.ndarray) -> np.ndarray:
        """The label of each row, with those in `table` (n, 2): image ids and labels. See `PseudoLabels`."""
        labels = self.labels.copy()
        labels[self.positions(table[:, 0])] = table[:, 1]
        return labels

    def positions(self, image_ids: np.ndarray) -> np.ndarray:
        """The row of each id in `image_ids`, an array of any shape. The result has the same shape."""
        unique, inverse = np.unique(image_ids, return_inverse=True)
        found = [self._row_of[image_id] for image_id in unique.tolist()]
        return np.array(found, np.int64)[inverse.reshape(image_ids.shape)]

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.image_ids.tolist())}

    def write_unreadable(self, run: str, reasons: dict[int, str]) -> None:
        """Writes a list of the unreadable photos to the folder `run`. `reasons` maps their rows to the reasons."""
        path = files.join(run, UNREADABLE)
        files.delete(path)  # an attempt that died before the first step may have left this file
        if not reasons:
            return
        rows = sorted(reasons)
        columns = {
            "image_id": [self.image_ids[row] for row in rows],
            "path": [self.paths[row] for row in rows],
            "label": [self.labels[row] for row in rows],
            "reason": [reasons[row] for row in rows],
        }
        csv_files.write_escaped(path, pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns])))
        counted = count_reasons(columns["reason"])
        log.warning("photos that could not be read: %d (%s); they are left out; see %s", len(rows), counted, path)


@dataclass(frozen=True)
class Inputs:
    """The identity of the photos and the network of a run."""

    photos: pa.Table  # image_id, label, split and content of each photo that is in a split
    network: dict[str, Any]  # the spec, the fingerprint of the weights and, once it is chosen, the precision

    def write(self, run: str) -> None:
        """Writes the photos and the network into the folder of the checkpoints of `run`."""
        folder = files.join(run, checkpoint.FOLDER)
        files.make_folder(folder)
        tables.write(files.join(folder, PHOTOS), self.photos)
        files.write_json(files.join(folder, NETWORK), self.network)

    def changed(self, config: TrainConfig) -> str | None:
        """Says how the inputs differ from the inputs of the epochs done in `config.out`; None if they are equal."""
        folder = files.join(config.out, checkpoint.FOLDER)
        done = checkpoint.newest_first(folder)
        if not done:
            return None
        if not files.exists(files.join(folder, NETWORK)):
            return f"an earlier dim wrote {folder!r}, without a record of the photos that its epochs used"
        since = f"since {config.out!r} finished epoch {done[0]}"
        if changes := _changes(tables.read(files.join(folder, PHOTOS)), self.photos):
            return f"{config.manifest or 'the demo set'!r} has changed {since}: {', '.join(changes)}"
        before = files.read_json(files.join(folder, NETWORK))
        for name, value in self.network.items():
            if before.get(name) != value:
                return f"{config.model!r} has changed {since}: its {name} was {before.get(name)!r} and is {value!r}"
        return None


def kept_precision(run: str) -> str | None:
    """The recorded precision of the epochs done in the folder `run`, or None. The next epochs keep this precision."""
    folder = files.join(run, checkpoint.FOLDER)
    if not checkpoint.newest_first(folder) or not files.exists(files.join(folder, NETWORK)):
        return None
    found: str | None = files.read_json(files.join(folder, NETWORK)).get(PRECISION)
    return found


def of(manifest: Manifest, contents: Contents, source: Source) -> Inputs:
    """The inputs of a run that begins with the network `source`; `contents` identify the photos of `manifest`."""
    photos = manifest.table.select(["image_id", "label", "split"]).append_column("content", contents.contents)
    network = {"weights": source.fingerprint(), **dataclasses.asdict(source.spec)}
    return Inputs(photos.filter(pc.is_valid(photos["split"])), network)


def _changes(before: pa.Table, now: pa.Table) -> list[str]:
    """How the rows of two tables differ, in words. Their order does not matter."""
    one, two = ({row["image_id"]: row for row in table.to_pylist()} for table in (before, now))
    common = one.keys() & two.keys()

    def differing(column: str) -> int:
        return sum(one[image_id][column] != two[image_id][column] for image_id in common)

    counts = {
        "added": len(two.keys() - one.keys()),
        "removed": len(one.keys() - two.keys()),
        "with another label": differing("label"),
        "in another split": differing("split"),
        "with another photo or box": differing("content"),
    }
    return [f"{count} {'row' if count == 1 else 'rows'} {change}" for change, count in counts.items() if count]


@dataclass(frozen=True)
class Job:
    """All that a worker gets from the driver of a run."""

    config: TrainConfig
    photos: TrainingPhotos
    source: Source  # the network that the run begins with
    inputs: Inputs  # the identity of photos and network
    precision: str  # float32 or bfloat16
    as_it_came: Source  # the network that `--model` names: `source` without the layers that the run fits
    queue: Queue  # takes the workers' log records to the driver
    tracking: Tracking | None  # the MLflow run that gets the figures of each epoch, if any
    claims: tuple[Claim, ...]  # the driver's leases on the run's folder; workers write only while the driver holds them

    @property
    def fit_pca(self) -> bool:
        """Whether the network's PCA layer is fitted before the first step."""
        return self.as_it_came.spec.dimension is None

    @property
    def fit_regions(self) -> bool:
        """Whether the whitening of R-MAC's regions is fitted before the first step, too."""
        return self.as_it_came.spec.region_dimension != self.source.spec.region_dimension

    def whitening_after(self, fitted: Whitening) -> dict[str, Any]:
        """What model.json says of the PCA layer if `fitted` has replaced it after training (see `Spec.whitening`)."""
        before = dict(self.source.spec.whitening or {})
        learned_on = {"manifest": self.config.manifest or "demo", "split": "train", **fitted.learned_on}
        about = {"kind": fitted.kind, "power": fitted.power, "learned_on": learned_on}
        return about | {"earlier": [*before.pop("earlier", []), before]}

    def training(self, epochs: int, best: int) -> dict[str, Any]:
        """How the network after epoch `best` of a run of `epochs` epochs was trained, as model.json has it."""
        return {
            "dim": dim.__version__,
            "manifest": self.config.manifest or "demo",
            "photos": len(self.photos.rows("train")),
            "epochs": epochs,
            "best_epoch": best,
            "precision": self.precision,
            "configuration": {name: value for name, value in self.config.lasting().items() if name != "manifest"},
        }
