"""Queries and what was found for them as cards of a page, and which of the queries are shown with photos.

The figures of metrics.json in words for people, and all that one must know to set them beside another's.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow.compute as pc

from dim.data.manifest import Manifest
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.descriptor_sets import DescriptorSet
from dim.evaluate.evaluation import Hit, Judged
from dim.evaluate.protocols import PROTOCOLS, Task
from dim.report import parts, similarity_map
from dim.report.page import Html, Page, PagePhoto, PagePhotos
from dim.report.parts import Card


def by_ap(judged: Iterable[Judged]) -> list[Judged]:
    """The queries that have a positive, lowest AP first, ties by id."""
    return sorted((query for query in judged if query.ap is not None), key=lambda query: (query.ap, query.query_id))


def groups(judged: Sequence[Judged], size: int) -> dict[str, list[Judged]]:
    """Of queries as `by_ap` has them the worst, the median and the best, up to `size` of each and none twice."""
    size = min(size, -(-len(judged) // 3))
    start = max((len(judged) - size) // 2, size)
    found = {"worst": judged[:size], "median": judged[start : len(judged) - size][:size], "best": judged[size:][-size:]}
    return {name: list(queries) for name, queries in found.items()}


class Gallery:
    """Makes cards of one source's queries and hits. `distractors` is the manifest of those, where there are any."""

    def __init__(self, task: Task, source: DescriptorSet, distractors: Manifest | None) -> None:
        self._task, self._source, self._distractors = task, source, distractors
        self._row_of = {image_id: row for row, image_id in enumerate(task.queries.image_ids)}

    def strip(self, photos: PagePhotos, query: Judged) -> Html:
        """The query and the head of its list, with photos."""
        return parts.strip(photos, map(self._hit, query.hits), self._query(query))

    def listing(self, query: Judged) -> Html:
        """The head of the query's list in words."""
        return parts.listing(map(self._hit, query.hits))

    def atlas(self) -> Page:
        """The map of the database, without distractors."""
        manifest, rows = self._task.database, self._source.database.rows
        chosen = similarity_map.drawn(len(rows))
        cards = [
            Card(manifest.image_ids[row], _photo(manifest, row), manifest.labels[row]) for row in rows[chosen].tolist()
        ]
        return similarity_map.page("evaluate", manifest.uri, cards, len(rows), self._source.database.vectors[chosen])

    def _query(self, query: Judged) -> Card:
        photo = _photo(self._task.queries, self._row_of[query.query_id])
        return Card(query.query_id, photo, query.label, "query")

    def _hit(self, hit: Hit) -> Card:
        own = self._source.database.rows
        if hit.column < len(own):
            manifest, row = self._task.database, int(own[hit.column])
        else:
            manifest, row = self._distractor(hit.column - len(own))
        return Card(manifest.image_ids[row], _photo(manifest, row), hit.label, f"{hit.score:.3f}", hit.verdict)

    def _distractor(self, number: int) -> tuple[Manifest, int]:
        manifest, stored = self._distractors, self._source.database.distractors
        if manifest is None or stored is None:
            raise ValueError("a hit lies beyond the database, which has no distractors")
        return manifest, int(pc.index(manifest.table["image_id"], stored.ids[number]).as_py())


def _photo(manifest: Manifest, row: int) -> PagePhoto:
    return PagePhoto(manifest.paths[row], manifest.boxes[row])


_MEANINGS = {
    "map": ("mAP", "mean average precision"),
    "map_at_r": ("mAP@R", "AP within the first R, R = positives"),
    "ns_score": ("N-S score", "found in the first 4, of 4"),
}
_AT = {
    "recall": ("Recall@{}", "share with a positive in the first {}"),
    "mp": ("mP@{}", "mean precision of the first {}"),
}
_DEPTHS = ("1", "5", "10")


def figures(metrics: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """What → (value, meaning), for `parts.figures`."""
    levels = PROTOCOLS[metrics["protocol"]].levels
    found = {f"mAP, {level}": (_shown(metrics[level]["map"]), _MEANINGS["map"][1]) for level in levels}
    if not levels:
        found = {name: (_shown(metrics[key]), told) for key, (name, told) in _MEANINGS.items() if key in metrics}
    for key, (name, told) in _AT.items():
        for depth in _DEPTHS:
            if depth in metrics.get(key, {}):
                found[name.format(depth)] = (_shown(metrics[key][depth]), told.format(depth).removesuffix(" 1"))
    return found | {"Queries": (f"{metrics['n_queries']:,}", f"in {metrics['n_database']:,} photos")}


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def settings(config: EvaluateConfig, metrics: dict[str, Any]) -> dict[str, str]:
    """Name → value, for `parts.facts`."""
    embedding = metrics["embedding"]
    splits = [metrics["query_split"] or "all rows", metrics["database_split"] or "all rows"]
    steps = [f"{step['method']} with {step['neighbours']} neighbours" for step in metrics["expansion"]]
    whitenings = [f"by {step['by']}, learned on {_learned_on(step['learned_on'])}" for step in metrics["whitening"]]
    distractors = f", {metrics['n_distractors']:,} of them distractors" if metrics["n_distractors"] else ""
    return {
        "Protocol": config.protocol,
        "Manifest": config.manifest,
        "Ground truth": config.ground_truth or "labels",
        "Queries from": splits[0],
        "Database from": splits[1] + distractors,
        "Own photo": "the query's photo is in its list" if metrics["query_in_database"] else "leaves the query's list",
        "Not readable": f"{metrics['unreadable_queries']} queries, {metrics['unreadable_database']} of the database",
        "Network": f"{embedding['backbone']}-{embedding['pooling']}@{embedding['layer']}",
        "Photos": f"{embedding['image_size']} px {embedding['resize']}, {embedding['preprocessing']}",
        "Scales": ", ".join(f"{scale:g}" for scale in embedding["scales"]),
        "Whitening": "; ".join(whitenings) or "none",
        "After the search": "; ".join(steps) or "nothing",
        "Precision": embedding["precision"],
        "Embedding": embedding["id"][:16],
    }


def _learned_on(learned_on: dict[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (learned_on or {}).items()) or "what is not known"
