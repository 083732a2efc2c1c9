"""Fixtures that all tests share: one Ray a session, the shipped demo photos, the benchmarks' data if there is any,
and folders of descriptors made by hand.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dim import files, output
from dim.extract import store
from dim.extract.identity import Embedding

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DIM_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """The path of a file of the benchmarks' data, which is not distributed; skips where it is absent."""

    def path(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"needs {name}, which is not distributed; set DIM_SHARED to the folder that holds it")
        return SHARED / name

    return path


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder of the shipped demo photos."""
    return REPOSITORY / "dim" / "assets" / "demo"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The one Ray of the test session."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class _Config:
    note: str = "made by hand"


def embedding(**changes):
    fields = {
        "backbone": "vgg16",
        "layer": "block5_conv3",
        "pooling": "gem",
        "weights": "0" * 64,
        "preprocessing": "caffe",
        "image_size": 224,
        "resize": "squash",
        "scales": (1.0,),
        "scales_mean": None,
        "whitening": None,
        "precision": "float32",
    }
    return Embedding(**(fields | changes))


@pytest.fixture
def write_manifest(tmp_path):
    def write(name="photos.csv", **columns):
        rows = len(columns["image_id"])
        columns = {"path": [f"{image_id}.jpg" for image_id in columns["image_id"]], "split": ["test"] * rows, **columns}
        files.write_table(str(tmp_path / name), pa.table(columns))
        return str(tmp_path / name)

    return write


@pytest.fixture
def write_descriptors(tmp_path):
    """Writes descriptors (N, D), L2-normalised unless `raw`, in shards of three; ids in `errors` become error rows."""

    def write(ids, vectors, *, name="descriptors", errors=(), inputs=None, raw=False, **changes):
        folder = str(tmp_path / name)
        vectors = np.asarray(vectors, dtype=np.float32)
        if not raw:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        with output.opened(folder, "extract", _Config(), inputs or {}, embedding(**changes).as_json()) as out:
            for start in range(0, len(ids), 3):
                part = ids[start : start + 3]
                rows = [
                    {
                        "image_id": image_id,
                        "descriptor": None if image_id in errors else vector.tolist(),
                        "status": store.ERROR if image_id in errors else store.OK,
                    }
                    for image_id, vector in zip(part, vectors[start : start + 3], strict=True)
                ]
                table = pa.Table.from_pylist(rows, schema=store.schema(vectors.shape[1]))
                store.write_shard(folder, store.shard_name([(image_id, "") for image_id in part]), table)
            out.finish({})
        return folder

    return write
