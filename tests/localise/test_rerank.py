"""Re-ranking by what photos show: shipped photos, pasted at a known place into others."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.collages import make, overlaps
from marks import slow
from PIL import Image

from dim.data import manifest as manifests
from dim.errors import UserError
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.extract import own_process
from dim.extract.config import ExtractConfig
from dim.extract.job import extract, recipe_of
from dim.io import tables
from dim.localise.config import MOST, Rerank, parsed
from dim.localise.rerank import Reranker
from dim.search.config import SearchConfig
from dim.search.job import search

CONFIG = ExtractConfig(manifest="", out="", model="vgg16-gem", resize="long-side", image_size=224, precision="float32")
COUNT = 6


@pytest.fixture(scope="module")
def pasted(demo, tmp_path_factory):
    """COUNT photos, collages that have them, and the boxes in these."""
    photos = manifests.read(str(demo / "manifest.csv")).select("val")
    return make(
        photos.paths, list(photos.labels), tmp_path_factory.mktemp("pasted"), count=COUNT, seed=1, scales=(0.7, 0.9)
    )


@pytest.fixture
def here(monkeypatch):
    """The work is done in this process, even if there is a Ray."""
    monkeypatch.setattr("dim.localise.rerank.ray.is_initialized", lambda: False)
    monkeypatch.setattr("dim.localise.rerank.cluster.connected", nullcontext)


def rows(paths, boxes=None):
    return pa.table({"path": paths, "box": pa.array(boxes or [None] * len(paths), pa.list_(pa.float64()))})


def reranked(method, queries, photos, heads, *, first=COUNT, config=CONFIG):
    recipe = recipe_of(config, config.source(config.model))
    again = Reranker(Rerank(method, first), recipe, queries.take, photos.take, config)
    return again(np.arange(len(heads)), heads)


def heads_of(count, size):
    """Lists of all photos, each in another order."""
    orders = [np.random.default_rng(number).permutation(size) for number in range(count)]
    return [(order, np.linspace(0.11, 0.1, size)) for order in orders]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("method", ["localise", "geometry"])
def test_the_photo_that_has_the_query_comes_first(pasted, method):
    photos, collages, _ = pasted
    lists = reranked(method, rows(photos), rows(collages), heads_of(COUNT, COUNT))
    first = np.array([found.rows[0] for found in lists])
    assert (first == np.arange(COUNT)).mean() >= 0.5  # by chance, 1 of 6
    for found, (before, cosines) in zip(lists, heads_of(COUNT, COUNT), strict=True):
        assert sorted(found.rows) == sorted(before)
        assert (np.diff(found.scores) <= 0).all()
        assert dict(zip(found.rows, found.cosines, strict=True)) == dict(zip(before, cosines, strict=True))
        assert (found.inliers > 0).any() == (method == "geometry")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("method", ["localise", "geometry"])
def test_only_the_first_photos_move(pasted, method):
    photos, collages, _ = pasted
    for found, (before, _) in zip(
        reranked(method, rows(photos), rows(collages), heads_of(COUNT, COUNT), first=3),
        heads_of(COUNT, COUNT),
        strict=True,
    ):
        assert sorted(found.rows[:3]) == sorted(before[:3]) and found.rows[3:].tolist() == before[3:].tolist()
        assert (np.diff(found.scores) <= 0).all() and np.isnan(found.boxes[3:]).all()


@pytest.mark.parametrize("method", ["geometry", *slow("localise")])
def test_actors_find_what_one_process_finds(ray_session, pasted, method, monkeypatch):
    """Also if another number of queries is asked, in another order."""
    photos, collages, _ = pasted
    heads = heads_of(COUNT, COUNT)
    alone = replace(CONFIG, batch_size=1)  # photos that share a pass are rounded otherwise
    by_actors = reranked(method, rows(photos), rows(collages), heads, config=alone)
    monkeypatch.setattr("dim.localise.rerank.ray.is_initialized", lambda: False)
    monkeypatch.setattr("dim.localise.rerank.cluster.connected", nullcontext)
    monkeypatch.setattr(own_process, "FEW", 2)
    order = [4, 0, 2]
    here = reranked(method, rows([photos[k] for k in order]), rows(collages), [heads[k] for k in order], config=alone)
    for found, number in zip(here, order, strict=True):
        expected = by_actors[number]
        assert found.rows.tolist() == expected.rows.tolist()
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
        assert found.inliers.tolist() == expected.inliers.tolist()


@pytest.mark.usefixtures("here")
def test_boxes_are_in_pixels_of_the_upright_photo(pasted, tmp_path):
    """Of a photo whose file is turned by EXIF, and of a photo that the manifest crops."""
    photos, collages, _ = pasted
    upright = Image.open(collages[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    larger = Image.new("RGB", (upright.width + 300, upright.height + 200), "grey")
    larger.paste(upright, (100, 50))
    larger.save(tmp_path / "larger.png")
    paths = [str(tmp_path / f"{name}.png") for name in ("upright", "turned", "larger")]
    boxes = [None, None, [100, 50, 100 + upright.width, 50 + upright.height]]
    config = replace(CONFIG, resize="squash")
    heads = [(np.arange(3), np.zeros(3))]
    found = reranked("localise", rows(photos[:1]), rows(paths, boxes), heads, config=config)[0]
    at = dict(zip(found.rows, found.boxes, strict=True))
    np.testing.assert_allclose(at[1], at[0], atol=1e-3)
    np.testing.assert_allclose(at[2] - [100, 50, 100, 50], at[0], atol=1e-3)


@pytest.mark.usefixtures("here")
def test_what_cannot_be_read_stays_where_it_is(pasted, tmp_path):
    photos, collages, _ = pasted
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    broken = str(tmp_path / "broken.jpg")
    heads = [(np.arange(3), np.array([0.9, 0.5, 0.1]))] * 2
    unread, found = reranked("localise", rows([broken, photos[2]]), rows([broken, *collages[1:3]]), heads)
    assert unread.rows.tolist() == [0, 1, 2] and unread.scores.tolist() == [0.9, 0.5, 0.1]
    assert np.isnan(unread.boxes).all()
    assert dict(zip(found.rows, found.scores, strict=True))[0] == 0.9  # its cosine


@pytest.mark.slow
@pytest.mark.parametrize(("method", "least"), [("localise", 0.5), ("geometry", 0.5)])
def test_boxes_overlap_with_the_pasted_photos(ray_session, demo, tmp_path, method, least):
    photos = manifests.read(str(demo / "manifest.csv")).select("val")
    made = make(photos.paths, list(photos.labels), tmp_path / "pasted", count=20, seed=0)
    assert overlaps(*made, method, replace(CONFIG, image_size=448)).mean() >= least


@pytest.fixture
def extracted(here, pasted, tmp_path):
    """The manifest and the descriptors of the photos and the collages; each two have a label."""
    photos, collages, _ = pasted
    ids = [f"{kind}{number}" for kind in ("photo", "collage") for number in range(COUNT)]
    labels = [str(number) for number in range(COUNT)] * 2
    manifest = str(tmp_path / "manifest.parquet")
    tables.write(manifest, pa.table({"image_id": ids, "path": photos + collages, "label": labels}))
    out = str(tmp_path / "descriptors")
    extract(replace(CONFIG, manifest=manifest, out=out))
    return manifest, out


def test_search_and_evaluation_rank_again(extracted, tmp_path):
    manifest, folder = extracted
    plain = evaluate(
        EvaluateConfig(manifest=manifest, descriptors=(folder,), out=str(tmp_path / "plain"), report=False)
    )
    out = tmp_path / "geometry"
    found = evaluate(EvaluateConfig(manifest=manifest, descriptors=(folder,), out=str(out), rerank="geometry:11"))
    assert found["rerank"] == "geometry:11" and plain["rerank"] is None
    page = (out / "report.html").read_text()
    assert "<rect" in page and "the first 11 ranked again by geometry" in page

    listed = tmp_path / "lists"
    result = search(SearchConfig(index=folder, queries=folder, out=str(listed), rerank="geometry:12", top=12))
    assert result["rerank"] == "geometry:12"
    table = pq.read_table(listed / "ranked.parquet")
    assert table.column_names == ["query_id", "rank", "image_id", "score", "cosine", "inliers", "x1", "y1", "x2", "y2"]
    by_query = {}
    for row in table.to_pylist():
        by_query.setdefault(row["query_id"], []).append(row)
    for query, hits in by_query.items():
        assert [hit["rank"] for hit in hits] == list(range(1, 13))
        assert (np.diff([hit["score"] for hit in hits]) <= 0).all()
        assert all(hit["x1"] is None for hit in hits if hit["inliers"] < 6)
        own = [hit["image_id"][-1] for hit in hits if hit["image_id"] != query]
        assert own[0] == query[-1] or hits[0]["image_id"] == query
    again = evaluate(
        EvaluateConfig(manifest=manifest, ranked=str(listed / "ranked.parquet"), out=str(tmp_path / "again"))
    )
    assert again["n_queries"] == 12 and again["map"] == pytest.approx(found["map"], abs=1e-12)
    assert json.loads((listed / "result.json").read_text())["queries"] == 12


@pytest.mark.parametrize(
    "text", ["", "localize", "localise:", "localise:0", "geometry:-1", "geometry:1e3", f"geometry:{MOST + 1}"]
)
def test_a_wrong_flag_is_refused(text):
    with pytest.raises(UserError, match="--rerank"):
        parsed(text)


def test_the_flag():
    assert parsed("localise") == Rerank("localise", 100)
    assert parsed("geometry:250") == Rerank("geometry", 250)
