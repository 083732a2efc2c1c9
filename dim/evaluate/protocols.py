"""The field's evaluation protocols, and the retrieval task that they set.

A `Protocol` says which images are positive or junk for a query, whether the query's own photo stays in its list, and
which metrics are measured. A `RetrievalTask` applies a protocol to manifests: it names the queries, the database, and
the database rows that are relevant to each query. A task contains no descriptors.
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
from dim.evaluate import groups, metrics
from dim.evaluate.config import EvaluateConfig, ProtocolName
from dim.evaluate.groups import Groups
from dim.evaluate.metrics import Metric
from dim.extract import identity

NOT_LISTED = -1

Verdict = Literal["right", "wrong", "junk"]


@dataclass(frozen=True)
class Level:
    """Which grades, such as "good", are positive and which are junk. Images of other grades or of none are negative."""

    positive: tuple[str, ...]
    junk: tuple[str, ...]

    def ranks(self, positions: Mapping[str, np.ndarray]) -> tuple[np.ndarray, int]:
        """Turns positions in a query's list into the arguments of a metric, `ranks` and `n_pos`.

        `positions` maps each grade to an int array (R,), the 0-based positions of that grade's images. An image that
        the list lacks has the position NOT_LISTED.
        """
        positive, junk = (
            np.concatenate([np.zeros(0, np.int64), *(positions[grade] for grade in grades if grade in positions)])
            for grades in (self.positive, self.junk)
        )
        listed = np.sort(positive[positive != NOT_LISTED])
        return metrics.without_junk(listed, np.sort(junk[junk != NOT_LISTED])), len(positive)

    def verdicts(self, columns: Mapping[str, np.ndarray]) -> dict[int, Verdict]:
        """Maps database columns to verdicts, given the `columns` of each grade. A column that is left out is wrong."""
        judged: dict[int, Verdict] = {}
        for verdict, grades in (("junk", self.junk), ("right", self.positive)):
            for grade in grades:
                judged |= dict.fromkeys(columns.get(grade, np.zeros(0)).tolist(), verdict)
        return judged


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is scored. In metrics.json, the metric "recall@5" is the key "5" of the object "recall"."""

    metrics: dict[str, Metric]
    level: Level = Level(positive=("good", "ok"), junk=("junk",))  # for the top-level figures of metrics.json
    levels: dict[str, Level] = field(default_factory=dict)  # all levels by name, which `nested` reads
    graded: bool = False  # whether a ground truth grades images; if not, all images of the query's label are "good"
    excludes_query: bool = True  # the query's own image is removed from its list
    top_k: int | None = None  # depth of the top-k accuracy and classification report
    groups: Groups | None = None  # groups of positives, whose names are their grades; None: they are "good"

    @property
    def grades(self) -> set[str]:
        """The grades that a ground truth file may use."""
        return {*self.level.positive, *self.level.junk}


def _at(name: str, metric: Any, *depths: int) -> dict[str, Metric]:
    return {f"{name}@{k}": partial(metric, k=k) for k in depths}


REVISITED_LEVELS = {
    "easy": Level(positive=("easy",), junk=("junk", "hard")),
    "medium": Level(positive=("easy", "hard"), junk=("junk",)),
    "hard": Level(positive=("hard",), junk=("junk", "easy")),
}
ILIAS_LEVELS = {name: Level(positive, junk) for name, positive, junk in groups.levels(groups.ILIAS)}
_AP: dict[str, Metric] = {"map": metrics.average_precision}

PROTOCOLS: dict[ProtocolName, Protocol] = {
    # Papers on CUB report recall at 1, 2, 4 and 8. Papers on Stanford Online Products use 1, 10, 100 and 1000.
    "labels": Protocol(
        _AP
        | {"map_at_r": metrics.average_precision_at_r}
        | _at("recall", metrics.recall_at, 1, 2, 4, 5, 8, 10, 100, 1000),
        top_k=5,
    ),
    "holidays": Protocol(_AP),
    "ukbench": Protocol(_AP | {"ns_score": metrics.ns_score}, excludes_query=False),
    "oxford": Protocol({"map": metrics.printed_average_precision}, graded=True, excludes_query=False),
    # `map` and `mp` at the top level of metrics.json are those of the level medium.
    "revisited": Protocol(
        _AP | _at("mp", metrics.precision_at, 1, 5, 10),
        level=REVISITED_LEVELS["medium"],
        levels=REVISITED_LEVELS,
        graded=True,
    ),
    "gldv2": Protocol({"map": partial(metrics.finite_average_precision, k=100)}, graded=True),
    "ilias": Protocol(
        {"map": partial(metrics.finite_average_precision, k=1000), "oracle": partial(metrics.oracle, k=1000)},
        level=Level(positive=tuple(groups.grades(groups.ILIAS)), junk=()),
        excludes_query=False,
        levels=ILIAS_LEVELS,
        groups=groups.ILIAS,
    ),
}


