"""Queries and what was found for them as cards of a page, and which of the queries are shown with photos."""

from collections.abc import Iterable, Sequence

import pyarrow.compute as pc

from dim.data.manifest import Manifest
from dim.evaluate.evaluation import Hit, Judged
from dim.evaluate.sources import Source
from dim.evaluate.task import Task
from dim.pages import atlas, parts
from dim.pages.html import Html
from dim.pages.page import Page
from dim.pages.parts import Card
from dim.pages.photos import Photo, Photos


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

    def __init__(self, task: Task, source: Source, distractors: Manifest | None) -> None:
        self._task, self._source, self._distractors = task, source, distractors
        self._row_of = {image_id: row for row, image_id in enumerate(task.queries.image_ids)}

    def strip(self, photos: Photos, query: Judged) -> Html:
        """The query and the head of its list, with photos."""
        return parts.strip(photos, map(self._hit, query.hits), self._query(query))

    def listing(self, query: Judged) -> Html:
        """The head of the query's list in words."""
        return parts.listing(map(self._hit, query.hits))

    def atlas(self) -> Page:
        """The map of the database, without distractors."""
        manifest, rows = self._task.database, self._source.database.rows
        chosen = atlas.drawn(len(rows))
        cards = [
            Card(manifest.image_ids[row], _photo(manifest, row), manifest.labels[row]) for row in rows[chosen].tolist()
        ]
        return atlas.page("evaluate", manifest.uri, cards, len(rows), self._source.database.vectors[chosen])

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


def _photo(manifest: Manifest, row: int) -> Photo:
    return Photo(manifest.paths[row], manifest.boxes[row])
