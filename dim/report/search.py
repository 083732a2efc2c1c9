"""The pages of a search. report.html shows each query with its hits; map.html shows searched photos and queries.

The search job calls `write`. Photos and labels come from the manifest that the index or the descriptors were made from.
If this manifest is gone, the report shows hits without photos and there is no map.
"""

import itertools
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.app.output_folder import Output
from dim.data import manifest
from dim.errors import UserError
from dim.evaluate.protocols import Verdict
from dim.extract import identity
from dim.io import files, tables
from dim.localise.config import parsed
from dim.report import parts, photo_map
from dim.report.markup import Html, element, user_text
from dim.report.page import Page
from dim.report.page_photos import PagePhoto, PagePhotos
from dim.report.parts import Card, Column, Row
from dim.search.config import SearchConfig
from dim.search.database import Exact
from dim.search.queries import QUERIES_FILE, Queries
from dim.search.read_index import SearchTarget

PICTURED = 60  # queries shown with photos, at most
ROWS = 2000  # queries in the table, at most
HITS = 10  # hits shown per query
ON_MAP = 40  # queries on the map, at most

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownPhotos:
    """The photos and labels that are known. Both dicts have image_ids as keys."""

    photos: dict[str, PagePhoto]
    labels: dict[str, str | None]

    def card(self, image_id: str, note: str = "") -> Card:
        """The card of a photo, with a placeholder if the photo is unknown."""
        return Card(image_id, self.photos.get(image_id, PagePhoto(None)), self.labels.get(image_id), note)


NOT_KNOWN = KnownPhotos({}, {})


def write(config: SearchConfig, asked: Queries, found: SearchTarget, ranked: pa.Table, out: Output) -> None:
    """Writes both pages. `ranked` has the first `HITS` rows of ranked.parquet of the first `ROWS` queries, or more."""
    count = len(asked.ids)
    asked_ids = asked.ids.slice(0, ROWS)
    ranked = ranked.filter(pc.is_in(ranked["query_id"], asked_ids))
    database = of_folder(config.index, ranked["image_id"].unique().to_pylist(), config.root)
    queries = of_queries(config.queries, out.path(QUERIES_FILE), asked_ids.to_pylist(), config.root)
    lists = [(query, list(hits)) for query, hits in itertools.groupby(ranked.to_pylist(), lambda row: row["query_id"])]
    page = Page("search", "Search results", [f"{count:,} queries in ", user_text(config.index)])
    page.section("Settings", parts.facts(_settings(config, asked, found)))
    drawn = _Lists(page.photos, queries, database)
    strips = [drawn.strip(*one) for one in lists[:PICTURED]]
    legend = parts.legend("right", "wrong") if any(database.labels.values()) and any(queries.labels.values()) else None
    note = f"Each query with the first {HITS} photos found.{_bound(PICTURED, count)}"
    page.section("Queries", legend, strips, note=note)
    if len(lists) > PICTURED:
        columns = [Column("query"), Column("nearest"), Column("score", ".3f")]
        rows = [
            Row([query, hits[0]["image_id"], hits[0]["score"]], drawn.listing(query, hits)) for query, hits in lists
        ]
        page.section("All queries", parts.table(columns, rows, "queries"), note=_bound(ROWS, count))
    page.write(out.path("report.html"))
    log.info("look at %s", out.path("report.html"))
    _write_map(config, asked, found, queries, out)


def _bound(shown: int, count: int) -> str:
    return "" if count <= shown else f" These are the first {shown:,} of {count:,} queries; all are in ranked.parquet."


def _settings(config: SearchConfig, asked: Queries, found: SearchTarget) -> dict[str, str]:
    steps = [*config.expansion, *([str(parsed(config.rerank))] if config.rerank else [])]
    return {
        "Queries": config.queries,
        "Not readable": ", ".join(f"{query}: {reason}" for query, reason in list(asked.errors.items())[:HITS])
        or "none",
        "Searched": f"{config.index}, {len(found.ids):,} photos",
        "Search": "exact" if isinstance(found.database, Exact) else f"approximate, {config.parameters or 'as built'}",
        **found.embedding.facts(),
        "After the search": "; ".join(steps) or "nothing",
    }


