"""What a run learns from, kept beside its checkpoints: the rows of its photos, and the network that it began with.

A checkpoint's figures and triplets are of these. A run of which an epoch is done goes on only where both are as they
were: a figure of the old table beside one of the new would compare nothing. Before that, a run begins anew.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.util.queue import Queue

from dim.data.manifest import Manifest
from dim.extract.identity import Contents
from dim.io import files, tables
from dim.io.lease import Claim
from dim.model.spec import Source
from dim.train import checkpoint
from dim.train.augmentation import TrainingPhotos
from dim.train.config import TrainConfig
from dim.train.history import Tracking

PHOTOS, NETWORK = "photos.parquet", "network.json"  # in the folder of the checkpoints
PRECISION = "precision"  # of the network, beside what it is


@dataclass(frozen=True)
class Inputs:
    """`photos`: image_id, label, split and content of each row that has a split. `network`: the fields of the spec, the
    fingerprint of the `weights` and, once it is known, the precision.
    """

    photos: pa.Table
    network: dict[str, Any]

    def write(self, run: str) -> None:
        """Keeps these for the checkpoints to come in the run's folder."""
        folder = files.join(run, checkpoint.FOLDER)
        files.make_folder(folder)
        tables.write(files.join(folder, PHOTOS), self.photos)
        files.write_json(files.join(folder, NETWORK), self.network)

    def changed(self, config: TrainConfig) -> str | None:
        """How these differ from what the epochs done in `config.out` are of, in words; None where they don't, or where
        no epoch is done.
        """
        folder = files.join(config.out, checkpoint.FOLDER)
        done = checkpoint.newest_first(folder)
        if not done:
            return None
        if not files.exists(files.join(folder, NETWORK)):
            return f"an earlier dim wrote {folder!r}, which doesn't say what photos its epochs are of"
        since = f"since {config.out!r} finished epoch {done[0]}"
        if changes := _changes(tables.read(files.join(folder, PHOTOS)), self.photos):
            return f"{config.manifest or 'the demo set'!r} has changed {since}: {', '.join(changes)}"
        before = files.read_json(files.join(folder, NETWORK))
        for name, value in self.network.items():
            if before.get(name) != value:
                return f"{config.model!r} has changed {since}: its {name} was {before.get(name)!r} and is {value!r}"
        return None


def kept_precision(run: str) -> str | None:
    """The precision of the epochs done in the folder `run`, in which those to come go on; None where none is done."""
    folder = files.join(run, checkpoint.FOLDER)
    if not checkpoint.newest_first(folder) or not files.exists(files.join(folder, NETWORK)):
        return None
    found: str | None = files.read_json(files.join(folder, NETWORK)).get(PRECISION)
    return found


def of(manifest: Manifest, contents: Contents, source: Source) -> Inputs:
    """What a run on `manifest`, whose photos have these `contents`, that begins with `source` learns from."""
    photos = manifest.table.select(["image_id", "label", "split"]).append_column("content", [contents.contents])
    network = {"weights": source.fingerprint(), **dataclasses.asdict(source.spec)}
    return Inputs(photos.filter(pc.is_valid(photos["split"])), network)


def _changes(before: pa.Table, now: pa.Table) -> list[str]:
    """What became of the rows of one table in the other, in words; the order of rows is no change."""
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
    return [f"{count} {'row' if count == 1 else 'rows'} {what}" for what, count in counts.items() if count]


@dataclass(frozen=True)
class Job:
    """A run: `inputs` identify `photos` and `source`, `precision` is resolved, and with `fit_pca` the network has no
    fitted PCA layer yet. Log records go to `queue`, each epoch's figures to MLflow's `tracking` where there is one.
    Workers write while `claims` are held.
    """

    config: TrainConfig
    photos: TrainingPhotos
    source: Source
    inputs: Inputs
    precision: str
    fit_pca: bool
    queue: Queue
    tracking: Tracking | None
    claims: tuple[Claim, ...]
