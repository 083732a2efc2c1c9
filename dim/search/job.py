"""What search.py does: answers queries from an index or a folder of descriptors, and writes the ranked lists.

`search` reads the index and the queries. If the queries are photos, the network of the index makes their descriptors.
`_answer` then searches, re-ranks, and writes ranked.parquet and, if `config.report`, the HTML pages.
"""

import logging
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.app import output_folder
from dim.app.output_folder import Output
from dim.data import manifest
from dim.errors import UserError
from dim.extract import identity
from dim.io import files, tables
from dim.report import search as search_report
from dim.search import expansion_methods, queries, read_index
from dim.search.config import SearchConfig
from dim.search.database import Exact, Retrieval
from dim.search.queries import Queries
from dim.search.read_index import SearchTarget

log = logging.getLogger(__name__)
LOGGED_QUERIES, LOGGED_HITS = 10, 3  # most queries in the log, and most hits per query
RETURNED_ERRORS = 100  # most errors in the job's result


def search(config: SearchConfig) -> dict[str, Any]:
    """Searches, writes the ranked lists and the HTML pages to the folder `config.out`, and returns the job's result.

    Raises UserError if a flag is out of range, if flags, queries and index don't match, or if no query can be read.
    """
    if config.top < 1:
        raise UserError(f"--top must be at least 1, not {config.top}")
    expansion_methods.check(config.expansion, config.neighbours)
    target = read_index.read(config.index, config.whitening, config.parameters)
    if queries.are_descriptors(config.queries):
        asked = queries.read_descriptors(config.queries, config.whitening, target.embedding, config.index)
        with _open_output(config, target) as out:
            files.delete(out.path(queries.QUERIES_FILE))  # an earlier search with photos as queries may have left it
            return _answer(config, asked, target, out)
    photos = queries.list_photos(config.queries)
    listed = manifest.checked(config.queries, photos)
    if config.root:
        identity.require_under(config.root, listed)
    identity.fingerprint_photos(listed)  # raises UserError if none of the photos exists
    extraction = queries.extract_config(config, target.embedding)
    with _open_output(config, target) as out:
        from dim.extract.job import extract  # noqa: PLC0415  (queries that are descriptors need no Ray)

        tables.write(out.path(queries.QUERIES_FILE), photos)
        extract(extraction)
        asked = queries.read_descriptors(extraction.out, None, target.embedding, config.index)
        answered = [*asked.ids.to_pylist(), *asked.errors]
        tables.require_each_once(photos["image_id"].to_pylist(), answered, repr(config.queries))
        return _answer(config, asked, target, out)


def _open_output(config: SearchConfig, target: SearchTarget) -> AbstractContextManager[Output]:
    inputs = {name: getattr(config, name) for name in ("index", "queries", "model", "whitening")}
    return output_folder.opened(config.out, "search", config, inputs, target.embedding.as_json())


def _answer(config: SearchConfig, asked: Queries, target: SearchTarget, out: Output) -> dict[str, Any]:
    top = min(config.top, len(target.ids))
    if top < config.top:
        log.warning("--top %d exceeds the database; each list has all %d photos", config.top, top)
    log.info("searching %d photos for %d queries", len(target.ids), len(asked.ids))
    unchanged = Retrieval(asked.vectors, target.database)
    retrieval, steps = expansion_methods.apply(unchanged, config.expansion, config.neighbours)
    rows, scores = zip(*retrieval.best(top), strict=True)
    ranked = _ranked_table(asked, target, list(rows), list(scores))
    tables.write(out.path("ranked.parquet"), ranked)
    shorter = sum(len(found) < top for found in rows)
    _log_answer(ranked, asked, shorter, top)
    if config.report:
        search_report.write(config, asked, target, ranked, out)
    failed = dict(list(asked.errors.items())[:RETURNED_ERRORS])
    result = {"queries": len(asked.ids) + len(asked.errors), "errors": len(asked.errors), "failed": failed}
    result |= {"database": len(target.ids), "exact": isinstance(target.database, Exact), "top": top}
    return out.finish(result | {"shorter": shorter, "expansion": [step.as_json() for step in steps]})


def _ranked_table(asked: Queries, target: SearchTarget, rows: list[np.ndarray], scores: list[np.ndarray]) -> pa.Table:
    """Makes the table of ranked.parquet from the `rows` found for each query, best first, and their `scores`."""
    lengths = [len(found) for found in rows]
    query_ids = asked.ids.take(np.repeat(np.arange(len(rows)), lengths))
    ranks = np.concatenate([np.arange(1, length + 1) for length in lengths])
    columns = [query_ids, ranks, target.ids.take(np.concatenate(rows)), np.concatenate(scores)]
    return pa.table(columns, ["query_id", "rank", "image_id", "score"])


def _log_answer(ranked: pa.Table, asked: Queries, shorter: int, top: int) -> None:
    """Logs how many lists are too short, why queries could not be read, and the first hits of the first queries."""
    if shorter:
        missing = f"{shorter} of {len(asked.ids)} lists have fewer photos than the {top} asked for"
        log.warning("%s: the index found no more; --parameters, such as nprobe=64, makes it look further", missing)
    for query, reason in asked.errors.items():
        log.warning("%s: %s", query, reason)
    first = ranked.filter(pc.less_equal(ranked["rank"], LOGGED_HITS)).slice(0, LOGGED_QUERIES * LOGGED_HITS)
    hits: dict[str, list[str]] = {}
    for row in first.to_pylist():
        hits.setdefault(row["query_id"], []).append(f"{row['image_id']} {row['score']:.3f}")
    width = max(map(len, hits), default=0)
    for query, found in hits.items():
        log.info("%s", f"{query:<{width}}  {'  '.join(found)}")