class _Lists:
    """Draws queries with their hits."""

    def __init__(self, photos: PagePhotos, queries: KnownPhotos, database: KnownPhotos) -> None:
        self._photos, self._queries, self._database = photos, queries, database

    def strip(self, query: str, hits: list[dict[str, Any]]) -> Html:
        """The query and its hits as photos. If no photo of the database is known, the hits are given in words."""
        first = self._queries.card(query, "query")
        if not self._database.photos:
            return element("article", parts.strip(self._photos, [], first), self.listing(query, hits))
        return element("article", parts.strip(self._photos, self._cards(query, hits), first))

    def listing(self, query: str, hits: list[dict[str, Any]]) -> Html:
        """The hits in words."""
        return parts.listing(self._cards(query, hits))

    def _cards(self, query: str, hits: list[dict[str, Any]]) -> Iterator[Card]:
        label = self._queries.labels.get(query)
        for hit in hits:
            card = self._database.card(hit["image_id"], f"{hit['score']:.3f}")
            verdict: Verdict | None = None
            if label is not None and card.label is not None:
                verdict = "right" if label == card.label else "wrong"
            box = tuple(hit[side] for side in manifest.BOX) if hit.get("x1") is not None else None
            yield replace(card, verdict=verdict, found_at=box)


def _write_map(
    config: SearchConfig, asked: Queries, found: SearchTarget, known_queries: KnownPhotos, out: Output
) -> None:
    chosen = photo_map.sample(len(found.ids))
    ids = found.ids.take(chosen).to_pylist()
    database = of_folder(config.index, ids, config.root)
    if not database.photos:
        log.info("no map: the manifest of %s is gone", config.index)
        return
    try:
        vectors = found.database.take(chosen)
    except UserError as error:  # vectors can't be decoded from the index
        log.info("no map: %s", error)
        return
    queries = asked.ids.slice(0, ON_MAP).to_pylist()
    cards = [database.card(image_id) for image_id in ids] + [known_queries.card(query, "query") for query in queries]
    vectors = np.concatenate([vectors, asked.vectors[: len(queries)]])
    photo_map.map_page("search", config.index, cards, len(found.ids), vectors).write(out.path("map.html"))
    log.info("for a map of the photos, with the queries framed, look at %s", out.path("map.html"))


def of_queries(path: str, photos: str, ids: Collection[str], root: str | None = None) -> KnownPhotos:
    """Finds the photos of the queries `ids`. `path` is the value of --queries.

    If `path` is a photo, a folder of photos or a manifest, the search has written the manifest `photos`.
    """
    if files.exists(photos):  # a manifest at `path` has labels, too
        return of_manifest(path if tables.is_table(path) else photos, ids, root)
    return of_folder(path, ids, root)


def of_folder(folder: str, ids: Collection[str], root: str | None = None) -> KnownPhotos:
    """Finds the photos `ids` of an index or of a folder of descriptors.

    The result is empty if the manifest is gone or can't be read, or if one of the photos is outside `root`.
    """
    try:
        uri = identity.origins_of(folder).get("manifest")
        return of_manifest(uri, ids, root) if uri and files.exists(uri) else NOT_KNOWN
    except UserError as error:  # for example, another file replaced the manifest
        log.warning("photos of %s are not shown: %s", folder, error)
        return NOT_KNOWN


def of_manifest(uri: str, ids: Collection[str], root: str | None = None) -> KnownPhotos:
    """Finds the photos `ids` of a manifest.

    Raises UserError if the manifest cannot be read or one of the photos is outside `root`.
    """
    found = manifest.read(uri)
    found = manifest.Manifest(uri, found.table.filter(pc.is_in(found.table["image_id"], pa.array(ids, pa.string()))))
    if root:
        identity.require_under(root, found)
    photos = map(PagePhoto, found.paths, found.boxes)
    return KnownPhotos(
        dict(zip(found.image_ids, photos, strict=True)), dict(zip(found.image_ids, found.labels, strict=True))
    )
