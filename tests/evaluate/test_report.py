"""The report of an evaluation: its figures against naive loops, its photos, its size, and names shown as text."""

import html.parser
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dim.evaluate import comparison, evaluation
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.evaluation import Hit, QueryResult
from dim.evaluate.job import evaluate
from dim.evaluate.metrics import average_precision
from dim.report import evaluation as evaluation_report
from dim.report import gallery

RNG = np.random.default_rng(11)
EVIL = ("<script>alert(1)</script>", "\"a\" & 'b'", "مرحبا\u202eabc", "😀")


def judged(query_id, ranks, n_positives, label=None, hits=()):
    ranks = np.array(ranks, np.int64)
    return QueryResult(
        query_id, label, {"map": average_precision(ranks, n_positives)}, {}, n_positives, ranks, list(hits)
    )


def random_queries(count):
    for number in range(count):
        ranks = np.sort(RNG.choice(40, RNG.integers(0, 6), replace=False))
        yield judged(f"q{number}", ranks, len(ranks) + int(RNG.integers(0, 3)))


def test_precision_by_recall_equals_a_naive_loop():
    queries = list(random_queries(60))
    found = evaluation_report.precision_by_recall(queries)
    for level, value in zip([tenth / 10 for tenth in range(11)], found, strict=True):
        best = []
        for query in (query for query in queries if query.n_positives):
            points = [(i / query.n_positives, i / (rank + 1)) for i, rank in enumerate(query.ranks.tolist(), 1)]
            best.append(max((precision for recall, precision in points if recall >= level - 1e-9), default=0.0))
        assert value == pytest.approx(np.mean(best))


def test_recall_at_k_equals_a_naive_loop():
    queries = list(random_queries(60))
    any_of, shares = evaluation_report.recall_by_depth(queries, [1, 3, 10, 40])
    kept = [query for query in queries if query.n_positives]
    for k, hit, share in zip([1, 3, 10, 40], any_of, shares, strict=True):
        within = [sum(rank < k for rank in query.ranks.tolist()) for query in kept]
        assert hit == pytest.approx(np.mean([count > 0 for count in within]))
        assert share == pytest.approx(np.mean([c / q.n_positives for c, q in zip(within, kept, strict=True)]))


def test_the_histogram_counts_every_query_once():
    assert evaluation_report.histogram([0, 0.05, 0.1, 0.55, 0.999, 1.0]).tolist() == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2]


def test_confusions_equal_a_naive_loop():
    def hits(*labels, own):
        verdicts = {None: "junk", own: "right"}
        return [Hit(n, label, 1 - n / 10, verdicts.get(label, "wrong")) for n, label in enumerate(labels)]

    lists = [("a", "b", "a"), ("a", "a", "b"), ("a", None, "b"), ("b", "a"), ("a", "c"), ("c", None), ("b", "a")]
    queries = [judged(f"q{n}", [0], 1, own, hits(*found, own=own)) for n, (own, *found) in enumerate(lists)]
    queries.append(judged("alone", [], 0, "d", hits("a", own="d")))
    found = evaluation.confusions(queries)
    firsts = [(own, next(filter(None, found), None)) for own, *found in lists]
    expected = Counter((own, first) for own, first in firsts if first not in (own, None))
    assert {(pair.label, pair.taken_for): len(pair.queries) for pair in found} == expected
    assert [(pair.label, pair.taken_for) for pair in found] == [("a", "b"), ("b", "a"), ("a", "c")]
    assert [pair.of for pair in found] == [4, 2, 4]
    assert [query.query_id for query in found[0].queries] == ["q0", "q2"]


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(100, 17, (17, 17, 17)), (9, 5, (3, 3, 3)), (8, 5, (3, 2, 3)), (2, 5, (1, 0, 1)), (1, 5, (1, 0, 0))],
)
def test_groups_are_the_ends_and_the_middle_and_never_overlap(count, size, sizes):
    queries = gallery.by_ap([judged(f"q{n}", [n], 1) for n in range(count)])
    found = gallery.groups(queries, size)
    assert tuple(len(group) for group in found.values()) == sizes
    names = [query.query_id for group in found.values() for query in group]
    assert len(names) == len(set(names))
    assert found["worst"] == queries[: sizes[0]]
    if sizes[2]:
        assert found["best"] == queries[-sizes[2] :]
    if count == 100:
        assert [query.query_id for query in found["median"]] == [f"q{n}" for n in range(58, 41, -1)]


def table(**aps):
    labels = pa.nulls(len(aps), pa.string())
    return pa.table({"query_id": list(aps), "label": labels, "ap": pa.array(aps.values(), pa.float64())})


def test_a_comparison_joins_the_queries_that_both_have():
    found = comparison.compare("old", table(a=0.5, b=0.25, c=None, d=1.0), "new", table(b=0.75, c=0.5, a=0.25))
    assert [(row["query_id"], row["difference"]) for row in found.table.to_pylist()] == [
        ("b", 0.5), ("a", -0.25), ("c", None),
    ]  # fmt: skip
    assert found.change.difference == pytest.approx(0.125)
    assert found.as_json()["before"] == "old"
    assert "new against old: mAP +0.1250 on 2 queries of 2 objects, 2 objects are too few for" in found.line()
    nothing = comparison.compare("old", table(a=0.5), "new", table(b=0.75))
    assert nothing.as_json() is None
    assert "no query in common" in nothing.line()


