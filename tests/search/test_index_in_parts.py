"""An index in parts, filled by any number of workers, killed at any step, and brought up to date."""

import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest

from dim.io import tables
from dim.search import build_index, read_index, write_parts
from dim.search.build_index import build
from dim.search.config import IndexConfig

ROWS, DIMENSION = 120, 16
RANDOM = np.random.default_rng(0)
IDS = [f"p{number:03d}" for number in RANDOM.permutation(ROWS)]
VECTORS = RANDOM.standard_normal((ROWS, DIMENSION)).astype(np.float32)
VECTORS[50:90] = VECTORS[7]  # more equal rows than a list has
QUERIES = np.concatenate([VECTORS[:30], RANDOM.standard_normal((30, DIMENSION)).astype(np.float32)])
MERGED = ["IVF8,Flat", "IVF4,PQ4x4", "IVF4,PQ4x4fs", "PQ4x4", "SQ8", "PCA8,IVF4,SQ8", "L2norm,SQfp16"]


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(write_parts, "UNIT_ROWS", 20)


@pytest.fixture
def store(write_descriptors):
    """Writes the descriptors of some rows: the same rows give the same shards."""

    def write(rows=range(ROWS), name="descriptors"):
        shutil.rmtree(Path(write_descriptors.__closure__[0].cell_contents) / name, ignore_errors=True)
        return write_descriptors([IDS[row] for row in rows], VECTORS[list(rows)], name=name)

    return write


@pytest.fixture
def built(tmp_path):
    def build_into(folder, name="index", **changes):
        out = tmp_path / name
        return out, build(IndexConfig(descriptors=folder, out=str(out), **changes))

    return build_into


def lists(out, count=10, parameters=None):
    """The lists of all queries, as (id, score)."""
    found = read_index.read(str(out), None, parameters)
    ids = found.ids.to_pylist()
    rows, scores = found.database.nearest(QUERIES, count)
    return [
        [(ids[row], score) for row, score in zip(*one, strict=True) if row >= 0]
        for one in zip(rows.tolist(), scores.tolist(), strict=True)
    ]


def content(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.index"))}


@pytest.mark.parametrize("factory", ["IVF8,Flat", "Flat", "HNSW8"])
def test_any_number_of_workers_builds_the_same_files(store, built, factory):
    folder, parts = store(), {"parts": 3} if factory == "HNSW8" else {}  # each part by one thread
    first, *others = (content(built(folder, str(n), factory=factory, workers=n, **parts)[0]) for n in (1, 2, 3, 7))
    assert first
    assert all(other == first for other in others)


@pytest.mark.parametrize("factory", [*MERGED, "Flat"])
def test_any_number_of_parts_gives_the_same_lists(store, built, factory):
    folder = store()
    expected = None
    for parts in (1, 2, 3, 7):
        out, result = built(folder, str(parts), factory=factory, parts=parts)
        assert result["parts"] == parts == len(list(out.rglob("knn.index")))
        assert parts == 1 or not (out / "knn.index").exists()
        found = [lists(out, count) for count in (1, 10, 60)]
        expected = expected or found
        assert found == expected
        assert sorted(read_index.read(str(out), None, None).ids.to_pylist()) == sorted(IDS)


def test_merged_units_are_what_faiss_adds_one_after_another(store, built):
    out, _ = built(store(), factory="IVF8,Flat")
    expected = faiss.read_index(str(out / "trained.index"))
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    for image_id in tables.read(str(out / "ids.parquet"))["image_id"].to_pylist():
        expected.add(unit[IDS.index(image_id)][None])
    assert faiss.serialize_index(expected).tobytes() == (out / "knn.index").read_bytes()


def test_graphs_in_parts_find_most_of_what_exact_search_finds(store, built):
    folder = store()
    exact = lists(built(folder, "exact")[0])
    found = lists(built(folder, "graphs", factory="HNSW16", parts=3)[0])
    pairs = zip(found, exact, strict=True)
    recall = np.mean(
        [len({*map(tuple, one)} and {i for i, _ in one} & {i for i, _ in other}) / 10 for one, other in pairs]
    )
    print(f"recall@10 of HNSW16 in 3 parts: {recall:.3f}")
    assert recall > 0.8


STEPS = [(write_parts.PartWriter, "_fill"), (write_parts.PartWriter, "_write_ids"), (build_index.Output, "finish")]


@pytest.mark.parametrize("step", STEPS, ids=[name for _, name in STEPS])
@pytest.mark.parametrize("changes", [{"factory": "IVF8,Flat", "parts": 2}, {}])
def test_a_build_that_is_killed_goes_on(store, built, monkeypatch, step, changes):
    rows = [*range(60), *range(90, ROWS)]
    for before in (None, range(100)):  # a new index, and one that gets and loses rows
        if before:
            built(store(before), "killed", **changes)
        expected = None
        if before:
            built(store(before), "whole", **changes)
        expected = content(built(store(rows), "whole" if before else "new", **changes)[0])

        def dying(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(*step, dying)
            with pytest.raises(KeyboardInterrupt):
                built(store(rows), "killed", **changes)
        out, result = built(store(rows), "killed", **changes)
        assert content(out) == expected
        assert not (out / "building").exists()
        assert result["rows"] == len(rows) == len(read_index.read(str(out), None, None).ids)
        shutil.rmtree(out)
