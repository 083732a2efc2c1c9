import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from marks import slow
from terminal import messages

from dim.errors import UserError
from dim.extract import identity, store
from dim.io import tables
from dim.model import whitening
from dim.model.whitening import Whitening
from dim.search import faiss_files, index_factory, read_index, write_parts
from dim.search.build_index import build
from dim.search.config import IndexConfig

RANDOM = np.random.default_rng(0)
ROWS = 200
IDS = [f"p{number:03d}" for number in RANDOM.permutation(ROWS)]
VECTORS = RANDOM.standard_normal((ROWS, 16)).astype(np.float32)
JOB = Path(__file__).resolve().parents[2] / "jobs" / "index.py"


def built(folder, out, **changes):
    return build(IndexConfig(descriptors=folder, out=str(out), **changes))


def tables_of(folder):
    """The rows that have a descriptor, shard by shard."""
    for _, table in store.read_shards(folder, ["image_id", "descriptor", "status"]):
        yield table.filter(pc.equal(table["status"], store.OK))


def ids_of(out):
    return tables.read(str(out / "ids.parquet"))["image_id"].to_pylist()


@pytest.fixture
def folder(write_descriptors):
    return write_descriptors(IDS, VECTORS, errors=IDS[:2])


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "HNSW16", "SQ8", "PCA16,IVF8,SQ8"])
def test_faiss_reads_it_and_each_row_has_its_id(folder, tmp_path, factory):
    result = built(folder, tmp_path / "out", factory=factory)
    found = faiss.read_index(str(tmp_path / "out" / "knn.index"))
    assert (found.ntotal, found.metric_type) == (ROWS - 2, faiss.METRIC_INNER_PRODUCT)
    assert (result["rows"], result["errors"], result["dimension"]) == (ROWS - 2, 2, 16)
    ids = ids_of(tmp_path / "out")
    assert sorted(ids) == sorted(IDS[2:])
    vectors = {
        image_id: vector
        for table in tables_of(folder)
        for image_id, vector in zip(table["image_id"].to_pylist(), store.vectors(table["descriptor"]), strict=True)
    }
    _, nearest = found.search(np.array([vectors[image_id] for image_id in ids]), 1)
    assert nearest[:, 0].tolist() == list(range(ROWS - 2)) or factory == "HNSW16"
    assert (nearest[:, 0] == np.arange(ROWS - 2)).mean() > 0.95
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["embedding"]["id"] == identity.of_folder(folder).id


def test_a_flat_index_is_written_as_faiss_writes_it(folder, tmp_path):
    built(folder, tmp_path / "out")
    by_faiss = faiss.IndexFlatIP(16)
    for table in tables_of(folder):
        by_faiss.add(store.vectors(table["descriptor"]))
    faiss.write_index(by_faiss, str(tmp_path / "faiss.index"))
    assert (tmp_path / "out" / "knn.index").read_bytes() == (tmp_path / "faiss.index").read_bytes()


@pytest.mark.parametrize("factory", ["PCA8,IVF4,SQ8", *slow("IVF8,Flat", "IVF8,PQ4x4", "PQ4x4")])
def test_training_draws_rows_by_the_seed_and_says_how_many(folder, tmp_path, factory, caplog):
    caplog.set_level(logging.INFO)
    content = []
    for number, seed in enumerate([7, 7, 8]):
        result = built(folder, tmp_path / str(number), factory=factory, train_rows=150, seed=seed)
        assert result["trained_on"] == 150
        content.append((tmp_path / str(number) / "knn.index").read_bytes())
    assert content[0] == content[1] != content[2]
    assert f"training on 150 of {ROWS - 2} rows, drawn by seed 7" in caplog.text


def test_the_rows_drawn_do_not_depend_on_the_shards(folder, write_descriptors, tmp_path):
    order = RANDOM.permutation(ROWS)
    other = write_descriptors([IDS[row] for row in order], VECTORS[order], name="other", errors=IDS[:2])
    for number, name in enumerate((folder, other)):
        built(name, tmp_path / str(number), factory="PQ4x4", train_rows=20)
    assert (tmp_path / "0" / "trained.index").read_bytes() == (tmp_path / "1" / "trained.index").read_bytes()


@pytest.mark.parametrize(
    "factory",
    [
        "Flat",
        "IVF32,Flat",
        "IVF32,PQ8x4",
        "HNSW32",
        "HNSW16,SQ8",
        "SQ8",
        "PQ8x4",
        "PCA32,IVF16,SQ8",
        "IVF16,PQ8x4,RFlat",
    ],
)
def test_the_estimate_is_near_the_size(factory):
    vectors = np.random.default_rng(1).standard_normal((6_000, 64)).astype(np.float32)
    made = index_factory.empty_index(factory, 64, 0)
    estimate = index_factory.estimated_bytes(made, len(vectors))
    made.train(vectors[:1000])
    made.add(vectors)
    assert estimate == pytest.approx(
        len(faiss.serialize_index(made)), rel=0.12, abs=70_000
    )  # the codes of a PQ are 65 kB


