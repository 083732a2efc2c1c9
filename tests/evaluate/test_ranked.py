"""`--ranked`: lists of a search give the figures that the descriptors give, and what is wrong with a list is told."""

import json

import numpy as np
import pyarrow as pa
import pytest

from dim.errors import GateNotMet, UserError
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.io import tables
from dim.search.config import SearchConfig
from dim.search.job import search

IDS = [f"{label}{view}" for label in "abcdef" for view in range(3)]
VECTORS = np.random.default_rng(0).standard_normal((len(IDS), 4)) + np.repeat(np.eye(6, 4), 3, axis=0)


@pytest.fixture
def lists(write_manifest, write_descriptors, tmp_path):
    """A manifest, its descriptors, and what a search of all photos for all photos found."""
    manifest = write_manifest(image_id=IDS, label=[image_id[0] for image_id in IDS])
    folder = write_descriptors(IDS, VECTORS)
    config = SearchConfig(index=folder, queries=folder, out=str(tmp_path / "found"), top=len(IDS), report=False)
    search(config)
    return manifest, folder, str(tmp_path / "found" / "ranked.parquet")


@pytest.fixture
def measure(lists, tmp_path):
    def run(ranked=None, out="out", **options):
        if ranked is None:
            ranked = lists[2]
        elif not isinstance(ranked, str):
            tables.write(str(tmp_path / "lists.parquet"), ranked)
            ranked = str(tmp_path / "lists.parquet")
        return evaluate(EvaluateConfig(manifest=lists[0], ranked=ranked, out=str(tmp_path / out), **options))

    return run


def rows_of(table, *kept):
    return table.take(pa.array(list(kept), pa.int64()))


@pytest.mark.parametrize("protocol", ["labels", "holidays", "ukbench"])
def test_the_lists_give_what_the_descriptors_give(lists, measure, tmp_path, protocol):
    manifest, folder, _ = lists
    evaluate(
        EvaluateConfig(
            manifest=manifest, descriptors=(folder,), out=str(tmp_path / "one"), protocol=protocol, report=False
        )
    )
    by_descriptors = json.loads((tmp_path / "one" / "metrics.json").read_text())
    found = measure(protocol=protocol)
    common = (found.keys() & by_descriptors.keys()) - {"n_listed"}
    assert {name: found[name] for name in common} == {name: by_descriptors[name] for name in common}
    assert found["map"] > 0.3 and found["embedding"] == by_descriptors["embedding"]
    one, other = (tables.read(str(tmp_path / name / "per_query.parquet")) for name in ("one", "out"))
    assert other.sort_by("query_id").equals(one.sort_by("query_id"))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == found


def test_graded_images_that_a_list_lacks_count_as_not_listed(measure, write_truth, tmp_path):
    truth = write_truth(("a0", "a1", "good"), ("a0", "a2", "good"), ("a0", "b0", "junk"))
    rows = {"query_id": ["a0"] * 3, "rank": [2, 1, 3], "image_id": ["a1", "b0", "c0"]}
    found = measure(pa.table(rows), protocol="gldv2", ground_truth=truth)
    assert (found["map"], found["n_queries"], found["n_listed"]) == (0.5, 1, 3)
    assert found["embedding"] is None and not (tmp_path / "out" / "report.html").exists()


def test_a_query_without_a_list_was_not_readable(lists, measure):
    table = tables.read(lists[2])
    found = measure(table.filter(pa.compute.not_equal(table["query_id"], "a0")))
    assert (found["n_queries"], found["unreadable_queries"]) == (len(IDS) - 1, 1)


def test_the_gate_compares_lists(lists, measure, tmp_path):
    measure(out="before")
    table = tables.read(lists[2])
    worse = table.set_column(1, "rank", pa.compute.subtract(len(IDS) + 1, table["rank"]))
    with pytest.raises(GateNotMet, match="lower on the 18 queries"):
        measure(worse, out="after", baseline=str(tmp_path / "before" / "metrics.json"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_id": ["a1", "nobody"]}, "row 2 lists image_id 'nobody', which is not in the database of"),
        ({"query_id": ["nobody", "nothing"]}, "has no list of a query of"),
        ({"rank": [1, 3]}, "the ranks of query 'a0' are not 1, 2, 3 and so on, each once"),
        ({"rank": [1, 1]}, "the ranks of query 'a0' are not 1, 2, 3"),
        ({"rank": [0, 1]}, "the ranks of query 'a0' are not 1, 2, 3"),
        ({"rank": ["first", "second"]}, "column 'rank' must be whole numbers"),
        ({"image_id": ["a1", "a1"]}, "lists 'a1' twice for query 'a0'"),
    ],
)
def test_a_wrong_list_is_refused(measure, tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        measure(pa.table({"query_id": ["a0", "a0"], "rank": [1, 2], "image_id": ["a1", "a2"]} | changed))
    assert not (tmp_path / "out").exists()


def test_what_does_not_go_with_lists_is_refused(lists, measure, tmp_path):
    with pytest.raises(UserError, match="holds the results of a search; leave out --descriptors"):
        measure(descriptors=(lists[1],))
    with pytest.raises(UserError, match="has no column 'rank'"):
        measure(pa.table({"query_id": ["a0"], "image_id": ["a1"]}))
    with open(lists[2], "r+b") as file:
        file.write(b"PAR2")
    with pytest.raises(UserError, match="is not the file that its run"):
        measure()
    assert not (tmp_path / "out").exists()


def test_queries_in_a_list_that_are_not_in_the_database_do_not_count(write_manifest, tmp_path):
    """An index of all descriptors finds the queries as well."""
    manifest = write_manifest(
        image_id=["q", "r", "a", "b"], label=["1"] * 3 + ["2"], role=["query"] * 2 + ["database"] * 2
    )
    rows = {"query_id": ["q"] * 4 + ["r"], "rank": [1, 2, 3, 4, 1], "image_id": ["q", "r", "b", "a", "r"]}
    tables.write(str(tmp_path / "lists.csv"), pa.table(rows))
    config = EvaluateConfig(manifest=manifest, ranked=str(tmp_path / "lists.csv"), out=str(tmp_path / "out"))
    found = evaluate(config)
    assert (found["map"], found["n_listed"], found["n_database"]) == (0.125, 0, 2)
    assert tables.read(str(tmp_path / "out" / "per_query.parquet"))["first_rank"].to_pylist() == [2, None]
