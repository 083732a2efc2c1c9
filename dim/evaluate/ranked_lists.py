"""Judges ranked lists from any source (`--ranked`), such as those of an index in parts, without the descriptors.

A list holds the first images that a search found. A positive that the list lacks counts as not listed.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.app import output_folder
from dim.data import manifest
from dim.errors import UserError, quoted
from dim.evaluate import evaluation
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.evaluation import QueryResult
from dim.evaluate.judging import result_of
from dim.evaluate.protocols import NOT_LISTED
from dim.evaluate.task import Graded, RetrievalTask
from dim.io import files, seal, tables

COLUMNS = ("query_id", "rank", "image_id")
_UNUSED = ("descriptors", "model", "distractors", "distractor_descriptors", "whitening", "expansion", "rerank")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankedLists:
    """The lists of queries `queries`, int (Q,), rows of the task's queries. `embedding` made them, if it is known.

    `images` are rows of the task's database: those of list q, best first, are images[starts[q]:starts[q + 1]].
    """

    queries: np.ndarray
    images: np.ndarray
    starts: np.ndarray
    embedding: dict[str, Any] | None


def read(config: EvaluateConfig, task: RetrievalTask) -> RankedLists:
    """Reads the lists in `config.ranked`, Parquet or CSV with the columns query_id, rank (from 1) and image_id.

    Lists of images that are not queries of `task` are left out. So are listed queries that are not in the database.

    Raises:
        UserError: A flag is for descriptors; the table lacks a column; no list is of a query; an image is not in the
            database, or twice in a list; or the ranks of a list are not 1, 2, 3 and so on.
    """
    uri = str(config.ranked)
    if flag := next((name for name in _UNUSED if getattr(config, name)), None):
        raise UserError(f"--ranked {uri!r} holds the results of a search; leave out --{flag.replace('_', '-')}")
    embedding = _embedding(uri)
    table = tables.read(uri)
    tables.require_columns(table, COLUMNS, uri)
    queries = _codes(uri, table, "query_id", task.queries.table["image_id"])
    known = queries != NOT_LISTED
    if not known.any():
        raise UserError(f"{uri!r} has no list of a query of {task.queries.uri!r}")
    images = _codes(uri, table, "image_id", task.database.table["image_id"])
    listed_query = _codes(uri, table, "image_id", task.queries.table["image_id"]) != NOT_LISTED
    if len(strange := np.flatnonzero(known & (images == NOT_LISTED) & ~listed_query)):
        image_id = quoted(table["image_id"][int(strange[0])].as_py())
        raise UserError(
            f"{uri!r}: row {strange[0] + 1} lists image_id {image_id}, which is not in the database of "
            f"{task.database.uri!r}"
        )
    try:
        ranks = pc.cast(table["rank"], pa.int64()).to_numpy()[known]
    except pa.ArrowException as error:
        raise UserError(f"{uri!r}: column 'rank' must be whole numbers: {files.reason(error)}") from error
    queries, images = queries[known], images[known]
    order = np.lexsort((ranks, queries))
    queries, images, ranks = queries[order], images[order], ranks[order]
    listed, starts, lengths = np.unique(queries, return_index=True, return_counts=True)
    wrong = ranks != np.arange(1, len(ranks) + 1) - np.repeat(starts, lengths)
    if wrong.any():
        query = quoted(task.queries.table["image_id"][int(queries[wrong][0])].as_py())
        raise UserError(f"{uri!r}: the ranks of query {query} are not 1, 2, 3 and so on, each once")
    by_image = np.lexsort((images, queries))
    again = (np.diff(queries[by_image]) == 0) & (np.diff(images[by_image]) == 0) & (images[by_image][1:] != NOT_LISTED)
    if again.any():
        row = by_image[int(np.argmax(again))]
        query, image = (
            quoted(rows.table["image_id"][int(codes[row])].as_py())
            for rows, codes in ((task.queries, queries), (task.database, images))
        )
        raise UserError(f"{uri!r} lists {image} twice for query {query}")
    # An index of all descriptors finds other queries, too, which are no part of this database.
    inside = images != NOT_LISTED
    starts = np.append(0, np.cumsum(np.add.reduceat(inside, starts, dtype=np.int64)))
    return RankedLists(listed, images[inside], starts, embedding)


def _codes(uri: str, table: pa.Table, name: str, ids: pa.ChunkedArray) -> np.ndarray:
    """The position in `ids` of each value of the column `name`, int64 (R,); NOT_LISTED for a value that `ids` lacks."""
    values = manifest.text_column(uri, table, name)
    found: np.ndarray = pc.fill_null(pc.index_in(values, ids.combine_chunks()), NOT_LISTED).to_numpy()
    return found.astype(np.int64)


def _embedding(uri: str) -> dict[str, Any] | None:
    """The embedding of the search that wrote the lists at `uri`; None if search.py did not write them.

    Raises UserError if the search is unfinished, or the file has changed since.
    """
    folder = files.parent(uri)
    record = output_folder.record_of(folder)
    if record is None or record["job"] != "search":
        return None
    output_folder.finished_record(folder)
    if facts := (seal.from_record(record, folder) or {}).get(files.name(uri)):
        seal.require_content(uri, facts, "search")
    return record.get("embedding")


def judge(task: RetrievalTask, lists: RankedLists) -> Iterator[QueryResult]:
    """Scores each list under the task's protocol. The results name no hits."""
    chosen = evaluation.informative_metrics(task, _longest(task, lists))
    graded = task.graded(lists.queries)
    listed = graded.by_query(_positions(task, lists, graded), len(lists.queries))
    asked = task.queries.table.take(lists.queries)
    queries = zip(asked["image_id"].to_pylist(), asked["label"].to_pylist(), strict=True)
    for query, positions in zip(queries, listed, strict=True):
        yield result_of(task, chosen, query, positions, [])


def _positions(task: RetrievalTask, lists: RankedLists, graded: Graded) -> np.ndarray:
    """The 0-based position of each of the `graded` rows in its query's list, NOT_LISTED for a row that it lacks."""
    of = np.repeat(np.arange(len(lists.queries)), np.diff(lists.starts))
    kept = lists.images != task.excluded[lists.queries][of]
    of, size = of[kept], len(task.database)
    places = np.arange(len(of)) - np.searchsorted(of, of)
    listed = of * size + lists.images[kept]
    order = np.argsort(listed)
    wanted = graded.queries * size + graded.rows
    at = np.searchsorted(listed, wanted, sorter=order)
    found = np.append(order, len(listed))[at]
    present = np.append(listed, NOT_LISTED)[found] == wanted
    return np.where(present, np.append(places, NOT_LISTED)[found], NOT_LISTED)


def _longest(task: RetrievalTask, lists: RankedLists) -> int:
    """The number of photos in a list of the whole database, without a photo that the protocol excludes."""
    return len(task.database) - bool((task.excluded[lists.queries] != NOT_LISTED).any())


def metrics_of(
    config: EvaluateConfig, task: RetrievalTask, lists: RankedLists, results: list[QueryResult]
) -> dict[str, Any]:
    """The contents of metrics.json: the figures, and the facts needed to compare them with figures of another run."""
    return (
        {"protocol": config.protocol}
        | evaluation.summary(task, results, _longest(task, lists))
        | {
            "ranked": config.ranked,
            "n_database": len(task.database),
            "n_listed": int(np.diff(lists.starts).min()),
            "unreadable_queries": len(task.queries) - len(results),
            "query_split": config.query_split or config.split,
            "database_split": config.database_split or config.split,
            "query_in_database": task.query_in_database,
            "embedding": lists.embedding,
        }
    )
