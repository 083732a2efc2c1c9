"""Nights over a few small photos, extracted by a fake that needs neither Ray nor a network."""

import contextlib
import zlib

import h5py
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dim.app import cluster
from dim.extract import own_process, store
from dim.io import seal, tables
from dim.model import spec
from dim.model.spec import Spec
from dim.nightly.config import Measurement, NightlyConfig

GOOD = "vgg16-gem"
NOISE = {"gem": 0, "spoc": 130, "mac": 300}  # by pooling: how badly the stand-in for the network tells photos apart


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
def shot(tmp_path):
    """Makes so many photos of each of so many labels."""

    def shoot(labels, each, name="photos"):
        made = Photos(tmp_path / name)
        for label in range(labels):
            made.add(label, each)
        return made

    return shoot


@pytest.fixture
def photos(shot):
    """Twelve labels of four photos each."""
    return shot(12, 4)


@pytest.fixture
def embedded(monkeypatch):
    """A network that tells labels apart, by `spoc` not always, by `mac` hardly. Gives the ids that went through."""
    seen = []

    def run(rows, recipe, dtype, _):
        for row in rows.to_pylist():
            seen.append(row["image_id"])
            pixels = np.asarray(Image.open(row["path"]), np.float32)
            vector = pixels.mean(axis=0).reshape(-1) - pixels.mean()
            seed = zlib.crc32(row["image_id"].encode())
            vector += NOISE[recipe.source.spec.pooling] * np.random.default_rng(seed).standard_normal(vector.shape)
            known = {
                "descriptor": (vector / np.linalg.norm(vector)).tolist(),
                "status": store.OK,
                "width": 32,
                "height": 32,
            }
            table = pa.Table.from_pylist([row | known], schema=store.schema(len(vector), dtype))
            yield table.append_column("shard", pa.array([row["shard"]])).append_column("several", pa.array([False]))

    monkeypatch.setattr(own_process, "run", run)
    monkeypatch.setattr(cluster, "connected", contextlib.nullcontext)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)

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


@pytest.fixture
def write_model():
    """Writes a model folder as a training run leaves it, its weights those that the stand-in doesn't read."""

    def write(folder, pooling, content):
        folder.mkdir(exist_ok=True)
        with h5py.File(folder / "model.weights.h5", "w") as weights:
            weights["all"] = content
        sha256 = seal.sha256_of_file(str(folder / "model.weights.h5"))
        spec.write(Spec("vgg16", "block5_conv3", pooling, "caffe", image_size=32), str(folder), sha256)

    return write