def apply_metrics(chosen: Mapping[str, Metric], ranks: np.ndarray, n_pos: int) -> dict[str, float | None]:
    """The value of each of the `chosen` metrics for one query."""
    return {name: metric(ranks, n_pos) for name, metric in chosen.items()}


def means(names: Iterable[str], queries: list[dict[str, float | None]]) -> dict[str, Any]:
    """The mean of each metric over the queries that have a value, nested as in metrics.json: `{"recall": {"1": …}}`."""
    return nested({name: metrics.mean(query[name] for query in queries) for name in names})


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The `values` of metrics or levels as metrics.json has them: "recall@1" is the key "1" of the object "recall"."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key, _, depth = name.partition("@")
        if depth:
            found.setdefault(key, {})[depth] = value
        else:
            found[key] = value
    return found


def value_of(name: str, values: Mapping[str, Any]) -> Any:
    """The value of the metric or level `name` in metrics.json, or in another dict that `nested` made."""
    key, _, depth = name.partition("@")
    return values[key][depth] if depth else values[key]


@dataclass(frozen=True)
class RetrievalTask:
    """A protocol applied to queries and a database. Methods take and return row numbers of these two manifests."""

    protocol: Protocol
    queries: Manifest
    database: Manifest
    truth: GroundTruth | None = None  # None: labels say what is relevant

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

    def _by_group(self, of: Groups, rows: np.ndarray) -> dict[str, np.ndarray]:
        numbers = groups.numbers(of, self.database, rows)
        return {grade: rows[numbers == number] for number, grade in enumerate(groups.grades(of))}

    def excluded_row(self, query: int) -> int | None:
        """The database row of the query's own image if the protocol excludes it from the list, else None."""
        return self.row_of.get(self.queries.image_ids[query]) if self.protocol.excludes_query else None

    def relevant(self, query: int) -> dict[str, np.ndarray]:
        """The database rows of each grade for the query in row `query`, without the excluded row."""
        if self.truth:
            images = self.truth.images[self.queries.image_ids[query]]
            graded = {grade: np.array([self.row_of[image] for image in ids]) for grade, ids in images.items()}
        else:
            rows = self._rows_of_label.get(self.queries.labels[query], np.zeros(0, np.int64))
            graded = self._by_group(self.protocol.groups, rows) if self.protocol.groups else {"good": rows}
        if (excluded := self.excluded_row(query)) is None:
            return graded
        return {grade: rows[rows != excluded] for grade, rows in graded.items()}

    def has_positive(self, query: int) -> bool:
        """Whether the database has a positive for the query in row `query`."""
        positive = self.protocol.level.positive
        return any(len(rows) for grade, rows in self.relevant(query).items() if grade in positive)

    def require_positive(self, queries: Iterable[int]) -> None:
        """Raises UserError if none of the query rows `queries` has a positive. No metric would have a value."""
        if not any(map(self.has_positive, queries)):
            raise UserError(
                f"{self.queries.uri!r}: no readable query has a positive in the database; nothing to measure"
            )

    @cached_property
    def query_in_database(self) -> bool:
        """Whether the list of any query has the query's own photo, under any image_id. A crop of it counts as well."""
        photos = Counter(self.database.paths)
        return any(
            photos[path] > (1 if self.excluded_row(query) is not None else 0)
            for query, path in enumerate(self.queries.paths)
        )


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
    if truth:
        _check_grades(task, config.protocol, truth)
    task.require_positive(range(len(queries)))
    return task


def _graded_queries(queries: Manifest, truth: GroundTruth) -> Manifest:
    table = queries.table.filter(pc.is_in(queries.table["image_id"], pa.array(list(truth.images), pa.string())))
    if table.num_rows == 0:
        raise UserError(f"{truth.uri!r} grades no image for any of the queries selected from {queries.uri!r}")
    return replace(queries, table=table)


def _check_grades(task: RetrievalTask, name: str, truth: GroundTruth) -> None:
    allowed = task.protocol.grades
    if unknown := truth.grades - allowed:
        raise UserError(
            f"{truth.uri!r} has the grade {min(unknown)!r}; --protocol {name} knows {', '.join(sorted(allowed))}"
        )
    for query in task.queries.image_ids:
        for image in (image for images in truth.images[query].values() for image in images):
            if image not in task.row_of:
                raise UserError(f"{truth.uri!r} grades {image!r} for {query!r}, but it is not in the database searched")
