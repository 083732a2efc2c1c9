"""The pages of an evaluation: report.html and map.html.

The evaluation job calls `write`. The report shows the headline figures, curves, comparisons, the worst, median and best
queries with their hits, the confused labels, and a table of all queries. The functions at the end compute the curves
from the queries that have a positive.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dim.app.output_folder import Output
from dim.data import manifest
from dim.evaluate import evaluation
from dim.evaluate.comparison import Comparison
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.descriptor_sets import DescriptorSet
from dim.evaluate.evaluation import QueryResult
from dim.evaluate.protocols import PROTOCOLS
from dim.evaluate.task import RetrievalTask
from dim.report import charts, gallery, parts
from dim.report.charts import Axis, Bars, Line
from dim.report.gallery import Gallery, figures, settings
from dim.report.markup import Html, element, user_text
from dim.report.page import Page
from dim.report.parts import Column, Row

PICTURED = 60  # queries shown with photos, at most, including those of CHANGED and CONFUSED
CHANGED = 8  # queries with the largest gains shown per comparison, and as many with the largest losses
CONFUSED = 9  # confused pairs of labels whose first query is shown with photos, at most
ROWS = 2000  # rows of a table, at most
RECALLS = np.linspace(0, 1, 11)
AP_EDGES = np.linspace(0, 1, 11)
DEPTHS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)
_NOTES = {
    "worst": "The queries with the lowest average precision (AP). Wrong labels often show up here.",
    "median": "The queries in the middle of the order by AP: what a search usually looks like.",
    "best": "The queries with the highest AP.",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """A set of descriptors, with the result of each query and the figures for metrics.json."""

    source: DescriptorSet
    results: list[QueryResult]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Side:
    """A measured set as the page shows it: the results by query_id, and the gallery that draws queries."""

    name: str
    queries: dict[str, QueryResult]
    gallery: Gallery


def write(
    config: EvaluateConfig, task: RetrievalTask, measured: Sequence[Measured], comparisons: Sequence[Comparison],
    out: Output,
) -> None:  # fmt: skip
    """Writes both pages. They show the first set of `measured`. Only curves and comparisons show a second set, too."""
    distractors = manifest.read(config.distractors) if config.distractors else None
    sides = [
        Side(one.source.name, {query.query_id: query for query in one.results}, Gallery(task, one.source, distractors))
        for one in measured
    ]
    _page(config, measured, sides, comparisons).write(out.path("report.html"))
    sides[0].gallery.map_page().write(out.path("map.html"))
    log.info("look at %s and, for a map of the photos, at %s", out.path("report.html"), out.path("map.html"))


def _page(
    config: EvaluateConfig, measured: Sequence[Measured], sides: Sequence[Side], comparisons: Sequence[Comparison]
) -> Page:
    first, ranked = measured[0], gallery.by_ap(measured[0].results)
    page = Page("evaluate", "How well photos are found", _summary(config, first))
    page.section(
        "Headline",
        parts.figures(figures(first.metrics)),
        parts.facts(settings(config, first.source.embedding, first.metrics)),
    )
    page.section("Curves", _curves(measured))
    for comparison in comparisons:
        title = "Against the baseline" if comparison.before == config.baseline else "Comparison"
        shown = [side for side in sides if side.name in (comparison.before, comparison.after)]
        page.section(title, *_comparison(page, comparison, shown))
    legend = parts.legend() if PROTOCOLS[config.protocol].graded else parts.legend("right", "wrong")
    left = PICTURED - CONFUSED - 2 * CHANGED * len(comparisons)
    pictured = set()
    for title, queries in gallery.groups(ranked, left // 3).items():
        pictured |= {query.query_id for query in queries}
        strips = [_ranking(page, sides[0], query) for query in queries]
        page.section(f"{title} queries".capitalize(), legend, strips, note=_NOTES[title])
    _confused(page, sides[0], first.results)
    page.section("All queries", *_table(page, sides[0], pictured, comparisons))
    return page


def _summary(config: EvaluateConfig, measured: Measured) -> list[str]:
    network = measured.source.embedding.network
    source, photos = user_text(measured.source.name), user_text(config.manifest)
    return [source, f" ({network}) on ", photos, f", protocol {config.protocol}"]


def _curves(measured: Sequence[Measured]) -> Html:
    listed = min(one.metrics["n_listed"] for one in measured)
    depths = [k for k in DEPTHS if k < max(listed, 2)]  # at the depth of the whole list, recall is always 1
    distribution, precision, recall = [], [], []
    for one in measured:
        name = one.source.name
        aps = [query.ap for query in one.results if query.ap is not None]
        distribution.append(Bars(name, histogram(aps).tolist()))
        precision.append(Line(name, RECALLS.tolist(), precision_by_recall(one.results).tolist()))
        of = f", {name}" if len(measured) > 1 else ""
        any_of, share = recall_by_depth(one.results, depths)
        recall += [Line(f"any positive{of}", depths, any_of), Line(f"share of positives{of}", depths, share)]
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= depths[-1]]
    k = Axis("first k photos, logarithmic", 1, depths[-1], ticks, logarithmic=True)
    return charts.grid(
        charts.bars("Distribution of AP", charts.shares("AP"), AP_EDGES.tolist(), distribution),
        charts.lines("Precision by recall", charts.shares("recall"), charts.shares("mean precision"), precision),
        charts.lines("Recall at k", k, charts.shares("recall"), recall),
    )


def _ranking(page: Page, side: Side, query: QueryResult) -> Html:
    positives = f"{query.n_positives} positive{'s' if query.n_positives > 1 else ''}"
    first = f", the first at rank {query.first_rank}" if query.first_rank else ", none listed"
    heading = element("h3", f"AP {query.ap:.3f} ", element("small", positives + first))
    return element("article", heading, side.gallery.strip(page.photos, query))


def _detail(page: Page, side: Side, query: QueryResult, pictured: bool) -> Html:
    return side.gallery.strip(page.photos, query) if pictured else side.gallery.listing(query)


def _comparison(page: Page, comparison: Comparison, shown: Sequence[Side]) -> Iterator[Html]:
    if comparison.change is None:
        yield element("p", "The two runs have no query in common.", class_="note")
        return
    rows, change = comparison.judged, comparison.change
    better, worse = (sum(sign * row["difference"] > 0 for row in rows) for sign in (1, -1))
    before, after = (sum(row[column] for row in rows) / len(rows) for column in ("ap", "ap_other"))
    yield element("p", user_text(comparison.after), " minus ", user_text(comparison.before), class_="note")
    yield parts.figures(
        {
            "mAP": (f"{after:.4f}", f"was {before:.4f}"),
            "Change": (f"{change.difference:+.4f}", change.interval_in_words()),
            "p": (f"{change.p_value:.4f}", f"that there is no difference, two-sided; {change.objects} objects"),
            "Better": (f"{better}", f"of {len(rows)} queries"),
            "Worse": (f"{worse}", f"of {len(rows)} queries"),
        }
    )
    for title, ordered, sign in (("Largest gains", rows, 1), ("Largest losses", rows[::-1], -1)):
        changed = [row for row in ordered if sign * row["difference"] > 0][:CHANGED]
        if changed:
            yield element("h3", title)
            yield Html("".join(_change(page, row, shown) for row in changed))


def _change(page: Page, row: dict[str, Any], shown: Sequence[Side]) -> Html:
    aps = f"AP {row['ap']:.3f} → {row['ap_other']:.3f} "
    heading = element("h4", aps, element("small", f"{row['difference']:+.3f}"))
    strips = []
    for side in shown:
        if query := side.queries.get(row["query_id"]):
            strips += [element("p", user_text(side.name), class_="note") if len(shown) > 1 else None]
            strips += [side.gallery.strip(page.photos, query)]
    return element("article", heading, strips)


def _confused(page: Page, side: Side, results: Sequence[QueryResult]) -> None:
    found = evaluation.confusions(results)[:ROWS]
    if not found:
        return
    columns = [
        Column("label"),
        Column("taken for"),
        Column("queries", "d", explanation="queries of the label whose nearest photo has the other label"),
        Column("of", "d", spare=True, explanation="all queries of the label"),
    ]
    rows = []
    for number, pair in enumerate(found):
        detail = _detail(page, side, pair.queries[0], number < CONFUSED)
        rows.append(Row([pair.label, pair.taken_for, len(pair.queries), pair.of], detail))
    note = "How often the nearest photo of a query has another label than the query. Unfold a row for its first query."
    page.section("Confused labels", parts.table(columns, rows, "pairs of labels"), note=note)


def _table(page: Page, side: Side, pictured: set[str], comparisons: Sequence[Comparison]) -> tuple[Html | None, Html]:
    changes, changed_columns = [], []
    for c in comparisons:
        changes.append(dict(zip(c.table["query_id"].to_pylist(), c.table["difference"].to_pylist(), strict=True)))
        title = "change" if c.before == side.name else "since baseline"
        changed_columns.append(Column(title, "+.3f", explanation=f"{c.after} minus {c.before}"))
    columns = [
        Column("query"),
        Column("label", spare=True),
        Column("AP", ".3f", explanation="average precision"),
        *changed_columns,
        Column("positives", "d", spare=True),
        Column("first rank", "d", spare=True, explanation="rank of the first positive"),
    ]
    ordered = sorted(side.queries.values(), key=lambda query: (query.ap is None, query.ap, query.query_id))
    rows = []
    for query in ordered[:ROWS]:
        changed = [change.get(query.query_id) for change in changes]
        cells = [query.query_id, query.label, query.ap, *changed, query.n_positives, query.first_rank]
        rows.append(Row(cells, _detail(page, side, query, query.query_id in pictured)))
    note = f"The {ROWS:,} queries of the lowest AP. All {len(ordered):,} are in per_query.parquet."
    return element("p", note, class_="note") if len(ordered) > ROWS else None, parts.table(columns, rows, "queries")


def histogram(aps: Sequence[float]) -> np.ndarray:
    """The number of `aps` in each bin of `AP_EDGES`. The last bin includes 1."""
    return np.histogram(aps, AP_EDGES)[0]


def precision_by_recall(results: Sequence[QueryResult]) -> np.ndarray:
    """TREC's 11-point curve (11,): the mean over queries of the highest precision at each recall or at a higher one."""
    curves = [_interpolated(query.ranks, query.n_positives) for query in results if query.n_positives]
    return np.asarray(np.mean(curves, axis=0))


def _interpolated(ranks: np.ndarray, n_positives: int) -> np.ndarray:
    precision = np.zeros(n_positives)
    precision[: len(ranks)] = (np.arange(len(ranks)) + 1) / (ranks + 1)
    highest_from = np.maximum.accumulate(precision[::-1])[::-1]
    needed = np.ceil(RECALLS * n_positives - 1e-9).astype(int)  # positives found at each recall
    return np.asarray(highest_from[np.maximum(needed, 1) - 1])


def recall_by_depth(results: Sequence[QueryResult], depths: Sequence[int]) -> tuple[list[float], list[float]]:
    """Two curves over the depths k: recall@k, and the mean share of a query's positives among the first k photos."""
    queries = [query for query in results if query.n_positives]
    counts = np.array([np.searchsorted(query.ranks, depths) for query in queries])
    shares = counts / np.array([[query.n_positives] for query in queries])
    return (counts > 0).mean(axis=0).tolist(), shares.mean(axis=0).tolist()
