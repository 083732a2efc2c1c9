"""What search.py does: queries against an index or a folder of descriptors → ranked lists."""

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.app import output
from dim.data import manifest
from dim.errors import UserError
from dim.extract import identity
from dim.io import files, tables
from dim.io.tables import require_each_once
from dim.report import search as search_report
from dim.search import methods, queries
from dim.search.config import SearchConfig
from dim.search.database import Exact, Retrieval
from dim.search.queries import Queries, SearchTarget

log = logging.getLogger(__name__)
SHOWN_QUERIES, SHOWN_HITS = 10, 3  # in the log
SHOWN_ERRORS = 100  # in the result


def search(config: SearchConfig) -> dict[str, Any]:
    """Searches as `config` says, writes `ranked.parquet` and pages into `config.out`, and returns the counts.

    Raises UserError where flags, queries and index don't fit each other, or no query could be read.
    """
    if config.top < 1:
        raise UserError(f"--top must be at least 1, not {config.top}")
    methods.check(config.expansion, config.neighbours)
    found = queries.read_target(config.index, config.whitening, config.parameters)
    if queries.are_descriptors(config.queries):
        asked = queries.read_descriptors(config.queries, config.whitening, found.embedding, config.index)
        with _opened(config, found) as out:
            files.delete(out.path(queries.QUERIES_FILE))  # of an earlier search for photos
            return _answer(config, asked, found, out)
    photos = queries.list_photos(config.queries)
    asked_for = manifest.checked(config.queries, photos)
    if config.root:
        identity.require_under(config.root, asked_for)
    identity.fingerprint_photos(asked_for)  # refuses photos none of which exists
    extraction = queries.extract_config(config, found.embedding)
    with _opened(config, found) as out:
        from dim.extract.job import extract  # noqa: PLC0415  (descriptors at hand need no Ray)

        tables.write(out.path(queries.QUERIES_FILE), photos)
        extract(extraction)
        asked = queries.read_descriptors(extraction.out, None, found.embedding, config.index)
        require_each_once(photos["image_id"].to_pylist(), [*asked.ids.to_pylist(), *asked.errors], repr(config.queries))
        return _answer(config, asked, found, out)


def _opened(config: SearchConfig, found: SearchTarget) -> Any:
    inputs = {name: getattr(config, name) for name in ("index", "queries", "model", "whitening")}
    return output.opened(config.out, "search", config, inputs, found.embedding.as_json())


def _answer(config: SearchConfig, asked: Queries, found: SearchTarget, out: output.Output) -> dict[str, Any]:
    top = min(config.top, len(found.ids))
    if top < config.top:
        log.warning("--top %d is more than the database has; the lists have all %d photos", config.top, top)
    log.info("searching %d photos for %d queries", len(found.ids), len(asked.ids))
    retrieval = Retrieval(asked.vectors, found.database)
    retrieval, steps = methods.apply(retrieval, config.expansion, config.neighbours)
    rows, scores = zip(*retrieval.best(top), strict=True)
    ranked = _table(asked.ids, found.ids, list(rows), list(scores))
    tables.write(out.path("ranked.parquet"), ranked)
    if shorter := sum(len(found) < top for found in rows):
        log.warning(
            "%d of %d lists have fewer photos than the %d asked for: the index found no more; "
            "--parameters, such as nprobe=64, makes it look further",
            shorter,
            len(rows),
            top,
        )
    for query, reason in asked.errors.items():
        log.warning("%s: %s", query, reason)
    for line in _lines(ranked):
        log.info("%s", line)
    if config.report:
        search_report.write(config, asked, found, ranked, out)
    return out.finish(
        {
            "queries": len(asked.ids) + len(asked.errors),
            "errors": len(asked.errors),
            "failed": dict(list(asked.errors.items())[:SHOWN_ERRORS]),
            "database": len(found.ids),
            "exact": isinstance(found.database, Exact),
            "top": top,
            "shorter": shorter,
            "expansion": [step.as_json() for step in steps],
        }
    )


def _table(queries: pa.Array, ids: pa.Array, rows: list[np.ndarray], scores: list[np.ndarray]) -> pa.Table:
    """The table of ranked.parquet, of each query's `rows`, best first, and their `scores`."""
    lengths = [len(found) for found in rows]
    return pa.table(
        {
            "query_id": queries.take(np.repeat(np.arange(len(rows)), lengths)),
            "rank": np.concatenate([np.arange(1, length + 1) for length in lengths]),
            "image_id": ids.take(np.concatenate(rows)),
            "score": np.concatenate(scores),
        }
    )


def _lines(ranked: pa.Table) -> list[str]:
    """The first hits of the first queries."""
    first = ranked.filter(pc.less_equal(ranked["rank"], SHOWN_HITS)).slice(0, SHOWN_QUERIES * SHOWN_HITS)
    hits: dict[str, list[str]] = {}
    for row in first.to_pylist():
        hits.setdefault(row["query_id"], []).append(f"{row['image_id']} {row['score']:.3f}")
    width = max(map(len, hits), default=0)
    return [f"{query:<{width}}  {'  '.join(found)}" for query, found in hits.items()]
