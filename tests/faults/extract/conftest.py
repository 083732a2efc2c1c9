"""Extractions that are killed, and what they must give."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

PHOTOS, SHARD_ROWS = 48, 8
EXTRACT = (
    *("--model", "vgg16-gem", "--image-size", "64", "--precision", "float32"),
    *("--batch-size", "4", "--shard-rows", str(SHARD_ROWS)),
)


@pytest.fixture
def extract(start):
    """Starts an extraction of a manifest."""
    return lambda manifest, out, *flags, **options: start(
        "extract", out, "--manifest", manifest, *EXTRACT, *flags, **options
    )


@pytest.fixture(scope="session")
def photos(demo, tmp_path_factory):
    """A manifest of some demo photos, each copied."""
    folder = tmp_path_factory.mktemp("photos")
    lines = (demo / "manifest.csv").read_text().splitlines()
    for line in lines[1 : PHOTOS + 1]:
        name = line.split(",")[1]
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy2(demo / name, folder / name)
    (folder / "photos.csv").write_text("\n".join(lines[: PHOTOS + 1]) + "\n")
    return folder / "photos.csv"


@pytest.fixture(scope="session")
def expected(photos):
    """What an extraction gives, made photo by photo: image_id → descriptor, width, height, content."""
    from dim.data import manifest as manifests
    from dim.data.decode import decode
    from dim.extract import identity
    from dim.extract.embedder import Embedder, Recipe
    from dim.model import spec

    manifest = manifests.read(str(photos))
    embedder = Embedder(Recipe(spec.resolve("vgg16-gem", image_size=64), "float32"), batch_size=1)
    rows = {}
    contents = identity.fingerprint_photos(manifest).contents.to_pylist()
    for image_id, path, known in zip(manifest.image_ids, manifest.paths, contents, strict=True):
        photo = decode(Path(path).read_bytes(), 64, "squash")
        rows[image_id] = (embedder.embed([photo.pixels])[0], photo.width, photo.height, known)
    return rows


@pytest.fixture
def assert_whole(expected):
    """Asserts that a store has each photo exactly once, as it should be; those in `deadly` as errors."""

    def check(folder, deadly=()):
        tables = [pq.read_table(path) for path in Path(folder).glob("part-*.parquet")]
        rows = pa.concat_tables(tables).to_pylist()
        assert sorted(row["image_id"] for row in rows) == sorted(expected)
        for row in rows:
            if row["image_id"] in deadly:
                assert row["status"] == "error" and row["descriptor"] is None
                continue
            vector, *known = expected[row["image_id"]]
            assert (row["status"], row["error"]) == ("ok", None)
            assert [row["width"], row["height"], row["content"]] == known
            np.testing.assert_allclose(row["descriptor"], vector, atol=1e-5)

    return check
