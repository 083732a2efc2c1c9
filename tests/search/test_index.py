"""`dim.Index`: the rows are those of the naive list and of search.py; what doesn't belong together is refused."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from embeddings import embedding

import dim
from dim.errors import UserError
from dim.search.build_index import build
from dim.search.config import IndexConfig, SearchConfig
from dim.search.job import search

RANDOM = np.random.default_rng(0)
IDS = [f"p{number:02d}" for number in RANDOM.permutation(60)]
VECTORS = RANDOM.standard_normal((60, 6))
VECTORS[30:] = VECTORS[:30]  # each score twice
QUERIES = (VECTORS[:4] + 0.5).astype(np.float32)
QUERIES /= np.linalg.norm(QUERIES, axis=1, keepdims=True)


@pytest.fixture
def folder(write_descriptors):
    return write_descriptors(IDS, VECTORS, errors=(IDS[7],))


@pytest.fixture
def index(folder, tmp_path):
    def make(factory):
        build(IndexConfig(descriptors=folder, out=str(tmp_path / factory), factory=factory))
        return tmp_path / factory

    return make


def naive(query, count):
    rows = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    scores = {image_id: round(float(row @ query), 6) for image_id, row in zip(IDS, rows, strict=True)}
    del scores[IDS[7]]
    best = sorted(scores, key=lambda image_id: (-scores[image_id], image_id))[:count]
    return best, [scores[image_id] for image_id in best]


@pytest.mark.parametrize("kind", ["descriptors", "Flat", "IVF1,Flat"])
def test_the_rows_are_the_nearest(folder, index, kind):
    found = dim.Index(folder if kind == "descriptors" else index(kind))
    assert (len(found), found.dimension, found.embedding) == (59, 6, embedding())
    ids, scores = found.search(QUERIES, 5)
    assert ids.shape == scores.shape == (4, 5)
    for query, own, own_scores in zip(QUERIES, ids, scores, strict=True):
        best, expected = naive(query, 5)
        np.testing.assert_allclose(own_scores, expected, atol=1e-5)
        assert list(own) == best


def test_the_rows_are_those_of_search_py(folder, write_descriptors, tmp_path):
    asked = write_descriptors(["a", "b", "c", "d"], QUERIES, name="queries")
    search(SearchConfig(index=folder, queries=asked, out=str(tmp_path / "found"), top=7, report=False))
    ranked = pq.read_table(tmp_path / "found" / "ranked.parquet")
    found = dim.Index(folder).search(QUERIES, 7)
    assert found.ids.ravel().tolist() == ranked["image_id"].to_pylist()
    np.testing.assert_allclose(found.scores.ravel(), ranked["score"].to_numpy(), atol=1e-7)


def test_all_rows_if_there_are_fewer(folder):
    found = dim.Index(folder).search(QUERIES[:1], 1000)
    assert sorted(found.ids[0]) == sorted({*IDS} - {IDS[7]})
    assert dim.Index(folder).search(QUERIES[:0]).ids.shape == (0, 10)


def test_what_an_approximate_index_does_not_find(index):
    path = index("IVF4,Flat")
    few = dim.Index(path, parameters="nprobe=1").search(QUERIES, 59)
    missing = few.ids == None  # noqa: E711  (elementwise)
    assert missing.any() and not missing[:, 0].any()
    assert (np.isneginf(few.scores) == missing).all()
    assert (dim.Index(path, parameters="nprobe=4").search(QUERIES, 59).ids != None).all()  # noqa: E711


def model(**changes):
    return SimpleNamespace(name="runs/model", embedding=embedding(**changes))


def test_the_model_must_be_that_of_the_index(folder):
    assert len(dim.Index(folder, model())) == 59
    with pytest.raises(UserError, match="'runs/model' were made by different embeddings: image_size 224 ≠ 320; "):
        dim.Index(folder, model(image_size=320))


@pytest.mark.parametrize(
    ("queries", "k", "said"),
    [
        (QUERIES, 0, "k must be at least 1, not 0"),
        (QUERIES[0], 5, "queries must be an array of N × 6 values, not 6"),
        (QUERIES[:, :5], 5, "queries must be an array of N × 6 values, not 4 × 5"),
        (QUERIES * [[1], [2], [1], [1]], 5, "queries must be L2-normalised; the length of row 1 is 2, not 1"),
        (QUERIES * [[1], [1], [1], [np.nan]], 5, "the length of row 3 is nan, not 1"),
    ],
)
def test_queries_that_cannot_be(folder, queries, k, said):
    with pytest.raises(UserError, match=said):
        dim.Index(folder).search(queries, k)


def test_a_folder_that_is_neither(tmp_path):
    with pytest.raises(UserError, match="holds neither an index nor descriptors"):
        dim.Index(tmp_path)


def test_the_package_offers_its_classes():
    assert {"Index", "Model"} <= set(dir(dim))
    with pytest.raises(AttributeError, match="module 'dim' has no attribute 'Modle'"):
        _ = dim.Modle
