"""The protocol ilias, on ranked lists, against the benchmark's own figures and against a naive loop."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pytest

from dim.errors import UserError
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.io import tables

EDGES = {
    "scale": [0, 0.06880213760855043, 0.13526567164179104, 0.2729876723163842, np.inf],
    "clutter": [0, 18, 33, 53, np.inf],
}
NAMES = {
    "scale": ["0-0.0688", "0.0688-0.135", "0.135-0.273", "0.273-inf"],
    "clutter": ["0-18", "18-33", "33-53", "53-inf"],
}


def object_of(image_id):
    return image_id.partition("/")[0]


@pytest.fixture
def measure(tmp_path):
    """Evaluates ranked lists {query: [image, …]} with `positives` (id, scale, clutter); others are distractors."""

    def run(positives, lists, **options):
        others = sorted({image for found in lists.values() for image in found} - {image for image, *_ in positives})
        rows = [(query, object_of(query), "query", None, None) for query in lists]
        rows += [(image, object_of(image), "database", scale, clutter) for image, scale, clutter in positives]
        rows += [(image, None, "database", None, None) for image in others]
        names = ["image_id", "label", "role", "scale", "clutter"]
        types = [pa.string(), pa.string(), pa.string(), pa.float64(), pa.int64()]
        columns = {n: pa.array(v, t) for n, v, t in zip(names, zip(*rows, strict=True), types, strict=True)}
        tables.write(str(tmp_path / "manifest.parquet"), pa.table(columns | {"path": columns["image_id"]}))
        ranked = [(query, rank, image) for query, found in lists.items() for rank, image in enumerate(found, 1)]
        shuffled = [ranked[row] for row in np.random.default_rng(0).permutation(len(ranked))]
        table = pa.table(
            dict(zip(("query_id", "rank", "image_id"), map(list, zip(*shuffled, strict=True)), strict=True))
        )
        tables.write(str(tmp_path / "ranked.parquet"), table)
        known = {"protocol": "ilias", "manifest": str(tmp_path / "manifest.parquet"), "out": str(tmp_path / "out")}
        return evaluate(EvaluateConfig(ranked=str(tmp_path / "ranked.parquet"), **(known | options)))

    return run


def test_the_figures_are_those_of_the_benchmarks_own_code(shared, measure, tmp_path):
    case = json.loads(gzip.decompress(shared("oracle/ilias.json.gz").read_bytes()))
    expected = case["expected"]["1000"]
    found = measure(case["positives"], case["lists"])
    assert found["map"] == pytest.approx(expected["map"], abs=1e-12)
    assert found["oracle"] == pytest.approx(expected["oracle"], abs=1e-12)
    for column, edges in EDGES.items():
        assert list(found[column]) == NAMES[column]
        for name, low, high in zip(NAMES[column], edges, edges[1:], strict=False):
            assert found[column][name]["map"] == pytest.approx(expected[column][f"{low}-{high}"], abs=1e-12)
    per_query = tables.read(str(tmp_path / "out" / "per_query.parquet"))
    aps = dict(zip(per_query["query_id"].to_pylist(), per_query["ap"].to_pylist(), strict=True))
    assert aps == pytest.approx(expected["ap"], abs=1e-12)


def naive(positives, lists, depth, column=None, limits=(0, np.inf)):
    """mAP@depth, the oracle and recall@5 by definition; with `column`, of the positives within the limits alone."""
    place = {"scale": 1, "clutter": 2}.get(column)
    aps, oracles, recalls = [], [], []
    for query, listed in lists.items():
        own = [row for row in positives if object_of(row[0]) == object_of(query)]
        kept = {row[0] for row in own if column is None or limits[0] <= row[place] < limits[1]}
        if not kept:
            continue
        left = [image for image in listed if image in kept or image not in {row[0] for row in own}][:depth]
        found, total = 0, 0.0
        for rank, image in enumerate(left, 1):
            if image in kept:
                found += 1
                total += found / rank
        aps.append(total / min(depth, len(kept)))
        oracles.append(found / len(kept))
        recalls.append(any(image in kept for image in left[:5]))
    return sum(aps) / len(aps), sum(oracles) / len(oracles), sum(recalls) / len(recalls), len(aps)


def figures(found):
    return found["map"], found["oracle"], found["recall"]["5"], found["n_queries"]


def generated(seed, queries=6, length=1200):
    """Lists of which some are longer than the depth, and positives on the edges of groups and not listed at all."""
    random = np.random.default_rng(seed)
    positives = []
    for number in range(queries):
        for view in range(random.integers(1, 9)):
            scale = random.choice([*EDGES["scale"][:-1], *random.random(4)])
            positives.append(
                (f"o{number}/pos/{view}", float(scale), int(random.choice([0, 17, 18, 32, 33, 52, 53, 90])))
            )
    lists = {}
    for number in range(queries):
        own = [row[0] for row in positives if object_of(row[0]) == f"o{number}" and random.random() < 0.8]
        found = [f"{tar:04d}.tar/{key}" for tar in range(3) for key in range(length // 3)]
        for image in own:
            found.insert(int(random.integers(len(found))), image)
        lists[f"o{number}/query/0"] = found[: random.integers(len(found) // 2, len(found))]
    return positives, lists


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_are_those_of_a_naive_loop(measure, seed):
    positives, lists = generated(seed)
    found = measure(positives, lists)
    assert figures(found) == pytest.approx(naive(positives, lists, 1000), abs=1e-12)
    for column, edges in EDGES.items():
        for name, low, high in zip(NAMES[column], edges, edges[1:], strict=False):
            values = figures(found[column][name])
            try:
                expected = naive(positives, lists, 1000, column, (low, high))
            except ZeroDivisionError:
                expected = (None, None, None, 0)
            assert values == (expected if expected[3] == 0 else pytest.approx(expected, abs=1e-12))


def test_descriptors_give_what_their_lists_give_and_a_page(write_descriptors, measure, tmp_path):
    positives = [(f"o{number}/pos/{view}", 0.05 + 0.2 * view, 20 * view) for number in range(3) for view in range(3)]
    queries, others = [f"o{number}/query/0" for number in range(3)], [f"0000.tar/{key}" for key in range(9)]
    database = [image for image, *_ in positives] + others
    vectors = np.random.default_rng(0).standard_normal((len(queries + database), 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = vectors[:3] @ vectors[3:].T
    lists = {
        query: [database[column] for column in np.argsort(-row)] for query, row in zip(queries, scores, strict=True)
    }
    by_lists = measure(positives, lists)
    by_descriptors = evaluate(
        EvaluateConfig(
            manifest=str(tmp_path / "manifest.parquet"),
            descriptors=(write_descriptors(queries + database, vectors),),
            out=str(tmp_path / "with pages"),
            protocol="ilias",
        )
    )
    for name in ("map", "oracle", "scale", "clutter", "n_queries", "n_database"):
        assert by_descriptors[name] == by_lists[name]
    page = (tmp_path / "with pages" / "report.html").read_text()
    assert all(shown in page for shown in ("Oracle", "mAP, scale 0-0.0688", "mAP, clutter 53-inf"))


def test_a_golden_case(measure):
    """By hand: AP = (1/1 + 2/4) / 3; without the positive of the larger scale, 1/3 / 1."""
    positives = [("a/pos/0", 0.5, 3), ("a/pos/1", 0.01, 60), ("a/pos/2", 0.5, 20)]
    found = measure(positives, {"a/query/0": ["a/pos/0", "x.tar/1", "x.tar/2", "a/pos/1", "x.tar/3"]})
    assert found["map"] == pytest.approx(0.5, abs=1e-15)
    assert found["oracle"] == pytest.approx(2 / 3, abs=1e-15)
    assert found["scale"]["0-0.0688"] == {
        "map": pytest.approx(1 / 3),
        "oracle": 1.0,
        "recall": {"1": 0, "5": 1},
        "n_queries": 1,
    }
    assert found["scale"]["0.273-inf"] == {"map": 0.5, "oracle": 0.5, "recall": {"1": 1, "5": 1}, "n_queries": 1}
    none = {"map": None, "oracle": None, "recall": {"1": None, "5": None}, "n_queries": 0}
    assert found["scale"]["0.0688-0.135"] == none
    assert found["clutter"]["18-33"]["map"] == 0.0


@pytest.mark.parametrize(
    ("positive", "message"),
    [
        (
            ("a/pos/0", None, 3),
            "image_id 'a/pos/0' has the scale None; each photo with a label needs a number from 0",
        ),
        (("a/pos/0", float("nan"), 3), "has the scale nan"),
        (("a/pos/0", 0.1, -1), "has the clutter -1"),
    ],
)
def test_a_positive_without_a_group_is_refused(measure, tmp_path, positive, message):
    with pytest.raises(UserError, match=message):
        measure([positive], {"a/query/0": ["a/pos/0"]})
    assert not (tmp_path / "out").exists()