class Reader(html.parser.HTMLParser):
    """A page's text, and the text and photos of each section by its heading."""

    def __init__(self, path):
        super().__init__()
        self.sections, self.titles, self.scripts = {}, {}, 0
        self._heading, self._in_heading = None, False
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.scripts += tag == "script"
        self._in_heading = tag == "h2"
        if self._in_heading:
            self._heading = ""
        if tag == "use" and self._heading:
            self.sections.setdefault(self._heading, []).append(attributes["href"])

    def handle_endtag(self, tag):
        if tag == "h2":
            self._in_heading = False

    def handle_data(self, data):
        if self._in_heading:
            self._heading += data
        elif self._heading is not None:
            self.titles[self._heading] = self.titles.get(self._heading, "") + data + "|"


@pytest.fixture
def photographed(tmp_path, write_manifest, write_descriptors):
    """Arguments for an evaluation of `count` photos of noise, `of` to a label."""

    def make(count, of=5, labels=None):
        ids = [f"folder/photo-{number:05d}" for number in range(count)]
        (tmp_path / "folder").mkdir()
        for number, image_id in enumerate(ids):
            pixels = np.random.default_rng(number).integers(0, 256, (150, 200, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{image_id}.jpg", quality=90)
        vectors = (
            RNG.standard_normal((count, 16)) + np.repeat(RNG.standard_normal((-(-count // of), 16)), of, 0)[:count]
        )
        labels = labels or [f"label-{number // of:04d}" for number in range(count)]
        manifest = write_manifest(image_id=ids, label=labels)
        return {"manifest": manifest, "descriptors": (write_descriptors(ids, vectors),), "out": str(tmp_path / "out")}

    return make


@pytest.mark.slow
def test_five_hundred_queries_make_less_than_five_megabytes(photographed):
    arguments = photographed(500)
    evaluate(EvaluateConfig(**arguments))
    text = Path(arguments["out"], "report.html").read_text()
    assert len(text.encode()) < 5_000_000
    assert Path(arguments["out"], "map.html").stat().st_size < 5_000_000
    embedded = re.findall(r"data:image/jpeg;base64,[^\"]+", text)
    assert len(embedded) == len(set(embedded)) > 300
    # In the queries' table stand all of them, with photos 51, and 9 of the confused labels may have others.
    strips = re.findall(r"<tbody><tr>.*?</tbody>", text[text.index("All queries</h2>") :])
    assert len(strips) == 500
    assert sum("<use " in strip for strip in strips) == evaluation_report.PICTURED - evaluation_report.CONFUSED
    found = Reader(f"{arguments['out']}/report.html")
    shown = [use for title in ("Worst queries", "Median queries", "Best queries") for use in found.sections[title]]
    assert len(shown) == 51 * 11


def test_what_stands_on_the_page_is_what_was_measured(photographed):
    arguments = photographed(40)
    found = evaluate(EvaluateConfig(**arguments))
    text = Reader(f"{arguments['out']}/report.html").titles
    assert f"{found['map']:.4f}" in text["Headline"]
    assert f"{found['recall']['1']:.4f}" in text["Headline"]
    rows = pq.read_table(f"{arguments['out']}/per_query.parquet").to_pylist()
    ordered = sorted(rows, key=lambda row: (row["ap"], row["query_id"]))
    shown = re.findall(r"AP ([\d.]+) ", text["Worst queries"])
    assert shown == [f"{row['ap']:.3f}" for row in ordered[:14]]
    assert all(f"|{row['query_id']}|" in text["All queries"] for row in rows)
    assert "Comparison" not in text


def test_two_runs_and_a_baseline_are_compared(photographed, write_descriptors):
    arguments = photographed(30)
    before = evaluate(EvaluateConfig(**arguments))
    ids = pq.read_table(f"{arguments['out']}/per_query.parquet")["query_id"].to_pylist()
    other = write_descriptors(ids, RNG.standard_normal((30, 8)), name="other", pooling="mac")
    two = arguments | {"descriptors": (*arguments["descriptors"], other), "out": arguments["out"] + "-two"}
    found = evaluate(EvaluateConfig(**two, baseline=f"{arguments['out']}/metrics.json"))
    change = found["difference"]
    assert change["difference"] == pytest.approx(found["compared"][1]["map"] - before["map"])
    assert change["low"] < change["difference"] < change["high"] < 0
    assert found["against_baseline"]["difference"] == 0
    text = Reader(f"{two['out']}/report.html").titles
    assert f"{change['difference']:+.4f}" in text["Comparison"]
    assert "Largest losses" in text["Comparison"]
    assert "Largest" not in text["Against the baseline"]
    Path(arguments["out"], "per_query.parquet").unlink()
    again = evaluate(EvaluateConfig(**arguments | {"out": two["out"]}, baseline=f"{arguments['out']}/metrics.json"))
    assert again == before


def test_names_are_text_in_the_report_and_on_the_map(photographed):
    labels = [EVIL[number // 5] for number in range(20)]
    arguments = photographed(20, labels=labels)
    evaluate(EvaluateConfig(**arguments))
    for name in ("report.html", "map.html"):
        found = Reader(f"{arguments['out']}/{name}")
        assert found.scripts == 1
        text = "".join(found.titles.values())
        assert all(label in text for label in EVIL)


def test_pages_are_left_out_where_they_are_not_wanted_and_photos_need_not_exist(photographed, tmp_path):
    arguments = photographed(10)
    evaluate(EvaluateConfig(**arguments, report=False))
    assert not list(Path(arguments["out"]).glob("*.html"))
    for path in (tmp_path / "folder").iterdir():
        path.unlink()
    evaluate(EvaluateConfig(**arguments))
    found = Reader(f"{arguments['out']}/report.html")
    assert "no such file" in found.titles["Photos that could not be read: 10"]
