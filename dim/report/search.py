"""Where the photos behind ids lie: the manifest that a folder of descriptors, or an index of them, was made from.

What people see of a search: report.html, the queries with what was found for them, and map.html.
"""

import itertools
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.app.output import Output
from dim.data import manifest
from dim.errors import UserError
from dim.evaluate.protocols import Verdict
from dim.extract import identity
from dim.io import files, tables
from dim.report import parts, similarity_map
from dim.report.page import Html, Page, PagePhoto, PagePhotos, element, name
from dim.report.parts import Card, Column, Row
from dim.search.config import SearchConfig
from dim.search.database import Exact
from dim.search.queries import QUERIES_FILE, Queries
from dim.search.read_index import SearchTarget

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhotoPlaces:
    """What is known of some photos, by id."""

    photos: dict[str, PagePhoto]
    labels: dict[str, str | None]


NOT_KNOWN = PhotoPlaces({}, {})


def of_manifest(uri: str, ids: Collection[str], root: str | None = None) -> PhotoPlaces:
    """What the manifest at `uri` knows of the photos `ids`.

    Raises UserError where it cannot be read, or one of them lies outside `root`.
    """
    found = manifest.read(uri)
    found = manifest.Manifest(uri, found.table.filter(pc.is_in(found.table["image_id"], pa.array(ids, pa.string()))))
    if root:
        identity.require_under(root, found)
    photos = map(PagePhoto, found.paths, found.boxes)
    return PhotoPlaces(
        dict(zip(found.image_ids, photos, strict=True)), dict(zip(found.image_ids, found.labels, strict=True))
    )


def of_folder(folder: str, ids: Collection[str], root: str | None = None) -> PhotoPlaces:
    """What is known of the photos `ids` of an index or of descriptors.

    That is nothing where the manifest is gone, or one of the photos lies outside `root`.
    """
    try:
        inputs = identity.inputs_of(folder)
        if descriptors := inputs.get("descriptors"):  # `folder` is an index of them
            inputs = identity.inputs_of(descriptors)
        uri = inputs.get("manifest")
        return of_manifest(uri, ids, root) if uri and files.exists(uri) else NOT_KNOWN
    except UserError as error:  # such as: another file has taken the manifest's place
        log.warning("photos of %s are not shown: %s", folder, error)
        return NOT_KNOWN


def of_queries(path: str, photos: str, ids: Collection[str], root: str | None = None) -> PhotoPlaces:
    """What is known of the queries `ids` that `path` names; `photos` is the manifest that was made of them, if any."""
    if files.exists(photos):
        # A manifest that the user gave has labels too.
        return of_manifest(path if tables.is_table(path) else photos, ids, root)
    return of_folder(path, ids, root)


PICTURED = 60  # queries that are shown with photos
ROWS = 2000  # of the table
HITS = 10  # of each list
ON_MAP = 40  # queries


def write(config: SearchConfig, asked: Queries, found: SearchTarget, ranked: pa.Table, out: Output) -> None:
    """Writes the pages of the lists `ranked`; of photos whose manifest is gone only the ids are shown."""
    ranked = ranked.filter(pc.less_equal(ranked["rank"], HITS))
    there = of_folder(config.index, ranked["image_id"].unique().to_pylist(), config.root)
    here = of_queries(config.queries, out.path(QUERIES_FILE), asked.ids.to_pylist(), config.root)
    lists = [(query, list(hits)) for query, hits in itertools.groupby(ranked.to_pylist(), lambda row: row["query_id"])]
    made = Page("search", "What was found", [f"{len(lists):,} queries in ", name(config.index)])
    made.section("Settings", parts.facts(_settings(config, asked, found)))
    shown = _Shown(made.photos, here, there)
    strips = [shown.strip(*one) for one in lists[:PICTURED]]
    legend = parts.legend("right", "wrong") if any(there.labels.values()) and any(here.labels.values()) else None
    made.section("Queries", legend, strips, note=f"Each with the first {HITS} photos found.{_bound(PICTURED, lists)}")
    if len(lists) > PICTURED:
        columns = [Column("query"), Column("nearest"), Column("score", ".3f")]
        rows = [
            Row([query, hits[0]["image_id"], hits[0]["score"]], shown.listing(query, hits)) for query, hits in lists
        ]
        made.section("All queries", parts.table(columns, rows[:ROWS], "queries"), note=_bound(ROWS, lists))
    made.write(out.path("report.html"))
    log.info("look at %s", out.path("report.html"))
    _map(config, asked, found, here, out)


