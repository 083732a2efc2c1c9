"""The retrieval task that an evaluation measures: a protocol applied to the manifests of queries and database.

A `RetrievalTask` names the queries, the database, and the database rows that the protocol grades for each query. It
contains no descriptors. Its tables are arrays, with no Python object for each photo of the database.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.data import ground_truth, manifest
from dim.data.ground_truth import GroundTruth
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.evaluate import groups
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.protocols import NOT_LISTED, PROTOCOLS, Protocol
from dim.extract import identity
from dim.io import files


@dataclass(frozen=True)
class Graded:
    """P pairs of a query and a graded database row, ordered by query.

    `queries`, `rows` and `grades` are integers (P,): positions in a list of queries, rows of the database's manifest,
    and positions in `names`, the names of the grades.
    """

    queries: np.ndarray
    rows: np.ndarray
    grades: np.ndarray
    names: list[str]

    def by_query(self, values: np.ndarray, count: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields the `values` (P,) of the pairs of each of the `count` queries, by grade."""
        bounds = np.searchsorted(self.queries, np.arange(count + 1)).tolist()
        for first, last in pairwise(bounds):
            grades, found = self.grades[first:last], values[first:last]
            yield {name: found[grades == grade] for grade, name in enumerate(self.names)}


@dataclass(frozen=True)
class _Lists:
    """Lists of graded rows, one after the other. List l is from starts[l] to before starts[l + 1].

    `of` is the list of each query, (Q,). Queries with the same label share a list.
    """

    of: np.ndarray
    starts: np.ndarray
    rows: np.ndarray
    grades: np.ndarray
    names: list[str]


@dataclass(frozen=True)
class RetrievalTask:
    """A protocol applied to queries and a database. Methods take and return row numbers of these two manifests."""

    protocol: Protocol
    queries: Manifest
    database: Manifest
    truth: GroundTruth | None = None  # None: labels say what is relevant

    @cached_property
    def excluded(self) -> np.ndarray:
        """The database row of each query's own image if the protocol excludes it from the list, else NOT_LISTED."""
        if not self.protocol.excludes_query:
            return np.full(len(self.queries), NOT_LISTED)
        return _rows_of(self.queries.table["image_id"], self.database)

    @cached_property
    def _lists(self) -> _Lists:
        if self.truth:
            return self._lists_of_truth(self.truth)
        labels = self.database.table["label"].drop_null().unique()
        codes = pc.index_in(self.database.table["label"], labels).fill_null(len(labels)).to_numpy()
        own = pc.index_in(self.queries.table["label"], labels, skip_nulls=True).fill_null(len(labels)).to_numpy()
        rows = np.argsort(codes, kind="stable")[: np.count_nonzero(codes < len(labels))]
        # The last list, of the queries without a label or with a label that the database lacks, is empty.
        starts = np.searchsorted(codes[rows], np.arange(len(labels) + 1))
        grades, names = np.zeros(len(rows), np.int8), ["good"]
        if self.protocol.groups:
            asked = np.isin(codes[rows], own)  # labels of no query may lack the columns of the groups
            grades[asked] = groups.numbers(self.protocol.groups, self.database, rows[asked])
            names = list(groups.grades(self.protocol.groups))
        return _Lists(own, np.append(starts, len(rows)), rows, grades, names)

    def _lists_of_truth(self, truth: GroundTruth) -> _Lists:
        names = sorted(truth.grades)
        lengths, images, grades = [0], [], []
        for query in self.queries.table["image_id"].to_pylist():
            for grade, ids in truth.images[query].items():
                images += ids
                grades += [names.index(grade)] * len(ids)
            lengths.append(len(images))
        rows = _rows_of(pa.chunked_array([pa.array(images, pa.string())]), self.database)
        if len(missing := np.flatnonzero(rows == NOT_LISTED)):
            query = self.queries.table["image_id"][int(np.searchsorted(lengths, missing[0], side="right")) - 1].as_py()
            raise UserError(
                f"{truth.uri!r} grades {images[missing[0]]!r} for {query!r}, but it is not in the database searched"
            )
        return _Lists(np.arange(len(self.queries)), np.array(lengths), rows, np.array(grades, np.int8), names)

    def graded(self, queries: np.ndarray) -> Graded:
        """The database rows of each grade for the queries in the rows `queries`, without the excluded rows."""
        lists = self._lists
        first = lists.starts[lists.of[queries]]
        lengths = lists.starts[lists.of[queries] + 1] - first
        of = np.repeat(np.arange(len(queries)), lengths)
        places = np.arange(len(of)) + np.repeat(first - np.cumsum(lengths) + lengths, lengths)
        rows = lists.rows[places]
        kept = rows != self.excluded[queries][of]
        return Graded(of[kept], rows[kept], lists.grades[places][kept], lists.names)

    @cached_property
    def graded_counts(self) -> np.ndarray:
        """The number of graded rows of each query, (Q,), an excluded row included."""
        found: np.ndarray = np.diff(self._lists.starts)[self._lists.of]
        return found

    @cached_property
    def has_positive(self) -> np.ndarray:
        """Whether the database has a positive for each query, bool (Q,)."""
        lists = self._lists
        good = [number for number, name in enumerate(lists.names) if name in self.protocol.level.positive]
        positive = np.isin(lists.grades, good)
        before = np.concatenate([[0], np.cumsum(positive)])[lists.starts]
        counts = np.diff(before)[lists.of]
        first = np.append(lists.rows[positive], NOT_LISTED)[before[lists.of]]
        found: np.ndarray = (counts > 1) | ((counts == 1) & (first != self.excluded))
        return found

    def require_positive(self, queries: np.ndarray) -> None:
        """Raises UserError if none of the query rows `queries` has a positive. No metric would have a value."""
        if not self.has_positive[queries].any():
            raise UserError(
                f"{self.queries.uri!r}: no readable query has a positive in the database; nothing to measure"
            )

    @cached_property
    def query_in_database(self) -> bool:
        """Whether the list of any query has the query's own photo, under any image_id. A crop of it counts as well."""
        folder = f"{files.parent(files.absolute(self.queries.uri)).rstrip('/')}/"
        own = self.queries.paths
        spelled = {*own, *self.queries.table["path"].to_pylist(), *(path.removeprefix(folder) for path in own)}
        maybe = pc.is_in(self.database.table["path"], pa.array(spelled, pa.string()))
        photos = Counter(replace(self.database, table=self.database.table.filter(maybe)).paths)
        left_out = (self.excluded != NOT_LISTED).tolist()
        return any(photos[path] > one for path, one in zip(own, left_out, strict=True))


