"""An earlier evaluation as the baseline of this one: reading it, comparing on common queries, and the gate."""

import logging
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dim import files
from dim.errors import UserError, quoted
from dim.evaluate import comparison
from dim.evaluate.comparison import Comparison
from dim.evaluate.task import Task

log = logging.getLogger(__name__)

_DATABASE = ("n_database", "database_split")
_ASKED = ("n_queries", "query_split", *_DATABASE)  # what must be equal for figures to be comparable


@dataclass(frozen=True)
class Baseline:
    """The metrics.json at `uri` and, where it still lies beside it, the per_query.parquet."""

    uri: str
    metrics: dict[str, Any]
    per_query: pa.Table | None

    def require_common(self, task: Task) -> None:
        """Raises UserError where none of its queries is measured by `task`: there would be nothing to compare."""
        if self.per_query is None:
            return
        measured = set(self.per_query.filter(self.per_query["ap"].is_valid())["query_id"].to_pylist())
        if not any(name in measured and task.has_positive(row) for row, name in enumerate(task.queries.image_ids)):
            raise UserError(
                f"{self.uri!r} and {task.queries.uri!r} have no query in common; name a baseline of the same queries"
            )

    def compared(self, name: str, per_query: pa.Table, metrics: dict[str, Any]) -> Comparison | None:
        """The run `name` against this one, None where nothing tells its queries; says what else differs between them.

        `per_query` and `metrics` are those of the run.
        """
        known = {key: self.metrics.get(key, metrics[key]) for key in _ASKED}
        if differ := [
            f"{key} {quoted(known[key])}, not {metrics[key]!r}" for key in _ASKED if known[key] != metrics[key]
        ]:
            on = "all its queries" if self.per_query is None else "the queries in common"
            told = f"mAP is compared on {on}"
            if any(known[key] != metrics[key] for key in _DATABASE):
                told += (
                    ". Among other photos AP is another, whatever the network: give the descriptors of both runs by "
                    "--descriptors to compare them on the same"
                )
            log.warning("%s is another evaluation: %s; %s", self.uri, "; ".join(differ), told)
        if self.per_query is None:
            return None
        return comparison.compared(self.uri, self.per_query, name, per_query)

    def unmet(self, value: float, against: Comparison | None, max_drop: float) -> str | None:
        """Why a mAP of `value`, compared as `against`, doesn't meet the gate, None where it does."""
        if against is None:
            before = self.metrics["map"]
            fall, told = before - value, f"mAP {value:.4f} is {{:.4f}} below the {before:.4f} of {self.uri!r}"
        elif against.change is None:
            return f"no query that is in common with {self.uri!r} could be read"
        else:
            fall = -against.change.difference
            told = f"mAP is {{:.4f}} lower on the {len(against.judged)} queries in common with {self.uri!r}"
        return f"{told.format(fall)}, which is more than --max-drop {max_drop}" if fall > max_drop else None


def read(uri: str, protocol: str) -> Baseline:
    """The evaluation of the metrics.json at `uri`.

    Raises UserError where it has no mAP, is of another protocol, or lies in a folder that is not whole.
    """
    comparison.require_own(uri)
    found = files.read_json(uri)
    value: Any = found.get("map") if isinstance(found, dict) else None
    if type(value) not in (int, float) or not 0 <= value <= 1:  # no NaN either, below which nothing can fall
        raise UserError(
            f"{uri!r} holds no map from 0 to 1, but {quoted(value)}; name the metrics.json of an evaluation"
        )
    if found.get("protocol") != protocol:
        raise UserError(f"{uri!r} is of protocol {found.get('protocol')!r}, not {protocol!r}")
    return Baseline(uri, found, comparison.beside(uri))
