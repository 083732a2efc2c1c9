"""PyArrow, pandas, DuckDB and Hugging Face's datasets all read the same descriptors from a store."""

import duckdb
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest

IDS = [f"photo {number}" for number in range(8)]
VECTORS = np.eye(8, dtype=np.float32)[:, :5] + 1


@pytest.fixture
def folder(write_descriptors):
    return write_descriptors(IDS, VECTORS, errors=["photo 3"])


def check(rows):
    """`rows`: image_id, descriptor, status of each photo, in any order."""
    found = {image_id: (vector, status) for image_id, vector, status in rows}
    assert sorted(found) == IDS
    assert found["photo 3"] == (None, "error")
    for row, image_id in enumerate(IDS):
        if image_id != "photo 3":
            np.testing.assert_allclose(found[image_id][0], VECTORS[row] / np.linalg.norm(VECTORS[row]), rtol=1e-6)


def test_pyarrow(folder):
    table = ds.dataset(folder, exclude_invalid_files=True).to_table(["image_id", "descriptor", "status"])
    check(row.values() for row in table.to_pylist())


def test_pandas(folder, tmp_path):
    parts = [pd.read_parquet(path) for path in sorted((tmp_path / "descriptors").glob("*.parquet"))]
    frame = pd.concat(parts)[["image_id", "descriptor", "status"]]
    check(frame.itertuples(index=False))


def test_duckdb(folder):
    with duckdb.connect() as connection:
        query = f"SELECT image_id, descriptor, status FROM '{folder}/*.parquet'"
        check(connection.execute(query).fetchall())
        connection.execute(f"CREATE TABLE ok AS SELECT * FROM '{folder}/*.parquet' WHERE status = 'ok'")
        best = connection.execute(
            "SELECT other.image_id FROM ok AS query, ok AS other WHERE query.image_id = 'photo 0' "
            "ORDER BY list_inner_product(query.descriptor, other.descriptor) DESC LIMIT 1"
        ).fetchone()
    assert best == ("photo 0",)


def test_hugging_face_datasets(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(
        "parquet", data_files=f"{folder}/*.parquet", split="train", cache_dir=str(tmp_path / "cache")
    )
    check((row["image_id"], row["descriptor"], row["status"]) for row in found)
