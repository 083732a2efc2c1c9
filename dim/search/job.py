"""What search.py does: answers queries from an index or a folder of descriptors, and writes the ranked lists.

`search` reads the index and the queries. If the queries are photos, the network of the index makes their descriptors.
`_answer` then searches, re-ranks, and writes ranked.parquet and, if `config.report`, the HTML pages.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dim.app import cluster, output_folder
from dim.app.output_folder import Output
from dim.data import manifest
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.extract import identity
from dim.io import files, local_copies, tables
from dim.localise import sources
from dim.localise.config import parsed
from dim.localise.rerank import Photos, Reranker
from dim.report import search as search_report
from dim.search import expansion_methods, queries, read_index
from dim.search.config import SearchConfig
from dim.search.database import Exact
from dim.search.queries import Queries
from dim.search.ranked_lists import RankedLists
from dim.search.read_index import SearchTarget
from dim.search.retrieval import Retrieval

log = logging.getLogger(__name__)
LOGGED_QUERIES, LOGGED_HITS = 10, 3  # most queries in the log, and most hits per query
RETURNED_ERRORS = 100  # most errors in the job's result


def search(config: SearchConfig) -> dict[str, Any]:
    """Searches, writes the ranked lists and the HTML pages to the folder `config.out`, and returns the job's result.

    Raises UserError if a flag is out of range, if flags, queries and index don't match, or if no query can be read.
    """
    if config.top < 1:
        raise UserError(f"--top must be at least 1, not {config.top}")
    expansion_methods.check(config.expansion, config.neighbours, config.rerank)
    with cluster.joined():
        return _search(config)


def _search(config: SearchConfig) -> dict[str, Any]:
    target = read_index.read(config.index, config.whitening, config.parameters, _chosen(config))
    reranker_for = _reranker(config, target) if config.rerank else None
    if queries.are_descriptors(config.queries):
        asked = queries.read_descriptors(config.queries, config.whitening, target.embedding, config.index)
        reranker = reranker_for and reranker_for(sources.of_folder(config.queries, asked.ids, config.root))
        with _open_output(config, target) as out:
            files.delete(out.path(queries.QUERIES_FILE))  # an earlier search with photos as queries may have left it
            return _answer(config, asked, target, out, reranker)
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
        answered = pa.chunked_array([*asked.ids.chunks, pa.array(list(asked.errors), pa.string())])
        tables.require_each_once(photos["image_id"], answered, repr(config.queries))
        return _answer(config, asked, target, out, reranker_for and reranker_for(sources.of_ids(listed, asked.ids)))


def _reranker(config: SearchConfig, target: SearchTarget) -> Callable[[Photos], Reranker]:
    """Makes the re-ranking for the photos of the queries."""
    recipe = sources.recipe_of(config.index, target.embedding, config, config.model, config.whitening)
    photos = sources.of_folder(config.index, target.ids, config.root)
    return lambda asked: Reranker(parsed(str(config.rerank)), recipe, asked, photos, config)


def _open_output(config: SearchConfig, target: SearchTarget) -> AbstractContextManager[Output]:
    inputs = {name: getattr(config, name) for name in ("index", "queries", "model", "whitening", "manifest")}
    return output_folder.opened(config.out, "search", config, inputs, target.embedding.as_json())


def _chosen(config: SearchConfig) -> Manifest | None:
    """The photos of --manifest that --label and --in-split choose; None to search all photos."""
    if config.manifest is None:
        if config.label or config.in_split:
            raise UserError("--label and --in-split need --manifest, the table of the labels and splits")
        return None
    found = manifest.read(config.manifest).select(split=config.in_split)
    if not config.label:
        return found
    table = found.table.filter(pc.is_in(found.table["label"], pa.array(config.label, pa.string())))
    if not table.num_rows:
        labels = " or ".join(map(repr, config.label))
        raise UserError(f"{config.manifest!r} has no photo with the label {labels}; name a label of that table")
    return replace(found, table=table)


def _answer(
    config: SearchConfig, asked: Queries, target: SearchTarget, out: Output, reranker: Reranker | None
) -> dict[str, Any]:
    """Writes the lists, some queries at a time, and the pages of the first queries. Returns the job's result."""
    top = min(config.top, len(target.ids))
    if top < config.top:
        log.warning("--top %d exceeds the database; each list has all %d photos", config.top, top)
    log.info("searching %d photos for %d queries", len(target.ids), len(asked.ids))
    database = target.database
    if isinstance(database, Exact) and config.gpus_per_worker == 0:
        database = replace(database, gpus=0.0)
    unchanged = Retrieval(asked.vectors, database)
    retrieval, steps = expansion_methods.apply(unchanged, config.expansion, config.neighbours)
    lists = RankedLists(asked, target.ids, retrieval, top, reranker)
    complete, first = 0, lists.schema.empty_table()
    with local_copies.path_to_write(out.path("ranked.parquet")) as path, pq.ParquetWriter(path, lists.schema) as file:
        for ranked in lists.tables(config.budget.share):
            file.write_table(ranked)
            complete += pc.sum(pc.equal(ranked["rank"], top)).as_py() or 0
            if first.num_rows < search_report.ROWS * search_report.HITS:
                first = pa.concat_tables([first, ranked.filter(pc.less_equal(ranked["rank"], search_report.HITS))])
    shorter = len(asked.ids) - complete
    _log_answer(first, asked, shorter, top)
    if config.report:
        search_report.write(config, asked, target, first, out)
    failed = dict(list(asked.errors.items())[:RETURNED_ERRORS])
    result = {"queries": len(asked.ids) + len(asked.errors), "errors": len(asked.errors), "failed": failed}
    result |= {"database": len(target.ids), "exact": isinstance(target.database, Exact), "top": top}
    result |= {"shorter": shorter, "expansion": [step.as_json() for step in steps], "rerank": config.rerank}
    return out.finish(result)


def _log_answer(first: pa.Table, asked: Queries, shorter: int, top: int) -> None:
    """Logs how many lists are too short, why queries could not be read, and the first hits of the first queries."""
    if shorter:
        missing = f"{shorter} of {len(asked.ids)} lists have fewer photos than the {top} asked for"
        log.warning("%s: the index found no more; --parameters, such as nprobe=64, makes it look further", missing)
    for query, reason in list(asked.errors.items())[:RETURNED_ERRORS]:
        log.warning("%s: %s", query, reason)
    hits: dict[str, list[str]] = {}
    for row in (
        first.filter(pc.less_equal(first["rank"], LOGGED_HITS)).slice(0, LOGGED_QUERIES * LOGGED_HITS).to_pylist()
    ):
        hits.setdefault(row["query_id"], []).append(f"{row['image_id']} {row['score']:.3f}")
    width = max(map(len, hits), default=0)
    for query, found in hits.items():
        log.info("%s", f"{query:<{width}}  {'  '.join(found)}")
