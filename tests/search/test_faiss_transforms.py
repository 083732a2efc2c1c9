"""The scores of every index are the cosines of exact search, in its order, as far as its codes tell them apart."""

from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from dim.errors import UserError
from dim.io import tables
from dim.mine.config import Mining
from dim.mine.indexed import empty_index
from dim.search import faiss_files, index_factory, read_index
from dim.search.approximate import Approximate, IndexFile
from dim.search.build_index import build
from dim.search.config import IndexConfig, SearchConfig
from dim.search.job import search

ROWS, DIMENSION = 1500, 32


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


# Far from the origin, as photos' descriptors are: without their mean, other rows are near each other.
VECTORS = unit(np.random.default_rng(0).standard_normal((ROWS, DIMENSION)) + 0.5)
QUERIES = unit(np.random.default_rng(1).standard_normal((20, DIMENSION)) + 0.5)
COSINES = QUERIES.astype(np.float64) @ VECTORS.T


@pytest.fixture
def written(tmp_path):
    """Writes an index of the vectors to a file."""

    def write(index):
        path = str(tmp_path / f"{len(list(tmp_path.iterdir()))}.index")
        faiss.write_index(index, path)
        facts = faiss_files.facts_of(path)
        return IndexFile(path, facts["bytes"], facts["sha256"], Path(path).stat().st_mtime_ns, rows=ROWS)

    return write


@pytest.fixture
def trained(written):
    def train(factory, parameters=None):
        return Approximate([replace(written(filled(factory)), parameters=parameters)], np.arange(ROWS))

    return train


def filled(factory):
    made = index_factory.empty_index(factory, DIMENSION, 0)
    index_factory.train(made, VECTORS, "the index")
    made.add(VECTORS)
    return made


def recall(rows):
    best = np.argsort(-COSINES, axis=1)[:, :10]
    return np.mean([len({*one[:10]} & {*other}) / 10 for one, other in zip(rows, best, strict=True)])


@pytest.mark.parametrize(
    "factory",
    ["PCA32,Flat", "PCAR32,Flat", "L2norm,PCA32,Flat", "RR32,Flat", "RR48,Flat", "HR32,Flat", "Pad40,Flat",
     "PCA32,HNSW32", "PCA32,Flat,RFlat", "SQ8,Refine(PCA32,Flat)"],
)  # fmt: skip
def test_a_transform_that_loses_no_dimension_keeps_scores_and_order(trained, factory):
    found = trained(factory)
    rows, scores = found.nearest(QUERIES, 300)
    np.testing.assert_allclose(scores, np.take_along_axis(COSINES, rows, axis=1), atol=2e-6)
    if not factory.startswith("SQ8"):  # whose codes choose which rows are refined
        np.testing.assert_allclose(scores, -np.sort(-COSINES, axis=1)[:, :300], atol=2e-6)
    np.testing.assert_allclose(found.take(np.arange(9)), VECTORS[:9], atol=0.02 if factory.startswith("SQ8") else 1e-5)


@pytest.mark.parametrize("dimension", [1, 8, 31])
def test_pca_to_fewer_dimensions_is_the_best_projection_for_inner_products(trained, dimension):
    _, _, axes = np.linalg.svd(VECTORS.astype(np.float64), full_matrices=False)
    projected = (QUERIES @ axes[:dimension].T) @ (VECTORS @ axes[:dimension].T).T
    rows, scores = trained(f"PCA{dimension},Flat").nearest(QUERIES, ROWS)
    np.testing.assert_allclose(scores, np.take_along_axis(projected, rows, axis=1), atol=1e-5)
    centred = faiss.index_factory(DIMENSION, f"PCA{dimension},Flat", faiss.METRIC_INNER_PRODUCT)
    centred.train(VECTORS)
    centred.add(VECTORS)
    scores_of_faiss, rows_of_faiss = centred.search(QUERIES, ROWS)
    error, of_faiss = (
        np.abs(s - np.take_along_axis(COSINES, r, axis=1)).mean()
        for s, r in ((scores, rows), (scores_of_faiss, rows_of_faiss))
    )
    assert error < of_faiss / 1.8
    assert dimension < 31 or recall(rows) > recall(rows_of_faiss) + 0.1


@pytest.mark.parametrize("factory", ["OPQ4,PQ4x4", "OPQ2_16,PQ2x4", "OPQ4_40,Flat", "PCA16,OPQ4,IVF4,PQ4x4,RFlat"])
def test_an_index_with_opq_is_read_as_it_was_made(written, factory):
    made = filled(factory)
    again = read_index.opened([written(made)], np.arange(ROWS), DIMENSION)
    _, scores = again.nearest(QUERIES, 50)
    np.testing.assert_allclose(scores, made.search(QUERIES, 50)[0], atol=1e-6)


def test_a_linear_transform_that_is_no_rotation_is_refused(written):
    stretched = faiss.LinearTransform(DIMENSION, DIMENSION)
    faiss.copy_array_to_vector(np.diag(np.linspace(1, 2, DIMENSION)).astype(np.float32).ravel(), stretched.A)
    stretched.is_trained = True
    made = faiss.IndexPreTransform(stretched, faiss.IndexFlatIP(DIMENSION))
    made.add(VECTORS)
    with pytest.raises(UserError, match="its LinearTransform changes the cosines"):
        read_index.opened([written(made)], np.arange(ROWS), DIMENSION)


