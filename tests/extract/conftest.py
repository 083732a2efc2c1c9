"""Small photos, and extractions of them by a stand-in for the network, which costs no TensorFlow."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dim.extract import photo_tables, pipeline
from dim.extract.config import ExtractConfig
from dim.io import tables


class Photos:
    """A folder of photos and its manifest, which tests change."""

    def __init__(self, folder):
        self.folder, self.manifest = folder, str(folder / "photos.csv")
        self.columns = {"image_id": [], "path": [], "label": [], "split": []}

    def add(self, name, content=None, label=None, split="train"):
        """A photo of its own colours, or a file with `content`; None for `content` False: no file."""
        if content is None:
            colours = np.random.default_rng(len(self.columns["path"])).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(colours).save(self.folder / name)
        elif content is not False:
            (self.folder / name).write_bytes(content)
        for column, value in zip(self.columns.values(), (Path(name).stem, name, label, split), strict=True):
            column.append(value)
        self.save()
        return self

    def remove(self, image_id):
        row = self.columns["image_id"].index(image_id)
        for column in self.columns.values():
            del column[row]
        self.save()

    def save(self):
        tables.write(self.manifest, pa.table({name: pa.array(v, pa.string()) for name, v in self.columns.items()}))


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    return Photos(tmp_path / "photos")


@pytest.fixture
def ten(photos):
    for number in range(10):
        photos.add(f"{number}.png")
    return photos


@pytest.fixture
def run(tmp_path):
    """Extracts `photos` into `out` and returns the result."""

    def extraction(photos, *, out="out", **options):
        from dim.extract.job import extract

        defaults = {
            "model": "vgg16-gem",
            "weights": "random",
            "precision": "float32",
            "image_size": 32,
            "batch_size": 4,
            "shard_rows": 4,
        }
        return extract(ExtractConfig(manifest=photos.manifest, out=str(tmp_path / out), **(defaults | options)))

    return extraction


@pytest.fixture
def rows(tmp_path):
    """The rows of `out`, by image_id."""

    def read(out="out"):
        tables = [pq.read_table(path) for path in (tmp_path / out).glob("*.parquet")]
        found = pa.concat_tables(tables).to_pylist()
        assert len({row["image_id"] for row in found}) == len(found)
        return {row["image_id"]: row for row in found}

    return read


@pytest.fixture
def stand_in(monkeypatch, ray_session):
    """A network whose descriptor is the mean of each of 8 columns of the photo."""

    class StandIn:
        def __init__(self, _, dtype, __):
            self.dtype = dtype

        def __call__(self, table):
            columns = [image.astype(np.float32).mean(axis=(0, 2)) for image in photo_tables.images(table)]
            vectors = [column.reshape(8, -1).mean(axis=1) for column in columns]
            return photo_tables.embedded(table, np.array(vectors, np.float32).reshape(-1, 8), self.dtype)

    monkeypatch.setattr(pipeline, "Network", StandIn)
