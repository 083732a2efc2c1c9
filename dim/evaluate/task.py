"""What is asked of an evaluation, before any descriptor is known: queries, database, what is relevant to which."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.data import ground_truth, manifest
from dim.data.ground_truth import GroundTruth
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.protocols import PROTOCOLS, Protocol
from dim.extract import identity


@dataclass(frozen=True)
class Task:
    """Rows below are those of `queries` and of `database`. Without `truth`, labels say what is relevant."""

    protocol: Protocol
    queries: Manifest
    database: Manifest
    truth: GroundTruth | None = None

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The database row of each image_id."""
        return {image_id: row for row, image_id in enumerate(self.database.image_ids)}

    @cached_property
    def _rows_of_label(self) -> dict[str, np.ndarray]:
        rows: dict[str, list[int]] = {}
        for row, label in enumerate(self.database.labels):
            if label is not None:
                rows.setdefault(label, []).append(row)
        return {label: np.array(found) for label, found in rows.items()}

    def leaving(self, query: int) -> int | None:
        """The database row that leaves the list of the query row `query`: its own, where the protocol says so."""
        return self.row_of.get(self.queries.image_ids[query]) if self.protocol.query_leaves else None

    def relevant(self, query: int) -> dict[str, np.ndarray]:
        """The database rows of each grade for the query row `query`."""
        if self.truth:
            images = self.truth.images[self.queries.image_ids[query]]
            graded = {grade: np.array([self.row_of[image] for image in ids]) for grade, ids in images.items()}
        else:
            graded = {"good": self._rows_of_label.get(self.queries.labels[query], np.zeros(0, np.int64))}
        if (leaving := self.leaving(query)) is None:
            return graded
        return {grade: rows[rows != leaving] for grade, rows in graded.items()}

    def has_positive(self, query: int) -> bool:
        """Whether anything in the database is a positive of the query row `query`."""
        positive = self.protocol.level.positive
        return any(len(rows) for grade, rows in self.relevant(query).items() if grade in positive)

    def require_positive(self, queries: Iterable[int]) -> None:
        """Raises UserError unless one of the query rows `queries` has a positive: else there is nothing to measure."""
        if not any(map(self.has_positive, queries)):
            raise UserError(
                f"{self.queries.uri!r}: no readable query has a positive in the database; nothing to measure"
            )

    @cached_property
    def query_in_database(self) -> bool:
        """Whether the photo of any query stands in the query's own list, be it under another id (a crop of it, say)."""
        photos = Counter(self.database.paths)
        return any(
            photos[path] > (1 if self.leaving(query) is not None else 0)
            for query, path in enumerate(self.queries.paths)
        )


def task_of(config: EvaluateConfig) -> Task:
    """The task that `config` sets.

    Raises UserError where its flags, manifest or ground truth don't fit each other, or a photo is outside --root.
    """
    protocol = PROTOCOLS[config.protocol]
    if bool(config.query_split) != bool(config.database_split) or (config.split and config.query_split):
        raise UserError("give --split alone, or --query-split and --database-split together")
    if protocol.graded and not config.ground_truth:
        raise UserError(f"--protocol {config.protocol} needs --ground-truth FILE (query_id, image_id, grade)")
    if config.ground_truth and not protocol.graded:
        graded = ", ".join(name for name, known in PROTOCOLS.items() if known.graded)
        raise UserError(f"--protocol {config.protocol} goes by labels; for --ground-truth choose one of {graded}")
    photos = manifest.read(config.manifest)
    truth = ground_truth.read(config.ground_truth, photos) if config.ground_truth else None
    queries = photos.select(config.query_split or config.split, "query")
    database = photos.select(config.database_split or config.split, "database")
    if truth:
        queries = _graded_queries(queries, truth)
    if config.root:
        for rows in (queries, database):
            identity.require_under(config.root, rows)
    task = Task(protocol, queries, database, truth)
    if truth:
        _check_grades(task, config.protocol, truth)
    task.require_positive(range(len(queries)))
    return task


def _graded_queries(queries: Manifest, truth: GroundTruth) -> Manifest:
    table = queries.table.filter(pc.is_in(queries.table["image_id"], pa.array(list(truth.images), pa.string())))
    if table.num_rows == 0:
        raise UserError(f"{truth.uri!r} grades nothing for the queries selected from {queries.uri!r}")
    return replace(queries, table=table)


def _check_grades(task: Task, name: str, truth: GroundTruth) -> None:
    known = task.protocol.grades
    if unknown := truth.grades - known:
        raise UserError(
            f"{truth.uri!r} has the grade {min(unknown)!r}; --protocol {name} knows {', '.join(sorted(known))}"
        )
    for query in task.queries.image_ids:
        for image in (image for images in truth.images[query].values() for image in images):
            if image not in task.row_of:
                raise UserError(f"{truth.uri!r} grades {image!r} for {query!r}, but it is not in the database searched")
