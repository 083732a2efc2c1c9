"""Exports, read back by the tools that they are for.

autofaiss pins NumPy 1 and can't be installed beside dim. Its tests run if DIM_AUTOFAISS names a Python that has it:

    uv venv --python 3.11 other && uv pip install --python other autofaiss "pyarrow<23"
    DIM_AUTOFAISS=other/bin/python pytest tests/export/test_job.py
"""

import os
import subprocess
import sys

import duckdb
import faiss
import numpy as np
import pandas as pd
import pytest

from dim.app import output_folder
from dim.errors import UserError
from dim.export.config import ExportConfig
from dim.export.job import export
from dim.extract import identity
from dim.io import files

ROWS = 40
IDS = [f"fotos/ü {number:02d}.jpg" for number in np.random.default_rng(0).permutation(ROWS)]
VECTORS = np.random.default_rng(1).standard_normal((ROWS, 8)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


@pytest.fixture
def exported(write_descriptors, tmp_path):
    """Exports the descriptors, of which two photos could not be decoded."""

    def run(kind):
        folder = write_descriptors(IDS, VECTORS, errors=IDS[:2], raw=True)
        result = export(ExportConfig(descriptors=folder, out=str(tmp_path / "out"), format=kind))
        assert (result["rows"], result["errors"]) == (ROWS - 2, 2)
        assert (
            len([path for path in (tmp_path / "out").rglob("*") if path.suffix in (".npy", ".parquet", ".txt")])
            == (result["files"])
        )
        assert identity.of_folder(str(tmp_path / "out")) == identity.of_folder(folder)
        return tmp_path / "out"

    return run


def check(ids, vectors):
    """Each photo that could be decoded stands there once, with its own vector."""
    assert sorted(ids) == sorted(IDS[2:])
    np.testing.assert_array_equal(vectors, VECTORS[[IDS.index(image_id) for image_id in ids]])


def test_npy_opens_in_numpy_and_faiss(exported):
    out = exported("npy")
    names = (out / "names.txt").read_text().splitlines()
    vectors = np.load(out / "descriptors.npy", mmap_mode="r", allow_pickle=False)
    check(names, vectors)
    index = faiss.IndexFlatIP(8)
    index.add(np.ascontiguousarray(vectors))
    assert [names[row] for row in index.search(VECTORS[5:9], 1)[1][:, 0]] == IDS[5:9]


def test_autofaiss_s_parquet_opens_in_pandas_and_duckdb(exported):
    out = exported("autofaiss")
    table = pd.read_parquet(out / "embeddings")
    assert list(table.columns) == ["image_id", "embedding"]
    check(table["image_id"].tolist(), np.stack(table["embedding"]))
    with duckdb.connect() as connection:
        rows = connection.execute(f"SELECT image_id, embedding FROM '{out}/embeddings/*.parquet'").fetchall()
    check([image_id for image_id, _ in rows], np.array([vector for _, vector in rows], np.float32))


def test_clip_retrieval_s_files_are_aligned_part_by_part(exported):
    out = exported("clip-retrieval")
    parts = sorted(path.stem.removeprefix("img_emb_") for path in (out / "img_emb").iterdir())
    assert parts == sorted(path.stem.removeprefix("metadata_") for path in (out / "metadata").iterdir())
    ids, vectors = [], []
    for part in parts:
        block = np.load(out / "img_emb" / f"img_emb_{part}.npy", allow_pickle=False)
        names = pd.read_parquet(out / "metadata" / f"metadata_{part}.parquet")["image_path"].tolist()
        assert len(block) == len(names)
        ids += names
        vectors.append(block)
    check(ids, np.concatenate(vectors))


AUTOFAISS = """
import sys, autofaiss, numpy, pandas
out = sys.argv[1]
index, _ = autofaiss.build_index(
    embeddings=out + "/embeddings", file_format="parquet", embedding_column_name="embedding", id_columns=["image_id"],
    index_path=out + "/found.index", index_infos_path=out + "/infos.json", ids_path=out + "/ids", index_key="Flat",
)
ids = pandas.read_parquet(out + "/ids").sort_values("i")["image_id"]
numpy.savez(out + "/found.npz", ids=ids.to_numpy("U"), vectors=index.reconstruct_n(0, index.ntotal))
"""
READER = """
import sys, embedding_reader, numpy
out = sys.argv[1]
reader = embedding_reader.EmbeddingReader(
    out + "/img_emb", metadata_folder=out + "/metadata", meta_columns=["image_path"], file_format="parquet_npy"
)
((vectors, metadata),) = reader(batch_size=1000)
numpy.savez(out + "/found.npz", ids=metadata["image_path"].to_numpy("U"), vectors=vectors)
"""


@pytest.mark.parametrize(("kind", "program"), [("autofaiss", AUTOFAISS), ("clip-retrieval", READER)])
def test_autofaiss_and_the_reader_that_clip_retrieval_uses(exported, kind, program):
    if "DIM_AUTOFAISS" not in os.environ:
        pytest.skip("autofaiss can't be installed beside dim; set DIM_AUTOFAISS to a Python that has it")
    out = exported(kind)
    subprocess.run([os.environ["DIM_AUTOFAISS"], "-c", program, str(out)], check=True, capture_output=True)
    with np.load(out / "found.npz") as found:
        check(found["ids"].tolist(), found["vectors"])


@pytest.mark.parametrize("kind", ["autofaiss", "clip-retrieval"])
def test_a_smaller_export_leaves_nothing_of_a_larger_one(exported, write_descriptors, tmp_path, kind):
    exported(kind)
    few = write_descriptors(IDS[:4], VECTORS[:4], name="few")
    result = export(ExportConfig(descriptors=few, out=str(tmp_path / "out"), format=kind))
    parts = (
        list((tmp_path / "out").rglob("*_00*.*")) if kind == "clip-retrieval" else list((tmp_path / "out").rglob("00*"))
    )
    assert len(parts) == result["files"]


@pytest.mark.parametrize("kind", ["autofaiss", "clip-retrieval"])
def test_an_export_that_dies_over_a_larger_one_leaves_nothing_of_it(
    exported, write_descriptors, tmp_path, kind, monkeypatch
):
    out = exported(kind)
    few = write_descriptors(IDS[:4], VECTORS[:4], name="few", raw=True)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(files, "write_bytes", dying_at("000", files.write_bytes))
        export(ExportConfig(descriptors=few, out=str(out), format=kind))
    assert not list(out.rglob("*00*"))
    with pytest.raises(UserError, match="was never finished"):
        output_folder.verified_seal(str(out))


def dying_at(part, write):
    def dying(uri, content):
        if part in uri.rpartition("/")[2]:
            raise ZeroDivisionError
        write(uri, content)

    return dying


def test_an_export_in_another_format_takes_the_place_of_the_one_before(exported):
    sealed = [output_folder.verified_seal(str(exported(kind))) for kind in ("autofaiss", "npy")]
    out = exported("npy")
    assert sorted(output_folder.verified_seal(str(out))) == ["descriptors.npy", "names.txt"]
    assert not list((out / "embeddings").iterdir()) and all(sealed)


def test_what_can_not_be_exported(write_descriptors, tmp_path):
    folder = write_descriptors(["a\nb"], VECTORS[:1])
    for values, message in (
        ({"descriptors": folder, "format": "npy"}, "an image_id of .* has a line break; use --format autofaiss"),
        ({"format": "npy"}, "--format npy needs --descriptors, and no other input"),
        ({"format": "keras", "descriptors": folder}, "--format keras needs --model, and no other input"),
        ({"format": "keras", "model": "vgg16-gem", "descriptors": folder}, "needs --model, and no other input"),
        ({"format": "onnx", "descriptors": folder}, "--format onnx needs --model, and no other input"),
        ({"format": "npy", "descriptors": "nowhere"}, "'nowhere' is not an output folder of dim"),
    ):
        with pytest.raises(UserError, match=message):
            export(ExportConfig(out=str(tmp_path / "out"), **values))
    assert not (tmp_path / "out").exists()


LOAD = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1])
assert not any(name.split(".")[0] == "dim" for name in sys.modules)
np.save(sys.argv[3], model(np.load(sys.argv[2])).numpy())
"""


@pytest.mark.slow
def test_a_network_loads_without_dim_and_gives_the_same_descriptors(tmp_path):
    import keras

    from dim.model import network, spec

    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    made = spec.Spec(pooling="rmac", image_size=64, dimension=16)
    model = network.build(made)
    model.get_layer("pca").set_weights([np.random.default_rng(1).standard_normal((512, 16)), np.full(16, 0.1)])
    network.save(model, made, str(tmp_path / "model"))
    result = export(ExportConfig(model=str(tmp_path / "model"), out=str(tmp_path / "out"), format="keras"))
    assert result["dimension"] == 16
    command = [
        sys.executable,
        "-c",
        LOAD,
        tmp_path / "out" / "model.keras",
        tmp_path / "images.npy",
        tmp_path / "found.npy",
    ]
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, cwd=tmp_path, env=without, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), model(images).numpy(), atol=1e-6)
    keras.backend.clear_session()
