import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from marks import slow

from dim.errors import UserError
from dim.extract import identity
from dim.extract.config import ExtractConfig
from dim.extract.job import extract
from dim.io import seal, tables
from dim.model import whitening
from dim.model.whitening import Whitening
from dim.search import queries, ranked_lists
from dim.search.build_index import build
from dim.search.config import IndexConfig, SearchConfig
from dim.search.database import from_array
from dim.search.expansion_methods import METHODS, apply
from dim.search.job import search
from dim.search.ranked_lists import RankedLists
from dim.search.retrieval import Retrieval

RANDOM = np.random.default_rng(0)
IDS = [f"p{number:02d}" for number in RANDOM.permutation(60)]
VECTORS = RANDOM.integers(-1, 2, (60, 6)).astype(np.float32) + 0.25  # few values, so that many scores tie
QUERY_IDS = [f"q{number}" for number in RANDOM.permutation(7)]
QUERIES = np.concatenate([VECTORS[:3], RANDOM.standard_normal((4, 6)).astype(np.float32)])


def listed(query, vectors, ids=IDS):
    """The naive ranked list: by score, then by id."""
    rounded = [np.rint(np.float64(np.float32(v / np.linalg.norm(v))) * 2**26) / 2**26 for v in (query, *vectors)]
    scores = [math.fsum(rounded[0] * row) for row in rounded[1:]]
    return sorted(zip(ids, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))


@pytest.fixture
def folder(write_descriptors):
    return write_descriptors(IDS, VECTORS)


@pytest.fixture
def asked(write_descriptors):
    return write_descriptors(QUERY_IDS, QUERIES, name="queries")


@pytest.fixture
def indexed(folder, tmp_path):
    def index(factory="Flat", **changes):
        out = str(tmp_path / f"index-{factory}")
        build(IndexConfig(descriptors=folder, out=out, factory=factory, **changes))
        return out

    return index


@pytest.fixture
def answered(tmp_path):
    """Searches, and returns the ranked lists of each query and the result."""

    def answer(index, asked, **changes):
        config = SearchConfig(index=index, queries=asked, out=str(tmp_path / "out"), **changes)
        result = search(config)
        table = tables.read(str(tmp_path / "out" / "ranked.parquet"))
        columns = ["query_id", "rank", "image_id", "score"]
        if any(METHODS[name].replaces_scores for name in changes.get("expansion", ())):
            columns.append("cosine")
        assert table.column_names == columns
        lists: dict[str, list] = {}
        for row in table.to_pylist():
            found = lists.setdefault(row["query_id"], [])
            found.append((row["image_id"], row["score"]))
            assert row["rank"] == len(found)
        return lists, result

    return answer


def test_a_flat_index_and_the_descriptors_give_the_lists_of_a_naive_loop(folder, indexed, asked, answered):
    expected = {name: listed(query, VECTORS)[:20] for name, query in zip(QUERY_IDS, QUERIES, strict=True)}
    for index in (folder, indexed("Flat")):
        lists, result = answered(index, asked, top=20)
        assert lists == expected
        assert list(lists) == sorted(QUERY_IDS)
        assert (result["queries"], result["errors"], result["database"], result["top"]) == (7, 0, 60, 20)
        assert result["exact"] is True


def test_queries_that_find_no_room_on_the_disk_are_refused(folder, asked, answered, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=7 * 6 * 4 - 1))
    with pytest.raises(UserError, match=r"the descriptors need a temporary file of 168 bytes, but .* 167 bytes left"):
        answered(folder, asked)


@pytest.fixture
def searched(indexed, asked, answered, tmp_path):
    """Searches an index of the descriptors, and returns the ranked lists, the result and the page."""

    def search_index(factory, **changes):
        lists, result = answered(indexed(factory), asked, **changes)
        return lists, result, (tmp_path / "out" / "report.html").read_text()

    return search_index


