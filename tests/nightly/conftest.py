"""Nights over small photos of a few labels, embedded by a stand-in for Ray and the network, which costs neither."""

import contextlib

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dim import cluster, tables
from dim.extract import job as extraction
from dim.extract import pipeline, store
from dim.extract.resources import Resources
from dim.nightly.config import Measurement, NightlyConfig

GOOD, WORSE = "vgg16-gem", "vgg16-mac"


class Photos:
    """A folder of photos and its manifest; the photos of a label look alike."""

    def __init__(self, folder):
        self.folder, self.manifest, self.rows = folder, str(folder / "photos.csv"), []
        folder.mkdir()

    def add(self, label, count):
        colours = np.random.default_rng(label).integers(40, 215, (1, 32, 3))
        for _ in range(count):
            name = f"{label}-{len(self.rows)}"
            noise = np.random.default_rng([label, len(self.rows)]).integers(-25, 26, (32, 32, 3))
            Image.fromarray((colours + noise).astype(np.uint8)).save(self.folder / f"{name}.png")
            self.rows.append({"image_id": name, "path": f"{name}.png", "label": str(label), "split": "test"})
        tables.write(self.manifest, pa.Table.from_pylist(self.rows))


@pytest.fixture
def photos(tmp_path):
    """Twelve labels of four photos each."""
    made = Photos(tmp_path / "photos")
    for label in range(12):
        made.add(label, 4)
    return made


@pytest.fixture
def embedded(monkeypatch):
    """A network that tells labels apart, or, where it pools by `mac`, hardly does. Gives the ids that went through."""
    seen = []

    def run(rows, recipe, dtype, _):
        for row in rows.to_pylist():
            seen.append(row["image_id"])
            pixels = np.asarray(Image.open(row["path"]), np.float32)
            vector = pixels.mean(axis=0).reshape(-1) - pixels.mean()
            if recipe.source.spec.pooling == "mac":
                vector += np.random.default_rng(len(seen)).normal(0, 300, vector.shape)
            known = {
                "descriptor": (vector / np.linalg.norm(vector)).tolist(),
                "status": store.OK,
                "width": 32,
                "height": 32,
            }
            table = pa.Table.from_pylist([row | known], schema=store.schema(len(vector), dtype))
            yield table.append_column("shard", pa.array([row["shard"]])).append_column("several", pa.array([False]))

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(extraction, "resources", lambda *_: Resources(1, 1, 0, 32))
    monkeypatch.setattr(cluster, "connected", contextlib.nullcontext)
    monkeypatch.setattr(cluster, "nodes", lambda: [{"CPU": 2}])

    def since_last():
        ids = list(seen)
        seen.clear()
        return ids

    return since_last


@pytest.fixture
def night(photos, tmp_path):
    """Runs the night of a date and returns its record."""

    def run(date, *, gates=None, **options):
        from dim.nightly.job import nightly

        measured = Measurement(name="shelf", manifest=photos.manifest, split="test", **(gates or {}))
        defaults = {"model": GOOD, "weights": "random", "precision": "float32", "image_size": 32}
        defaults |= {"gpus_per_worker": 0, "shard_rows": 16}
        settings = {"out": str(tmp_path / "nightly"), "date": date, "evaluations": (measured,)} | defaults | options
        return nightly(NightlyConfig(**settings))

    return run