def test_how_much_memory_is_said_before(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    built(folder, tmp_path / "out", factory="HNSW16")
    assert f"HNSW16 of {ROWS - 2} rows of 16 values: about 0.0 MB, 208 bytes a row" in caplog.text


def test_whitening_is_applied_and_stands_in_the_embedding(folder, tmp_path):
    embedding = identity.of_folder(folder).as_json()
    projection = np.random.default_rng(3).standard_normal((5, 16))
    Whitening(np.full(16, 0.1), projection, np.ones(16), 0.25, "pca", {}, embedding).save(f"{tmp_path}/w.npz")
    result = built(folder, tmp_path / "out", whitening=f"{tmp_path}/w.npz")
    assert result["dimension"] == 5
    found = read_index.read(str(tmp_path / "out"), None, None)
    assert found.embedding.whitening is not None
    row = ids_of(tmp_path / "out").index(IDS[5])
    unit = VECTORS[5:6] / np.linalg.norm(VECTORS[5])
    expected = whitening.load(f"{tmp_path}/w.npz").apply(unit)
    np.testing.assert_allclose(found.database.take(np.array([row])), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factory": "Nonsense"}, "'Nonsense' is not an FAISS index for 16 values.*could not parse index string"),
        ({"factory": "PQ7"}, "'PQ7' is not an FAISS index for 16 values.*should be a multiple"),
        ({"factory": ""}, "'' is not an FAISS index"),
        (
            {"factory": "Flat\0x"},
            r"'Flat\\x00x' is not an FAISS index .*: it has characters that are not",
        ),
        ({"factory": "PCA0,Flat"}, "'PCA0,Flat' is not an FAISS index .*: 0 is not from 1 to 1048576"),
        ({"factory": "HNSW2000000000"}, "not an FAISS index .*: 2000000000 is not from 1 to 1048576"),
        ({"factory": "IVF2000000,Flat"}, "not an FAISS index .*: 2000000 is not from 1 to 1048576"),
        ({"factory": "IDMap,Flat"}, "leave IDMap out"),
        ({"factory": "IVF1000,Flat"}, "'IVF1000,Flat' can't be trained on 198 rows: Number of training points"),
        ({"factory": "IVF8,Flat", "train_rows": 4}, "can't be trained on 4 rows"),
        ({"factory": "RCQ2x4"}, "'RCQ2x4' takes no rows"),
        ({"train_rows": 0}, "--train-rows must be at least 1, not 0"),
        ({"seed": -1}, "--seed must be from 0 to 2147483647, not -1"),
        ({"factory": "IVF2,Flat", "seed": 2**31}, "--seed must be from 0 to 2147483647, not 2147483648"),
        ({"descriptors": "nowhere"}, "'nowhere' is not an output folder of dim"),
        ({"whitening": "nowhere.npz"}, "no whitening file 'nowhere.npz'"),
    ],
)
def test_what_can_not_be_is_one_line_and_nothing_is_written(folder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        build(IndexConfig(**{"descriptors": folder, "out": str(tmp_path / "out")} | changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_photos_of_which_none_could_be_decoded(write_descriptors, tmp_path):
    folder = write_descriptors(IDS[:3], VECTORS[:3], errors=IDS[:3])
    with pytest.raises(UserError, match=r"none of the 3 photos of .* could be decoded, such as"):
        built(folder, tmp_path / "out")


def test_a_build_that_dies_leaves_no_half_of_an_index(folder, tmp_path, monkeypatch):
    built(folder, tmp_path / "out")
    before = (tmp_path / "out" / "knn.index").read_bytes()

    def dying(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(write_parts.PartWriter, "_fill", dying)
    with pytest.raises(KeyboardInterrupt):
        built(folder, tmp_path / "out", factory="SQ8")
    assert (tmp_path / "out" / "knn.index").read_bytes() == before
    with pytest.raises(UserError, match=r"was never finished; run index.py again"):
        read_index.read(str(tmp_path / "out"), None, None)


def test_a_build_that_is_refused_leaves_the_index_as_it_was(folder, tmp_path):
    built(folder, tmp_path / "out")
    with pytest.raises(UserError, match="takes no rows"):
        built(folder, tmp_path / "out", factory="RCQ2x4")
    assert len(read_index.read(str(tmp_path / "out"), None, None).ids) == ROWS - 2
    assert json.loads((tmp_path / "out" / "result.json").read_text())["factory"] == "Flat"
    assert not (tmp_path / "out" / "building").exists()


def refused(out, message):
    with pytest.raises(UserError, match=message) as caught:
        read_index.read(str(out), None, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,Flat"])
def test_a_damaged_file_is_refused_before_faiss_reads_it(folder, tmp_path, factory, monkeypatch):
    built(folder, tmp_path, factory=factory)
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("FAISS reads a damaged file"))
    file = tmp_path / "knn.index"
    whole = file.read_bytes()
    for content in (b"", whole[:30], whole[:-1], whole[:40] + b"\xff" + whole[41:]):
        file.write_bytes(content)
        refused(tmp_path, r"knn.index' is not the file that its run.json describes; make it again with index.py")
    file.unlink()
    refused(tmp_path, r"no file '.*knn.index'; make it again with index.py")


def recorded(folder, **changes):
    """Makes the record of `folder` tell of the index that is there now, and of `changes`."""
    record = json.loads((folder / "run.json").read_text())
    record["files"]["knn.index"] |= faiss_files.facts_of(str(folder / "knn.index")) | changes
    record["counts"] |= changes
    (folder / "run.json").write_text(json.dumps(record))


def test_a_file_that_is_no_index_or_another_index_is_refused(folder, tmp_path, monkeypatch):
    built(folder, tmp_path)
    recorded(tmp_path, sha256=None)
    refused(tmp_path, "is not the file that its run.json describes; make it again")
    recorded(tmp_path, dimension=8)
    refused(tmp_path, "has 198 rows of 16 values, its ids.parquet 198 and its run.json 8; make it again")
    faiss.write_index(faiss.IndexFlatIP(16), str(tmp_path / "knn.index"))
    recorded(tmp_path, dimension=16)
    refused(tmp_path, "has 0 rows of 16 values, its ids.parquet 198 and its run.json 16; make it again")
    (tmp_path / "knn.index").write_bytes(b"nonsense")
    recorded(tmp_path)
    refused(tmp_path, r"is not an FAISS index; make it again with index.py")

    def out_of_memory(*_):
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(faiss, "read_index", out_of_memory)
    refused(tmp_path, r"is not an FAISS index; make it again with index.py: std::bad_alloc")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"]}, "has no image_id for each row; make it again"),
        ({"image_id": ["a", None]}, "has no image_id for each row; make it again"),
        ({"image_id": [["a"]]}, "column .image_id. must be text"),
    ],
)
def test_a_broken_ids_file_is_refused(folder, tmp_path, columns, message):
    built(folder, tmp_path)
    tables.write(str(tmp_path / "ids.parquet"), pa.table(columns))
    refused(tmp_path, message)


def test_a_bad_factory_ends_the_job_in_status_2_with_one_line(folder, tmp_path):
    command = [sys.executable, JOB, "--descriptors", folder, "--out", str(tmp_path / "out"), "--factory", "Nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = messages(done.stderr)
    assert said.startswith("error: --factory 'Nonsense' is not an FAISS index for 16 values")


def test_index_json_and_run_json_seal_all_of_its_files(folder, tmp_path):
    built(folder, tmp_path)
    sealed = json.loads((tmp_path / "index.json").read_text())["files"]
    assert sealed == {
        name: {
            "bytes": (tmp_path / name).stat().st_size,
            "sha256": hashlib.sha256((tmp_path / name).read_bytes()).hexdigest(),
            "rows": ROWS - 2,
        }
        for name in ("ids.parquet", "knn.index")
    }
    assert json.loads((tmp_path / "run.json").read_text())["files"].items() >= sealed.items()


def test_ids_of_another_index_with_as_many_rows_are_refused(folder, write_descriptors, tmp_path):
    other = write_descriptors([f"q{image_id[1:]}" for image_id in IDS], VECTORS, name="other", errors=[])
    built(folder, tmp_path / "one")
    built(other, tmp_path / "two")
    ids = tmp_path / "one" / "ids.parquet"
    before = ids.read_bytes()
    # Of the same size: only their content tells them apart.
    table = tables.read(str(ids))
    turned = table.take(pa.array(np.roll(np.arange(len(table)), 1)))
    for swapped in (tables.read(str(tmp_path / "two" / "ids.parquet")).slice(0, ROWS - 2), turned):
        tables.write(str(ids), swapped)
        refused(
            tmp_path / "one", r"ids\.parquet' is not the file that its run\.json describes; make it again with index"
        )
    ids.write_bytes(before)
    read_index.read(str(tmp_path / "one"), None, None)
    (tmp_path / "one" / "index.json").unlink()
    refused(tmp_path / "one", r"no file '.*index\.json'; make it again with index\.py, or copy the folder as a whole")


def test_an_index_of_before_there_were_seals_is_read(folder, tmp_path):
    built(folder, tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["files"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "index.json").unlink()
    assert len(read_index.read(str(tmp_path), None, None).ids) == ROWS - 2
    (tmp_path / "ids.parquet").unlink()
    refused(tmp_path, r"no file '.*ids\.parquet'")
