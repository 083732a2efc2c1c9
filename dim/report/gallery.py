"""Parts of an evaluation's report: queries with their photos, the headline figures, and the settings.

A `Gallery` draws a query and its hits. `groups` chooses the queries that are shown with photos.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dim.data.manifest import Manifest
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.descriptor_sets import DescriptorSet, rows_of
from dim.evaluate.evaluation import Hit, QueryResult
from dim.evaluate.metrics import four_digits
from dim.evaluate.protocols import PROTOCOLS, value_of
from dim.evaluate.task import RetrievalTask
from dim.extract.embedding import Embedding
from dim.localise.config import parsed
from dim.report import parts, photo_map
from dim.report.markup import Html
from dim.report.page import Page
from dim.report.page_photos import PagePhoto, PagePhotos
from dim.report.parts import Card
from dim.search.database import Exact


def by_ap(results: Iterable[QueryResult]) -> list[QueryResult]:
    """The queries that have a positive, lowest AP first, ties by id."""
    return sorted((query for query in results if query.ap is not None), key=lambda query: (query.ap, query.query_id))


def groups(ordered: Sequence[QueryResult], size: int) -> dict[str, list[QueryResult]]:
    """The "worst", "median" and "best" of results that `by_ap` ordered: at most `size` of each, and no query twice."""
    size = min(size, -(-len(ordered) // 3))
    start = max((len(ordered) - size) // 2, size)
    return {
        "worst": list(ordered[:size]),
        "median": list(ordered[start : len(ordered) - size][:size]),
        "best": list(ordered[size:][-size:]),
    }


class Gallery:
    """Draws the queries of one set of descriptors with their hits."""

    def __init__(self, task: RetrievalTask, source: DescriptorSet, distractors: Manifest | None) -> None:
        """`distractors` is the manifest of the set's distractors, None if the set has no distractors."""
        self._task, self._source, self._distractors = task, source, distractors
        self._row_of = {image_id: row for row, image_id in enumerate(task.queries.image_ids)}

    def strip(self, photos: PagePhotos, query: QueryResult) -> Html:
        """The query and its hits as photos."""
        return parts.strip(photos, map(self._hit, query.hits), self._query(query))

    def listing(self, query: QueryResult) -> Html:
        """The query's hits in words."""
        return parts.listing(map(self._hit, query.hits))

    def map_page(self) -> Page:
        """The map of the database without its distractors."""
        manifest, database = self._task.database, self._source.database
        chosen = np.argsort(database.rows)[photo_map.sample(len(database.rows))]
        cards = [_card(manifest, row) for row in database.rows[chosen].tolist()]
        vectors = Exact(database.parts, np.arange(len(database))).take(chosen)
        return photo_map.map_page("evaluate", manifest.uri, cards, len(database.rows), vectors)

    def _query(self, query: QueryResult) -> Card:
        return replace(_card(self._task.queries, self._row_of[query.query_id]), note="query")

    def _hit(self, hit: Hit) -> Card:
        own = self._source.database.own
        if hit.column < len(own):
            card = _card(self._task.database, int(self._source.database.rows[hit.column]))
        else:
            card = self._distractor(hit.column - len(own))
        return replace(card, note=f"{hit.score:.3f}", verdict=hit.verdict, found_at=hit.box)

    def _distractor(self, number: int) -> Card:
        manifest, stored = self._distractors, self._source.database.distractors
        if manifest is None or stored is None:
            raise ValueError("a hit's column is beyond the database, which has no distractors")
        return replace(_card(manifest, int(rows_of(stored)[number])), label=None)


def _card(manifest: Manifest, row: int) -> Card:
    """The photo in a row of `manifest`. The manifest's other rows stay in Arrow's memory."""
    one = replace(manifest, table=manifest.table.slice(row, 1))
    photo = PagePhoto(one.paths[0], one.boxes[0])
    return Card(one.table["image_id"][0].as_py(), photo, one.table["label"][0].as_py())


_MEANINGS = {
    "map": ("mAP", "mean average precision"),
    "map_at_r": ("mAP@R", "AP within the first R, R = positives"),
    "oracle": ("Oracle", "share of positives in the first 1,000"),
    "ns_score": ("N-S score", "photos of the object among the first 4"),
}
_AT = {
    "recall": ("Recall@{}", "share of queries with a positive in the first {}"),
    "mp": ("mP@{}", "mean precision of the first {}"),
}
_DEPTHS = ("1", "5", "10", "20")


def figures(metrics: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The headline figures of metrics.json for `parts.figures`."""
    protocol = PROTOCOLS[metrics["protocol"]]
    found = {}
    if protocol.level not in protocol.levels.values():  # else one of the levels has the top-level figures
        found = {name: (metrics[key], meaning) for key, (name, meaning) in _MEANINGS.items() if key in metrics}
    for level in protocol.levels:
        named = level.replace("@", " ")
        found[f"mAP, {named}"] = (value_of(level, metrics)["map"], _MEANINGS["map"][1])
    for key, (name, meaning) in _AT.items():
        for depth in _DEPTHS:
            if depth in metrics.get(key, {}):
                found[name.format(depth)] = (metrics[key][depth], meaning.format(depth).removesuffix(" 1"))
    shown = {name: (four_digits(value), meaning) for name, (value, meaning) in found.items()}
    return shown | {"Queries": (f"{metrics['n_queries']:,}", f"in {metrics['n_database']:,} photos")}


def settings(config: EvaluateConfig, embedding: Embedding, metrics: dict[str, Any]) -> dict[str, str]:
    """The settings of metrics.json, which `embedding` is in, for `parts.facts`."""
    steps = [f"{step['method']} with {step['neighbours']} neighbours" for step in metrics["expansion"]]
    steps += [str(parsed(metrics["rerank"]))] if metrics["rerank"] else []
    whitenings = [f"by {step['by']}, learned on {_learned_on(step['learned_on'])}" for step in metrics["whitening"]]
    distractors = f", {metrics['n_distractors']:,} distractors" if metrics["n_distractors"] else ""
    return {
        "Protocol": config.protocol,
        "Manifest": config.manifest,
        "Ground truth": config.ground_truth or "labels",
        "Queries from": metrics["query_split"] or "all rows",
        "Database from": (metrics["database_split"] or "all rows") + distractors,
        "Query's own photo": "in its list" if metrics["query_in_database"] else "not in its list",
        "Not readable": f"{metrics['unreadable_queries']} queries, {metrics['unreadable_database']} of the database",
        **embedding.facts(),
        "Whitening": "; ".join(whitenings) or "none",
        "After the search": "; ".join(steps) or "nothing",
        "Embedding": embedding.id[:16],
    }


def _learned_on(learned_on: dict[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (learned_on or {}).items()) or "unknown photos"
