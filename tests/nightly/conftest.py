"""Nights over small photos of a few labels, embedded by a stand-in for the network, which costs no TensorFlow."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dim import files
from dim.extract import pipeline
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
        files.write_table(self.manifest, pa.Table.from_pylist(self.rows))


@pytest.fixture
def photos(tmp_path):
    """Twelve labels of four photos each."""
    made = Photos(tmp_path / "photos")
    for label in range(12):
        made.add(label, 4)
    return made


@pytest.fixture
def embedded(monkeypatch, ray_session, tmp_path):
    """A network that tells labels apart, or, where it pools by `mac`, hardly does. Gives the ids that went through."""
    seen = tmp_path / "embedded.txt"
    seen.touch()

    class StandIn:
        def __init__(self, recipe, dtype, _):
            self.dtype, self.worse = dtype, recipe.source.spec.pooling == "mac"

        def __call__(self, table):
            with seen.open("a") as file:
                file.writelines(f"{image_id}\n" for image_id in table["image_id"].to_pylist())
            vectors = np.array([image.astype(np.float32).mean(axis=0).reshape(-1) for image in pipeline.images(table)])
            vectors -= vectors.mean()
            if self.worse:
                vectors += np.random.default_rng(0).normal(0, 60, vectors.shape)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            return pipeline.embedded(table, vectors.astype(np.float32), self.dtype)

    monkeypatch.setattr(pipeline, "Network", StandIn)

    def since_last():
        ids = seen.read_text().split()
        seen.write_text("")
        return ids

    return since_last


@pytest.fixture
def night(photos, tmp_path):
    """Runs the night of a date and returns its record."""

    def run(date, *, gates=None, **options):
        from dim.nightly.job import nightly

        measured = Measurement(name="shelf", manifest=photos.manifest, split="test", **(gates or {}))
        defaults = {"model": GOOD, "weights": "random", "precision": "float32", "image_size": 32, "shard_rows": 16}
        settings = {"out": str(tmp_path / "nightly"), "date": date, "evaluations": (measured,)} | defaults | options
        return nightly(NightlyConfig(**settings))

    return run
