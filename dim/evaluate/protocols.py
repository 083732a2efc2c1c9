"""The field's protocols: which images are positive or junk, whether the query leaves its list, what is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from dim.evaluate import metrics
from dim.evaluate.config import ProtocolName
from dim.evaluate.metrics import Metric

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
