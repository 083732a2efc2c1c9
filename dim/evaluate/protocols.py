"""The field's evaluation protocols.

A `Protocol` says which images are positive or junk for a query, whether the query's own photo stays in its list, and
which metrics are measured. `dim.evaluate.task` applies a protocol to manifests.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from dim.evaluate import groups, metrics
from dim.evaluate.config import ProtocolName
from dim.evaluate.groups import Groups
from dim.evaluate.metrics import Metric

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
_RECALL = _at("recall", metrics.recall_at, 1, 5, 10, 20)  # the depths of papers on place recognition

PROTOCOLS: dict[ProtocolName, Protocol] = {
    # Papers on CUB report recall at 1, 2, 4 and 8. Papers on Stanford Online Products use 1, 10, 100 and 1000.
    "labels": Protocol(
        _AP
        | {"map_at_r": metrics.average_precision_at_r}
        | _at("recall", metrics.recall_at, 1, 2, 4, 5, 8, 10, 20, 100, 1000),
        top_k=5,
    ),
    "holidays": Protocol(_AP | _RECALL),
    # A query's own photo is in its list and a positive, so recall would always be 1.
    "ukbench": Protocol(_AP | {"ns_score": metrics.ns_score}, excludes_query=False),
    "oxford": Protocol({"map": metrics.printed_average_precision} | _RECALL, graded=True, excludes_query=False),
    # `map`, `mp` and `recall` at the top level of metrics.json are those of the level medium.
    "revisited": Protocol(
        _AP | _at("mp", metrics.precision_at, 1, 5, 10) | _RECALL,
        level=REVISITED_LEVELS["medium"],
        levels=REVISITED_LEVELS,
        graded=True,
    ),
    "gldv2": Protocol({"map": partial(metrics.finite_average_precision, k=100)} | _RECALL, graded=True),
    "ilias": Protocol(
        {"map": partial(metrics.finite_average_precision, k=1000), "oracle": partial(metrics.oracle, k=1000)} | _RECALL,
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