REFUSED = [
    ("PCAW16,Flat", "'PCAW16,Flat': it whitens, .*; use PCA and --whitening FILE"),
    ("PCAWR32,HNSW16", "'PCAWR32,HNSW16': it whitens"),
    ("ITQ16,Flat", "'ITQ16,Flat': its ITQTransform changes the cosines that photos are ranked by; use PCA or OPQ"),
    ("SQ8,Refine(PCAW16,Flat)", "it whitens"),
    ("HNSW16_PQ4x4", "'HNSW16_PQ4x4': it compares by L2 distance; with HNSW, use SQ8 instead of PQ"),
]


@pytest.mark.parametrize(("factory", "message"), REFUSED)
def test_an_index_whose_scores_are_no_cosines_is_refused(factory, message):
    with pytest.raises(UserError, match=f"^--factory .*{message}"):
        index_factory.empty_index(factory, DIMENSION, 0)
    with pytest.raises(UserError, match=f"^--candidates .*{message}"):
        empty_index(Mining(candidates=factory), DIMENSION)


def test_parameters_that_no_search_for_candidates_can_have():
    with pytest.raises(UserError, match="--candidate-parameters 'nprobe=0' can't be set on this index: nprobe must be"):
        empty_index(Mining(candidates="IVF4,Flat", candidate_parameters="nprobe=0"), DIMENSION)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("PCA32,Flat", "subtracts the mean"),
        ("PCA16,IVF4,SQ8,RFlat", "subtracts the mean"),
        ("PCAW16,Flat", "it whitens"),
        ("HNSW8_PQ4x4", "it compares by L2 distance"),
    ],
)
def test_an_index_of_an_earlier_dim_says_that_it_is_to_be_made_again(written, factory, message):
    made = faiss.index_factory(DIMENSION, factory, faiss.METRIC_INNER_PRODUCT)
    made.train(VECTORS)
    made.add(VECTORS)
    with pytest.raises(UserError, match=rf"\.index': .*{message}.*; make it again with index.py"):
        read_index.opened([written(made)], np.arange(ROWS), DIMENSION)


@pytest.mark.parametrize("factory", ["HNSW8", "PCA32,HNSW8", "HNSW8,SQ8", "HNSW8,RFlat", "NSG16,Flat"])
def test_a_graph_gives_as_many_rows_as_are_asked_for(trained, factory):
    found = trained(factory)
    for count in (10, 1000):
        rows, _ = found.nearest(QUERIES, count)
        assert (rows >= 0).all()
    assert recall(rows) > 0.95


def test_a_graph_over_lists_finds_as_many_lists_as_are_looked_into(trained):
    found = trained("IVF64_HNSW4,Flat", "nprobe=64")
    rows, scores = found.nearest(QUERIES, ROWS)
    assert (rows >= 0).all()
    np.testing.assert_allclose(scores, -np.sort(-COSINES, axis=1), atol=2e-6)


@pytest.mark.parametrize(("factory", "expected"), [("HNSW8", 0), ("IVF16,Flat", 20)])
def test_lists_that_came_out_shorter_are_counted_and_said(write_descriptors, tmp_path, caplog, factory, expected):
    folder = write_descriptors([f"{row:03d}" for row in range(400)], VECTORS[:400])
    asked = write_descriptors([f"q{row:02d}" for row in range(20)], QUERIES, name="queries")
    build(IndexConfig(descriptors=folder, out=str(tmp_path / "index"), factory=factory))
    result = search(SearchConfig(index=str(tmp_path / "index"), queries=asked, out=str(tmp_path / "out"), top=250))
    lists = tables.read(str(tmp_path / "out" / "ranked.parquet")).group_by("query_id").aggregate([("rank", "max")])
    shorter = sum(length < 250 for length in lists["rank_max"].to_pylist())
    assert result["shorter"] == shorter == expected
    said = "20 of 20 lists have fewer photos than the 250 asked for: the index found no more; --parameters, such as"
    assert (said in caplog.text) == bool(shorter)


@pytest.mark.parametrize(
    ("factory", "advised"),
    [("IVF64,Flat", 39 * 64), ("PQ2x6", 39 * 64), ("PCA16,IVF4,PQ2x6,RFlat", 39 * 64), ("IVF16,SQ8", 0), ("SQ8", 0)],
)
def test_few_rows_to_train_on_are_said(factory, advised, caplog):
    filled(factory)
    said = [f"{ROWS} rows are few to train this index; FAISS advises {advised} or more"] if advised else []
    assert caplog.messages == said


def test_the_seed_reaches_codes_behind_a_refinement():
    first, same, other = (index_factory.empty_index("PQ4x4,RFlat", DIMENSION, seed) for seed in (1, 1, 2))
    for made in (first, same, other):
        made.train(VECTORS)
        made.add(VECTORS)
    content = [faiss.serialize_index(made).tobytes() for made in (first, same, other)]
    assert content[0] == content[1] != content[2]
