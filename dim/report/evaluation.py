"""What people see of an evaluation: report.html and map.html, pages that hold all they show.

What the report draws of an evaluation: means over its queries that have a positive.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dim.app.output import Output
from dim.data import manifest
from dim.evaluate import evaluation
from dim.evaluate.comparison import Comparison
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.descriptor_sets import DescriptorSet
from dim.evaluate.evaluation import Judged
from dim.evaluate.protocols import PROTOCOLS, Task
from dim.report import charts, gallery, parts
from dim.report.charts import Axis, Bars, Line
from dim.report.gallery import Gallery, figures, settings
from dim.report.page import Html, Page, element, name
from dim.report.parts import Column, Row

PICTURED = 60  # queries that are shown with photos, of which:
CHANGED = 8  # that got better, and as many that got worse
CONFUSED = 9  # examples of labels that are confused
ROWS = 2000  # of the table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """A source, its judged queries, and the contents of metrics.json for it."""

    source: DescriptorSet
    judged: list[Judged]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One of the runs that are shown: its queries by id, and the cards of what they found."""

    name: str
    queries: dict[str, Judged]
    gallery: Gallery


def write(
    config: EvaluateConfig, task: Task, measured: Sequence[Measured], comparisons: Sequence[Comparison], out: Output
) -> None:
    """Writes the report of the first of `measured`, with the `comparisons` that it is part of, and the map."""
    distractors = manifest.read(config.distractors) if config.distractors else None
    sides = [
        Side(one.source.name, {query.query_id: query for query in one.judged}, Gallery(task, one.source, distractors))
        for one in measured
    ]
    _page(config, measured, sides, comparisons).write(out.path("report.html"))
    sides[0].gallery.atlas().write(out.path("map.html"))
    log.info("look at %s and, for a map of the photos, at %s", out.path("report.html"), out.path("map.html"))


def _page(
    config: EvaluateConfig, measured: Sequence[Measured], sides: Sequence[Side], comparisons: Sequence[Comparison]
) -> Page:
    first, ranked = measured[0], gallery.by_ap(measured[0].judged)
    made = Page("evaluate", "How well photos are found", _summary(config, first))
    made.section("Headline", parts.figures(figures(first.metrics)), parts.facts(settings(config, first.metrics)))
    made.section("Curves", _curves(measured))
    for comparison in comparisons:
        title = "Against the baseline" if comparison.before == config.baseline else "Compared"
        shown = [side for side in sides if side.name in (comparison.before, comparison.after)]
        made.section(title, *_compared(made, comparison, shown))
    legend = parts.legend() if PROTOCOLS[config.protocol].graded else parts.legend("right", "wrong")
    left = PICTURED - CONFUSED - 2 * CHANGED * len(comparisons)
    pictured = set()
    for title, queries in gallery.groups(ranked, left // 3).items():
        pictured |= {query.query_id for query in queries}
        strips = [_ranking(made, sides[0], query) for query in queries]
        made.section(f"{title} queries".capitalize(), legend, strips, note=_NOTES[title])
    _confused(made, sides[0], first.judged)
    made.section("All queries", *_table(made, sides[0], pictured, comparisons))
    return made


_NOTES = {
    "worst": "Those of the lowest average precision (AP). Wrong labels come to light here too.",
    "median": "What a search usually looks like: the queries in the middle of all, by AP.",
    "best": "Those of the highest AP.",
}


def _summary(config: EvaluateConfig, measured: Measured) -> list[str]:
    embedding = measured.metrics["embedding"]
    network = f"{embedding['backbone']}-{embedding['pooling']}@{embedding['layer']}"
    return [name(measured.source.name), f" ({network}) on ", name(config.manifest), f", protocol {config.protocol}"]


def _curves(measured: Sequence[Measured]) -> Html:
    names = [one.source.name for one in measured]
    listed = min(one.metrics["n_listed"] for one in measured)
    depths = [k for k in DEPTHS if k < max(listed, 2)]  # what takes in a whole list finds all there is
    aps = [[query.ap for query in one.judged if query.ap is not None] for one in measured]
    distribution = [Bars(who, histogram(found).tolist()) for who, found in zip(names, aps, strict=True)]
    precision = [
        Line(who, RECALLS.tolist(), precision_by_recall(one.judged).tolist())
        for who, one in zip(names, measured, strict=True)
    ]
    found = []
    for who, one in zip(names, measured, strict=True):
        of = f", {who}" if len(names) > 1 else ""
        any_of, share = found_within(one.judged, depths)
        found += [Line(f"a positive is found{of}", depths, any_of), Line(f"share of positives{of}", depths, share)]
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= depths[-1]]
    k = Axis("first k photos, logarithmic", 1, depths[-1], ticks, logarithmic=True)
    return charts.grid(
        charts.bars("Distribution of AP", charts.shares("AP"), AP_EDGES.tolist(), distribution),
        charts.lines("Precision by recall", charts.shares("recall"), charts.shares("mean precision"), precision),
        charts.lines("Recall at k", k, charts.shares("recall"), found),
    )


def _ranking(made: Page, side: Side, query: Judged) -> Html:
    positives = f"{query.n_positives} positive{'s' if query.n_positives > 1 else ''}"
    first = f", the first at rank {query.first_rank}" if query.first_rank else ", none listed"
    heading = element("h3", f"AP {query.ap:.3f} ", element("small", positives + first))
    return element("article", heading, side.gallery.strip(made.photos, query))


def _detail(made: Page, side: Side, query: Judged, pictured: bool) -> Html:
    return side.gallery.strip(made.photos, query) if pictured else side.gallery.listing(query)


