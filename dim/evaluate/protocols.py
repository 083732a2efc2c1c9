"""The field's protocols: which images are positive or junk, whether the query leaves its list, what is measured.

What is asked of an evaluation, before any descriptor is known: queries, database, what is relevant to which.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.data import ground_truth, manifest
from dim.data.ground_truth import GroundTruth
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.evaluate import metrics
from dim.evaluate.config import EvaluateConfig, ProtocolName
from dim.evaluate.metrics import Metric
from dim.extract import identity

NOT_LISTED = -1

Verdict = Literal["right", "wrong", "junk"]


@dataclass(frozen=True)
class Level:
    """Which grades are positive and which are junk; images of all others are negative."""

    positive: tuple[str, ...]
    junk: tuple[str, ...]

    def ranks(self, positions: Mapping[str, np.ndarray]) -> tuple[np.ndarray, int]:
        """The ranks of the positives, ascending and without junk, and how many positives there are, listed or not.

        `positions[grade]` are the 0-based positions in the list of the images of that grade, NOT_LISTED for one that
        isn't there.
        """
        positive, junk = (
            np.concatenate([np.zeros(0, np.int64), *(positions[grade] for grade in grades if grade in positions)])
            for grades in (self.positive, self.junk)
        )
        listed = np.sort(positive[positive != NOT_LISTED])
        return metrics.without_junk(listed, np.sort(junk[junk != NOT_LISTED])), len(positive)

    def verdicts(self, rows: Mapping[str, np.ndarray]) -> dict[int, Verdict]:
        """The verdict on each of `rows[grade]`; any other row is wrong."""
        judged: dict[int, Verdict] = {}
        for verdict, grades in (("junk", self.junk), ("right", self.positive)):
            for grade in grades:
                judged |= dict.fromkeys(rows.get(grade, np.zeros(0)).tolist(), verdict)
        return judged


@dataclass(frozen=True)
class Protocol:
    """`metrics` are measured at `level`, and at each of `levels` where a protocol has several.

    A metric's name before an @ is its key in metrics.json, what follows it the key within.
    """

    metrics: dict[str, Metric]
    level: Level = Level(positive=("good", "ok"), junk=("junk",))
    levels: dict[str, Level] = field(default_factory=dict)
    graded: bool = False  # relevance from a ground truth; else from labels, each image of the query's label being good
    query_leaves: bool = True  # the query is taken out of its own list
    top_k: int | None = None  # depth of the seed's accuracy and classification report

    @property
    def grades(self) -> set[str]:
        """The grades that this protocol knows."""
        return {*self.level.positive, *self.level.junk}


def _at(name: str, metric: Any, *depths: int) -> dict[str, Metric]:
    return {f"{name}@{k}": partial(metric, k=k) for k in depths}


REVISITED_LEVELS = {
    "easy": Level(positive=("easy",), junk=("junk", "hard")),
    "medium": Level(positive=("easy", "hard"), junk=("junk",)),
    "hard": Level(positive=("hard",), junk=("junk", "easy")),
}
_AP: dict[str, Metric] = {"map": metrics.average_precision}

PROTOCOLS: dict[ProtocolName, Protocol] = {
    # Recall at 1, 2, 4, 8 is what CUB's papers report, at 1, 10, 100, 1000 those of Stanford Online Products.
    "labels": Protocol(
        _AP
        | {"map_at_r": metrics.average_precision_at_r}
        | _at("recall", metrics.recall_at, 1, 2, 4, 5, 8, 10, 100, 1000),
        top_k=5,
    ),
    "holidays": Protocol(_AP),
    "ukbench": Protocol(_AP | {"ns_score": metrics.ns_score}, query_leaves=False),
    "oxford": Protocol({"map": metrics.printed_average_precision}, graded=True, query_leaves=False),
    # `map` and `mp` themselves are those of medium.
    "revisited": Protocol(
        _AP | _at("mp", metrics.precision_at, 1, 5, 10),
        level=REVISITED_LEVELS["medium"],
        levels=REVISITED_LEVELS,
        graded=True,
    ),
    "gldv2": Protocol({"map": partial(metrics.finite_average_precision, k=100)}, graded=True),
}


def apply_metrics(known: Mapping[str, Metric], ranks: np.ndarray, n_pos: int) -> dict[str, float | None]:
    """Each metric of `known` for one query."""
    return {name: metric(ranks, n_pos) for name, metric in known.items()}


def means(known: Mapping[str, Metric], queries: list[dict[str, float | None]]) -> dict[str, Any]:
    """The mean of each metric over the queries that have it, nested as in metrics.json: `{"recall": {"1": …}}`."""
    nested: dict[str, Any] = {}
    for name in known:
        value = metrics.mean(query[name] for query in queries)
        key, _, depth = name.partition("@")
        if depth:
            nested.setdefault(key, {})[depth] = value
        else:
            nested[key] = value
    return nested


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