@pytest.mark.parametrize(("factory", "expansion"), [("Flat", ()), ("IVF4,Flat", ("aqe",)), ("Flat", ("diffusion",))])
def test_any_number_of_queries_at_a_time_gives_the_same_tables_and_pages(
    searched, monkeypatch, factory, expansion
):  # fmt: skip
    found, sizes, table = [], [], RankedLists._table
    share = SearchConfig(index="", queries="", out="").budget.share

    def counted(lists, query_ids, heads):
        sizes.append(len(heads))
        return table(lists, query_ids, heads)

    monkeypatch.setattr(RankedLists, "_table", counted)
    monkeypatch.setattr(ranked_lists, "_COPIES", 0)
    for fitting, block in [(1, 1024), (2, 1024), (7, 2), (7, 7)]:
        monkeypatch.setattr(ranked_lists, "QUERIES", block)
        monkeypatch.setattr(ranked_lists, "_ENTRY", share // (10 * fitting))
        lists, result, page = searched(factory, expansion=expansion)
        found.append((lists, page, result["shorter"]))
    assert all(one == found[0] for one in found)
    assert sizes == [*[1] * 7, 2, 2, 2, 1, 6, 1, 7]


@pytest.fixture
def labelled(write_manifest):
    """A manifest with a label and a split for each photo but some, and for some other photos."""
    ids = [*IDS[5:], "other"]
    labels, splits = (["abc"[number % 3] for number in range(len(ids))], ["train", "test"] * (len(ids) // 2))
    manifest = write_manifest(image_id=ids, label=labels, split=splits)
    return manifest, {image_id: both for image_id, *both in zip(ids, labels, splits, strict=True)}


@pytest.fixture
def manifests(folder, labelled, write_manifest):
    """Of photos of the database, and of others."""
    return {"MANIFEST": labelled[0], "OTHER": write_manifest(name="other.csv", image_id=["other"])}


@pytest.mark.parametrize("flags", [{"label": ("a", "c"), "in_split": "test"}, *slow({}, {"label": ("a",)})])
def test_a_filtered_search_ranks_the_chosen_photos_as_an_exhaustive_search(folder, asked, answered, labelled, flags):
    manifest, known = labelled
    chosen = {
        image_id
        for image_id, (label, split) in known.items()
        if label in flags.get("label", "abc") and flags.get("in_split", split) == split
    }
    parameters = {"IVF4,Flat": "nprobe=4", "PCA4,IVF4,SQ8": "nprobe=4", "IVF2,PQ3x4fs": "nprobe=2"}
    factories = (None, "Flat", "SQ8", "HNSW16", "L2norm,SQfp16", *parameters)
    for factory, parts in [(factory, 1) for factory in factories] + [("Flat", 3), ("IVF4,Flat", 3)]:
        index = folder
        if factory:
            index = f"{folder}-{factory}-{parts}"
            build(IndexConfig(descriptors=folder, out=index, factory=factory, parts=parts))
        how = {"parameters": parameters.get(factory), "report": False}
        everything, _ = answered(index, asked, top=60, **how)
        lists, result = answered(index, asked, top=9, manifest=manifest, **flags, **how)
        assert result["database"] == len(chosen - {"other"})
        for query, listed in everything.items():
            expected = [pair for pair in listed if pair[0] in chosen][:9]
            if factory == "HNSW16":  # any of the photos whose score is that of the last one may be left out
                assert [score for _, score in lists[query]] == [score for _, score in expected]
            else:
                assert lists[query] == expected


@pytest.fixture
def alone(labelled, write_descriptors):
    """The descriptors of the photos that have the label "a"."""
    chosen = [image_id for image_id, (label, _) in labelled[1].items() if label == "a"]
    return write_descriptors(chosen, [VECTORS[IDS.index(image_id)] for image_id in chosen], name="alone")


@pytest.mark.parametrize("name", ["alpha-qe", "diffusion", *slow("aqe", "dba", "k-reciprocal")])
def test_methods_after_a_filtered_search_know_only_the_chosen_photos(alone, manifests, asked, answered, name):
    folder, manifest = str(Path(alone).parent / "descriptors"), manifests["MANIFEST"]
    how = {"expansion": (name,), "neighbours": 5, "top": 60, "report": False}
    for factory, parameters in ((None, None), ("Flat", None), ("IVF4,Flat", "nprobe=4")):
        if factory:
            for made in (folder, alone):
                build(IndexConfig(descriptors=made, out=f"{made}-{factory}", factory=factory))
        end = f"-{factory}" if factory else ""
        expected, _ = answered(f"{alone}{end}", asked, parameters=parameters, **how)
        lists, _ = answered(f"{folder}{end}", asked, parameters=parameters, manifest=manifest, label=("a",), **how)
        for query, listed in expected.items():
            assert dict(lists[query]) == pytest.approx(dict(listed), rel=1e-4, abs=1e-4)


def test_indexes_that_can_not_be_filtered_are_named(indexed, asked, answered, labelled):
    with pytest.raises(UserError, match="is an index of which FAISS can't search only some rows; build another: "):
        answered(indexed("PQ3x4"), asked, manifest=labelled[0])


def test_on_photos_a_flat_index_gives_the_lists_of_exact_search(shared, write_descriptors, tmp_path, answered):
    with np.load(shared("oracle/offtheshelf_descriptors.npz")) as arrays:
        folder = write_descriptors(arrays["image_id"].tolist(), arrays["gem_block5_conv3"])
    build(IndexConfig(descriptors=folder, out=str(tmp_path / "index")))
    flat, _ = answered(str(tmp_path / "index"), folder, top=48)
    assert flat == answered(folder, folder, top=48)[0]


@pytest.mark.parametrize(
    ("factory", "parameters"), [("IVF4,Flat", "nprobe=4"), ("HNSW16", "efSearch=200"), ("SQfp16", None)]
)
def test_an_index_that_looks_everywhere_finds_the_same(indexed, asked, answered, factory, parameters):
    lists, result = answered(indexed(factory), asked, top=10, parameters=parameters)
    for name, query in zip(QUERY_IDS, QUERIES, strict=True):
        scores = [score for _, score in lists[name]]
        np.testing.assert_allclose(scores, [score for _, score in listed(query, VECTORS)[:10]], atol=1e-3)
        assert lists[name] == sorted(lists[name], key=lambda pair: (-pair[1], pair[0]))
    assert result["exact"] is False


def test_an_index_that_finds_less_gives_shorter_lists(indexed, asked, answered):
    lists, _ = answered(indexed("IVF8,Flat"), asked, top=60, parameters="nprobe=1")
    assert all(0 < len(found) < 60 for found in lists.values())


@pytest.mark.parametrize("name", METHODS)
def test_methods_after_a_search_of_a_flat_index(indexed, asked, answered, tmp_path, name):
    lists, result = answered(indexed(), asked, top=60, expansion=(name,), neighbours=5)
    unit = [(v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in (QUERIES, VECTORS)]
    found, _ = apply(Retrieval(unit[0], from_array(unit[1], np.argsort(np.argsort(IDS)))), [name], 5)
    ranked = tables.read(str(tmp_path / "out" / "ranked.parquet")).to_pylist()
    for query, (rows, scores, _) in zip(QUERY_IDS, found.best(60), strict=True):
        assert lists[query] == sorted(lists[query], key=lambda pair: (-pair[1], pair[0]))
        expected = dict(zip((IDS[row] for row in rows), scores, strict=True))
        if METHODS[name].replaces_scores:
            cosines = dict(zip(IDS, unit[1] @ unit[0][QUERY_IDS.index(query)], strict=True))
            kept = {row["image_id"]: row["cosine"] for row in ranked if row["query_id"] == query}
            assert kept == pytest.approx({image_id: cosines[image_id] for image_id in kept}, abs=1e-6)
        # Photo by photo: scores that tie but for the last bit stand in an order that differs between processors.
        assert dict(lists[query]) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    (step,) = result["expansion"]
    assert (step["method"], step["neighbours"]) == (name, 5)
    assert step["seconds"] > 0


@pytest.mark.parametrize("name", ["aqe", "k-reciprocal", *slow("alpha-qe", "dba", "diffusion")])
def test_methods_after_a_search_of_another_index(write_descriptors, tmp_path, answered, name):
    folder = write_descriptors(IDS, np.random.default_rng(1).standard_normal((60, 6)))
    exact, _ = answered(folder, folder, expansion=(name,), neighbours=5)
    for factory, parameters in (("IVF4,Flat", "nprobe=4"), ("L2norm,SQfp16", None), ("HNSW16", None)):
        build(IndexConfig(descriptors=folder, out=str(tmp_path / factory), factory=factory))
        lists, _ = answered(str(tmp_path / factory), folder, expansion=(name,), neighbours=5, parameters=parameters)
        assert np.mean([lists[query][0][0] == found[0][0] for query, found in exact.items()]) > 0.9
        if factory == "IVF4,Flat":  # which looks into each of its lists, so misses nothing
            for query, found in exact.items():
                np.testing.assert_allclose([s for _, s in lists[query]], [s for _, s in found], rtol=1e-4)


def test_codes_that_can_not_be_decoded_are_not_expanded(indexed, asked, answered):
    index = indexed("IVF2,PQ3x4fs")
    answered(index, asked)
    with pytest.raises(UserError, match="fast-scan codes can't return vectors"):
        answered(index, asked, expansion=("aqe",))


def test_top_beyond_the_database_is_clipped_and_said(folder, asked, answered, caplog):
    lists, result = answered(folder, asked, top=1000)
    assert {len(found) for found in lists.values()} == {60}
    assert result["top"] == 60
    assert "--top 1000 exceeds the database; each list has all 60 photos" in caplog.text


def test_the_first_hits_are_logged(folder, asked, answered, caplog):
    caplog.set_level(logging.INFO)
    lists, _ = answered(folder, asked)
    for name, found in lists.items():
        assert f"{name}  " + "  ".join(f"{image_id} {score:.3f}" for image_id, score in found[:3]) in caplog.messages


def test_queries_that_could_not_be_decoded_are_named_and_others_answered(folder, write_descriptors, answered, caplog):
    asked = write_descriptors(QUERY_IDS, QUERIES, name="queries", errors=QUERY_IDS[:2])
    lists, result = answered(folder, asked)
    assert lists.keys() == set(QUERY_IDS[2:])
    assert (result["queries"], result["errors"]) == (7, 2)
    assert result["failed"].keys() == set(QUERY_IDS[:2])


def test_other_embeddings_are_refused_by_name_and_nothing_is_written(folder, indexed, write_descriptors, tmp_path):
    other = write_descriptors(QUERY_IDS, QUERIES, name="other", pooling="mac")
    for index in (folder, indexed()):
        for changes in ({"queries": other}, {"queries": str(tmp_path), "model": "vgg16-mac"}):
            with pytest.raises(UserError, match="different embeddings: pooling 'gem' ≠ 'mac'"):
                search(SearchConfig(index=index, out=str(tmp_path / "out"), **changes))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def whitening_file(folder, tmp_path):
    embedding = identity.of_folder(folder).as_json()
    projection = np.random.default_rng(3).standard_normal((4, 6))
    Whitening(np.full(6, 0.1), projection, np.ones(6), 0.25, "pca", {}, embedding).save(f"{tmp_path}/w.npz")
    return f"{tmp_path}/w.npz"


def test_whitening_is_applied_to_both_sides_or_refused(indexed, asked, answered, whitening_file, write_descriptors):
    folder = str(Path(asked).parent / "descriptors")
    apply = whitening.load(whitening_file).apply
    unit = [(v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in (QUERIES, VECTORS)]
    expected = {name: listed(apply(q[None])[0], apply(unit[1]))[:9] for name, q in zip(QUERY_IDS, unit[0], strict=True)}
    whitened = write_descriptors(
        QUERY_IDS, apply(unit[0]), name="whitened", whitening=seal.sha256_of_file(whitening_file), raw=True
    )
    index = indexed(whitening=whitening_file)
    for database, given in ((folder, asked), (index, asked), (folder, whitened), (index, whitened)):
        lists, _ = answered(database, given, top=9, whitening=whitening_file)
        for name, found in expected.items():
            np.testing.assert_allclose([score for _, score in lists[name]], [score for _, score in found], atol=1e-6)
    for database, given, file in (
        (index, asked, None),
        (folder, whitened, None),
        (indexed("SQ8"), asked, whitening_file),
    ):
        with pytest.raises(UserError, match="different embeddings: whitening"):
            answered(database, given, whitening=file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top": 0}, "--top must be at least 1, not 0"),
        ({"index": "nowhere"}, "--index 'nowhere' holds neither an index nor descriptors; make it with index.py"),
        ({"queries": "nowhere"}, "--queries 'nowhere': there is no such file or folder"),
        ({"queries": "EMPTY"}, "is an empty folder; put photos into it"),
        ({"queries": "PHOTOS", "model": None}, "are photos; give --model, the model that made"),
        ({"queries": "PHOTOS", "model": "vgg16-gemm"}, "unknown pooling 'gemm'"),
        ({"parameters": "nprobe=3"}, "--parameters 'nprobe=3' are for an index"),
        ({"expansion": ("diffusion", "aqe")}, "--expansion diffusion replaces the scores, so it must be the last"),
        ({"neighbours": 5}, "goes with --expansion"),
        ({"label": ("a",)}, "--label and --in-split need --manifest, the table of the labels and splits"),
        ({"manifest": "MANIFEST", "label": ("x",)}, r"has no photo with the label 'x'; name a label of that table"),
        ({"manifest": "MANIFEST", "in_split": "x"}, r"has no row with split 'x'; its splits are test, train"),
        ({"manifest": "OTHER"}, r"none of the 1 chosen photos of .* is in .*; give its manifest"),
        ({"memory": "lots"}, "--memory 'lots' is not a size, such as 512MB or 8GB"),
        ({"whitening": "nowhere.npz"}, "no whitening file 'nowhere.npz'"),
    ],
)
def test_what_can_not_be_is_one_line_and_nothing_is_written(asked, tmp_path, manifests, changes, message):
    folder = str(Path(asked).parent / "descriptors")
    (tmp_path / "photos" / "empty").mkdir(parents=True)
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    named = {"EMPTY": str(tmp_path / "photos" / "empty"), "PHOTOS": str(tmp_path / "photos")}
    named |= manifests
    values = {"index": folder, "queries": asked, "out": str(tmp_path / "out"), "model": "vgg16-gem"} | changes
    with pytest.raises(UserError, match=message) as error:
        search(SearchConfig(**{name: named.get(str(value), value) for name, value in values.items()}))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_parameters_that_the_index_does_not_have(indexed, asked, answered):
    with pytest.raises(UserError, match="--parameters 'nprobe=3' can't be set on this index"):
        answered(indexed("HNSW16"), asked, parameters="nprobe=3")


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ("nprobe=0", "nprobe must be at least 1"),
        ("nprobe=-1", "-1 is not from 0"),
        ("nprobe=1e11", "1e11 is not from 0"),
    ],
)
def test_parameters_that_no_search_can_have(indexed, asked, answered, parameters, fault):
    with pytest.raises(UserError, match=f"--parameters '{parameters}' can't be set on this index: {fault}"):
        answered(indexed("IVF4,Flat"), asked, parameters=parameters)


def test_queries_are_a_photo_a_folder_or_the_rows_of_a_manifest_that_may_be_queries(tmp_path, write_manifest):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name in ("b.jpg", "sub/a.png", ".hidden"):
        (tmp_path / "photos" / name).write_bytes(b"")
    table = queries.list_photos(str(tmp_path / "photos")).to_pylist()
    assert table == [{"image_id": n, "path": str(tmp_path / "photos" / n)} for n in ("b.jpg", "sub/a.png")]
    (row,) = queries.list_photos(str(tmp_path / "photos" / "b.jpg")).to_pylist()
    assert row == {"image_id": "b.jpg", "path": str(tmp_path / "photos" / "b.jpg")}
    box = {"x1": [1, 1, 1], "y1": [2, 2, 2], "x2": [3, 3, 3], "y2": [4, 4, 4]}
    manifest = write_manifest(image_id=["x", "y", "z"], role=["query", "database", None], **box)
    rows = queries.list_photos(manifest).to_pylist()
    assert [row["image_id"] for row in rows] == ["x", "z"]
    assert rows[0] == {"image_id": "x", "path": str(tmp_path / "x.jpg"), "x1": 1, "y1": 2, "x2": 3, "y2": 4}


def test_photos_find_themselves_and_settings_follow_the_index(in_threads, monkeypatch, demo, tmp_path, answered):
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("a few photos need no Ray"))
    label = sorted(path for path in demo.iterdir() if path.is_dir())[0]
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(label.glob("*.jpg"))[:4]:
        (photos / path.name).write_bytes(path.read_bytes())
    manifest = tmp_path / "photos.csv"
    manifest.write_text("image_id,path\n" + "".join(f"{p.name},{p}\n" for p in sorted(photos.iterdir())))
    how = {"model": "vgg16-gem", "image_size": 64, "precision": "float32", "scales": (1.0, 0.5)}
    extract(ExtractConfig(manifest=str(manifest), out=str(tmp_path / "descriptors"), **how))
    build(IndexConfig(descriptors=str(tmp_path / "descriptors"), out=str(tmp_path / "index")))
    (photos / "broken.jpg").write_bytes(b"no photo")
    lists, result = answered(str(tmp_path / "index"), str(photos), model="vgg16-gem")
    assert {name: found[0][0] for name, found in lists.items()} == {f"0{n}.jpg": f"0{n}.jpg" for n in range(4)}
    assert all(found[0][1] == pytest.approx(1, abs=1e-5) for found in lists.values())
    assert (result["queries"], result["errors"]) == (5, 1)
    assert "no photo in a known format" in result["failed"]["broken.jpg"]
    config = SearchConfig(
        index=str(tmp_path / "index"),
        queries=str(photos),
        out=str(tmp_path / "other"),
        model="vgg16-gem",
        image_size=96,
    )
    with pytest.raises(UserError, match="different embeddings: image_size 64 ≠ 96"):
        search(config)
    with pytest.raises(UserError, match=r"none of the 1 photos of .* could be decoded, such as 'broken.jpg'"):
        search(replace(config, image_size=None, queries=str(photos / "broken.jpg")))
    assert json.loads(Path(f"{tmp_path}/out/run.json").read_text())["status"] == "done"