def _bound(count: int, lists: Sequence[object]) -> str:
    return f" These are the first {count:,} of {len(lists):,}; all are in ranked.parquet." if len(lists) > count else ""


def _settings(config: SearchConfig, asked: Queries, found: SearchTarget) -> dict[str, str]:
    embedding = found.embedding
    return {
        "Queries": config.queries,
        "Not readable": ", ".join(f"{query}: {reason}" for query, reason in list(asked.errors.items())[:HITS])
        or "none",
        "Searched": f"{config.index}, {len(found.ids):,} photos",
        "Search": "exact" if isinstance(found.database, Exact) else f"approximate, {config.parameters or 'as built'}",
        "Network": f"{embedding.backbone}-{embedding.pooling}@{embedding.layer}, {embedding.image_size} px",
        "After the search": ", ".join(config.expansion) or "nothing",
    }


class _Shown:
    """Makes strips of lists. Queries are `here`, the database `there`."""

    def __init__(self, photos: PagePhotos, here: PhotoPlaces, there: PhotoPlaces) -> None:
        self._photos, self._here, self._there = photos, here, there

    def strip(self, query: str, hits: list[dict[str, Any]]) -> Html:
        """The query and its hits, in words where nothing is known of their photos."""
        first = self._card(self._here, query, "query")
        if not self._there.photos:
            return element("article", parts.strip(self._photos, [], first), self.listing(query, hits))
        return element("article", parts.strip(self._photos, self._cards(query, hits), first))

    def listing(self, query: str, hits: list[dict[str, Any]]) -> Html:
        """The hits in words."""
        return parts.listing(self._cards(query, hits))

    def _cards(self, query: str, hits: list[dict[str, Any]]) -> Iterator[Card]:
        own = self._here.labels.get(query)
        for hit in hits:
            label = self._there.labels.get(hit["image_id"])
            verdict: Verdict | None = None
            if own is not None and label is not None:
                verdict = "right" if own == label else "wrong"
            yield replace(self._card(self._there, hit["image_id"], f"{hit['score']:.3f}"), verdict=verdict)

    def _card(self, known: PhotoPlaces, image_id: str, note: str) -> Card:
        return Card(image_id, known.photos.get(image_id, PagePhoto(None)), known.labels.get(image_id), note)


def _map(config: SearchConfig, asked: Queries, found: SearchTarget, here: PhotoPlaces, out: Output) -> None:
    chosen = similarity_map.drawn(len(found.ids))
    ids = found.ids.take(chosen).to_pylist()
    there = of_folder(config.index, ids, config.root)
    if not there.photos:
        log.info("no map: the manifest of %s is gone", config.index)
        return
    try:
        vectors = found.database.take(chosen)
    except UserError as error:  # codes that can't be decoded
        log.info("no map: %s", error)
        return
    queries = asked.ids.to_pylist()[:ON_MAP]
    cards = [Card(one, there.photos.get(one, PagePhoto(None)), there.labels.get(one)) for one in ids]
    cards += [Card(one, here.photos.get(one, PagePhoto(None)), here.labels.get(one), "query") for one in queries]
    placed = np.concatenate([vectors, asked.vectors[: len(queries)]])
    similarity_map.page("search", config.index, cards, len(found.ids), placed).write(out.path("map.html"))
    log.info("for a map of the photos, with the queries framed, look at %s", out.path("map.html"))