def _rows_of(ids: pa.ChunkedArray, database: Manifest) -> np.ndarray:
    """The row of each of `ids` in `database`, int64, NOT_LISTED for an id that the database lacks."""
    wanted = ids.unique()  # the database's ids are not hashed, as there may be many times more of them
    found = pc.index_in(database.table["image_id"], wanted)
    row_of = np.full(len(wanted), NOT_LISTED)
    row_of[found.drop_null().to_numpy()] = np.flatnonzero(found.is_valid())
    rows: np.ndarray = row_of[pc.index_in(ids, wanted).to_numpy()]
    return rows


def read_task(config: EvaluateConfig) -> RetrievalTask:
    """Reads the manifest and the ground truth of an evaluation.

    Raises UserError if files and flags contradict each other, no query has a positive, or a photo is outside --root.
    """
    protocol = PROTOCOLS[config.protocol]
    if bool(config.query_split) != bool(config.database_split) or (config.split and config.query_split):
        raise UserError("give --split alone, or --query-split and --database-split together")
    if protocol.graded and not config.ground_truth:
        raise UserError(f"--protocol {config.protocol} needs --ground-truth FILE (query_id, image_id, grade)")
    if config.ground_truth and not protocol.graded:
        graded = ", ".join(name for name, known in PROTOCOLS.items() if known.graded)
        raise UserError(f"--protocol {config.protocol} uses labels; for --ground-truth, choose one of {graded}")
    photos = manifest.read(config.manifest)
    truth = ground_truth.read(config.ground_truth, photos) if config.ground_truth else None
    queries = photos.select(config.query_split or config.split, "query")
    database = photos.select(config.database_split or config.split, "database")
    if truth:
        queries = _graded_queries(queries, truth)
    if config.root:
        for rows in (queries, database):
            identity.require_under(config.root, rows)
    task = RetrievalTask(protocol, queries, database, truth)
    if truth and (unknown := truth.grades - protocol.grades):
        raise UserError(
            f"{truth.uri!r} has the grade {min(unknown)!r}; --protocol {config.protocol} knows "
            f"{', '.join(sorted(protocol.grades))}"
        )
    task.require_positive(np.arange(len(queries)))
    return task


def _graded_queries(queries: Manifest, truth: GroundTruth) -> Manifest:
    table = queries.table.filter(pc.is_in(queries.table["image_id"], pa.array(list(truth.images), pa.string())))
    if table.num_rows == 0:
        raise UserError(f"{truth.uri!r} grades no image for any of the queries selected from {queries.uri!r}")
    return replace(queries, table=table)
