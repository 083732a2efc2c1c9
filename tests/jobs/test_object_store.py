"""extract, train and evaluate on an object store that fails and dawdles give what they give on a disk."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.extract import store
from dim.extract.config import ExtractConfig
from dim.extract.job import extract
from dim.io import files, tables
from dim.train.config import TrainConfig
from dim.train.job import train

LABELS, PHOTOS = 8, 6  # of each label
SIZE = {"image_size": 64, "precision": "float32"}


@pytest.fixture(scope="module")
def table(demo):
    """Some of the demo photos, in splits by label."""
    rows = tables.read(str(demo / "manifest.csv")).select(["image_id", "path", "label"]).to_pylist()
    labels = sorted({row["label"] for row in rows})[:LABELS]
    split = dict(zip(labels, ["train"] * (LABELS - 4) + ["val", "val", "test", "test"], strict=True))
    of_label = {label: [row for row in rows if row["label"] == label][:PHOTOS] for label in labels}
    return pa.Table.from_pylist([row | {"split": split[label]} for label in labels for row in of_label[label]])


def copied(table, demo, folder):
    """The photos and their manifest in `folder`; its manifest."""
    for label in set(table["label"].to_pylist()):
        files.make_folder(f"{folder}/photos/{label}")
    for path in table["path"].to_pylist():
        files.write_bytes(f"{folder}/photos/{path}", (demo / path).read_bytes())
    tables.write(f"{folder}/photos/photos.csv", table)
    return f"{folder}/photos/photos.csv"


def measured(manifest, model, folder):
    """Extraction and evaluation; the rows by image_id, and the result of evaluation."""
    extract(ExtractConfig(manifest=manifest, model=model, out=f"{folder}/out", shard_rows=8, **SIZE))
    metrics = evaluate(
        EvaluateConfig(manifest=manifest, descriptors=(f"{folder}/out",), split="test", out=f"{folder}/metrics")
    )
    rows = [
        row for name in store.shards(f"{folder}/out") for row in store.read_shard(f"{folder}/out", name).to_pylist()
    ]
    assert len(rows) == len({row["image_id"] for row in rows})
    return {row["image_id"]: row for row in rows}, metrics


def run(manifest, folder, scratch):
    """All three jobs; the rows by image_id, and the results of training and of evaluation."""
    fitted = train(
        TrainConfig(manifest=manifest, out=f"{folder}/run", epochs=1, top=64, dimension=16, scratch=scratch, **SIZE)
    )
    rows, metrics = measured(manifest, fitted["model"], folder)
    return rows, fitted, metrics


def require_same(stored, rows):
    """That the rows are all there, ok, and the same but for the last digits of the descriptors."""
    assert stored.keys() == rows.keys()
    for image_id, row in rows.items():
        same = ("status", "error", "width", "height")
        assert [stored[image_id][name] for name in same] == [row[name] for name in same] and row["status"] == "ok"
        np.testing.assert_allclose(stored[image_id]["descriptor"], row["descriptor"], atol=1e-3)


@pytest.mark.slow
def test_the_same_rows_and_the_same_map_as_locally(ray_session, s3, table, demo, tmp_path):
    rows, fitted, metrics = run(copied(table, demo, str(tmp_path)), str(tmp_path), str(tmp_path / "scratch"))
    bucket = s3.bucket("chain")
    manifest = copied(table, demo, bucket)
    s3.faults(failing=0.05, slow=0.05, seed=7)
    stored, fitted_there, metrics_there = run(manifest, bucket, str(tmp_path / "scratch-of-store"))
    counts = s3.faults()

    assert rows.keys() == set(table["image_id"].to_pylist())
    require_same(stored, rows)
    for name in ("map_before", "map_fitted", "map_after"):
        assert fitted_there[name] == pytest.approx(fitted[name], abs=1e-3)
    assert metrics_there["map"] == pytest.approx(metrics["map"], abs=1e-3)
    assert sum(counts[kind] for kind in ("InternalError", "SlowDown", "cut")) > 10 and counts["slow"] > 10
    assert {Path(name).name for name in files.names(f"{bucket}/run")} >= {"run.json", "result.json", "history.csv"}
    assert b"secret-of-the-test" not in files.read_bytes(f"{bucket}/run/run.json")


@pytest.mark.slow
def test_google_s_storage_gives_the_same_as_a_disk(ray_session, gs, table, demo, tmp_path):
    rows, metrics = measured(copied(table, demo, str(tmp_path)), "vgg16-gem", str(tmp_path))
    bucket = gs.bucket("chain")
    stored, metrics_there = measured(copied(table, demo, bucket), "vgg16-gem", bucket)
    assert len(rows) == table.num_rows
    require_same(stored, rows)
    assert metrics_there["map"] == pytest.approx(metrics["map"], abs=1e-3)