def _compared(made: Page, comparison: Comparison, shown: Sequence[Side]) -> Iterator[Html]:
    if comparison.change is None:
        yield element("p", "The two runs have no query in common.", class_="note")
        return
    known, change = comparison.judged, comparison.change
    better, worse = (sum(sign * row["difference"] > 0 for row in known) for sign in (1, -1))
    before, after = (sum(row[column] for row in known) / len(known) for column in ("ap", "ap_other"))
    yield element("p", name(comparison.after), " less ", name(comparison.before), class_="note")
    yield parts.figures(
        {
            "mAP": (f"{after:.4f}", f"was {before:.4f}"),
            "Change": (f"{change.difference:+.4f}", change.told()),
            "p": (f"{change.p_value:.4f}", f"of no difference, two-sided; {change.objects} objects exchanged"),
            "Better": (f"{better}", f"of {len(known)} queries"),
            "Worse": (f"{worse}", f"of {len(known)} queries"),
        }
    )
    for title, rows, sign in (("What got better", known, 1), ("What got worse", known[::-1], -1)):
        changed = [row for row in rows if sign * row["difference"] > 0][:CHANGED]
        if changed:
            yield element("h3", title)
            yield Html("".join(_change(made, row, shown) for row in changed))


def _change(made: Page, row: dict[str, Any], shown: Sequence[Side]) -> Html:
    told = f"AP {row['ap']:.3f} → {row['ap_other']:.3f} "
    heading = element("h4", told, element("small", f"{row['difference']:+.3f}"))
    strips = []
    for side in shown:
        if query := side.queries.get(row["query_id"]):
            strips += [element("p", name(side.name), class_="note") if len(shown) > 1 else None]
            strips += [side.gallery.strip(made.photos, query)]
    return element("article", heading, strips)


def _confused(made: Page, side: Side, judged: Sequence[Judged]) -> None:
    found = evaluation.confusions(judged)[:ROWS]
    if not found:
        return
    columns = [
        Column("label"),
        Column("taken for"),
        Column("queries", "d", explanation="of the label, whose nearest photo has the other label"),
        Column("of", "d", spare=True, explanation="queries of the label"),
    ]
    rows = []
    for number, pair in enumerate(found):
        detail = _detail(made, side, pair.queries[0], number < CONFUSED)
        rows.append(Row([pair.label, pair.taken_for, len(pair.queries), pair.of], detail))
    note = "How often the nearest photo of a query has another label than the query; the first such query unfolds."
    made.section("Confused labels", parts.table(columns, rows, "pairs of labels"), note=note)


def _changed(side: Side, comparison: Comparison) -> str:
    return "change" if comparison.before == side.name else "since baseline"


def _table(made: Page, side: Side, pictured: set[str], comparisons: Sequence[Comparison]) -> tuple[Html | None, Html]:
    changes = [
        dict(zip(*(c.table[n].to_pylist() for n in ("query_id", "difference")), strict=True)) for c in comparisons
    ]
    columns = [
        Column("query"),
        Column("label", spare=True),
        Column("AP", ".3f", explanation="average precision"),
        *(Column(_changed(side, c), "+.3f", explanation=f"{c.after} less {c.before}") for c in comparisons),
        Column("positives", "d", spare=True),
        Column("first rank", "d", spare=True, explanation="rank of the first positive"),
    ]
    judged = sorted(side.queries.values(), key=lambda query: (query.ap is None, query.ap, query.query_id))
    rows = []
    for query in judged[:ROWS]:
        changed = [change.get(query.query_id) for change in changes]
        cells = [query.query_id, query.label, query.ap, *changed, query.n_positives, query.first_rank]
        rows.append(Row(cells, _detail(made, side, query, query.query_id in pictured)))
    bound = (
        f"The {ROWS:,} of the lowest AP; all {len(judged):,} are in per_query.parquet." if len(judged) > ROWS else None
    )
    return element("p", bound, class_="note") if bound else None, parts.table(columns, rows, "queries")


RECALLS = np.linspace(0, 1, 11)
AP_EDGES = np.linspace(0, 1, 11)
DEPTHS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)


def histogram(aps: Sequence[float]) -> np.ndarray:
    """How many of `aps` lie between each two of `AP_EDGES`; 1 counts to the last bin."""
    return np.histogram(aps, AP_EDGES)[0]


def precision_by_recall(judged: Sequence[Judged]) -> np.ndarray:
    """The 11-point interpolated curve of TREC (11,): at each recall the highest precision at that recall or beyond."""
    curves = [_interpolated(query.ranks, query.n_positives) for query in judged if query.n_positives]
    mean: np.ndarray = np.mean(curves, axis=0)
    return mean


def _interpolated(ranks: np.ndarray, n_positives: int) -> np.ndarray:
    precision = np.zeros(n_positives)
    precision[: len(ranks)] = (np.arange(len(ranks)) + 1) / (ranks + 1)
    highest_from = np.maximum.accumulate(precision[::-1])[::-1]
    needed = np.ceil(RECALLS * n_positives - 1e-9).astype(int)  # positives that make up each recall
    found: np.ndarray = highest_from[np.maximum(needed, 1) - 1]
    return found


def found_within(judged: Sequence[Judged], depths: Sequence[int]) -> tuple[list[float], list[float]]:
    """For each of `depths` k: the share of queries with a positive among the first k, which is recall@k, and the mean
    share of a query's positives that are among them.
    """
    queries = [query for query in judged if query.n_positives]
    counts = np.array([np.searchsorted(query.ranks, depths) for query in queries])
    shares = counts / np.array([[query.n_positives] for query in queries])
    return (counts > 0).mean(axis=0).tolist(), shares.mean(axis=0).tolist()
