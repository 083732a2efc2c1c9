"""Two evaluations held against each other, query by query.

An earlier evaluation as the baseline of this one: reading it, comparing on common queries, and the gate.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.app import output
from dim.errors import UserError, quoted
from dim.evaluate import significance
from dim.evaluate.protocols import Task
from dim.evaluate.significance import Interval
from dim.io import files, seal, tables

COLUMNS = ["query_id", "label", "ap"]
METRICS, PER_QUERY = "metrics.json", "per_query.parquet"


@dataclass(frozen=True)
class Comparison:
    """The run `after` against the run `before`. `table`: query_id, label, ap (before), ap_other (after), difference,
    largest gain first, of the queries that both could read; `change` is that of the mean AP, None without any.
    """

    before: str
    after: str
    table: pa.Table
    change: Interval | None

    @property
    def judged(self) -> list[dict[str, Any]]:
        """The rows of the queries that have an AP in both."""
        return list(self.table.filter(pc.is_valid(self.table["difference"])).to_pylist())

    def as_json(self) -> dict[str, Any] | None:
        """The change in mAP, as it stands in metrics.json."""
        return None if self.change is None else {"before": self.before, "after": self.after, **vars(self.change)}

    def line(self) -> str:
        """What the terminal says."""
        if self.change is None:
            return f"{self.after} and {self.before} have no query in common"
        found = self.change
        return (
            f"{self.after} against {self.before}: mAP {found.difference:+.4f} on {len(self.judged)} queries of "
            f"{found.objects} objects, {found.told()}, p {found.p_value:.4f}"
        )


def compared(before: str, one: pa.Table, after: str, other: pa.Table) -> Comparison:
    """Compares two tables as `per_query.parquet` has them; `before` and `after` are what the runs are called.

    The labels are those of the run `after`. Queries of one label show one object; one without is an object by itself.
    """
    aps = one.select(["query_id", "ap"])
    joined = aps.join(other.select(COLUMNS), "query_id", join_type="inner", right_suffix="_other")
    joined = joined.select([*COLUMNS, "ap_other"])
    joined = joined.append_column("difference", pc.subtract(joined["ap_other"], joined["ap"]))
    joined = joined.sort_by([("difference", "descending"), ("query_id", "ascending")])
    both = Comparison(before, after, joined, None)
    if not both.judged:
        return both
    ap, ap_other = (np.array([row[column] for row in both.judged]) for column in ("ap", "ap_other"))
    return replace(both, change=significance.paired(ap, ap_other, _objects(both.judged)))


def _objects(rows: list[dict[str, Any]]) -> np.ndarray:
    known = [("query", row["query_id"]) if row["label"] is None else ("label", row["label"]) for row in rows]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(known))}
    return np.array([numbers[name] for name in known])


def require_own(metrics: str) -> None:
    """Raises UserError where the metrics.json at `metrics`, or the per_query.parquet beside it, is not that of the
    evaluation whose folder they lie in, or this was never finished. One that was copied elsewhere is taken as it is.
    """
    folder = files.parent(metrics)
    record = output.record_of(folder)
    if record is not None and record["job"] == "evaluate" and files.name(metrics) == METRICS:
        output.finished_record(folder)
        sealed = seal.from_record(record, folder) or {}
        for name in (METRICS, PER_QUERY):
            uri = files.join(folder, name)
            if name in sealed and files.exists(uri):
                seal.require_content(uri, sealed[name], "evaluate")


def beside(metrics: str) -> pa.Table | None:
    """The per_query.parquet that belongs to the metrics.json at `metrics`; None where there is none.

    Raises UserError where it is not that of an evaluation.
    """
    uri = files.join(files.parent(metrics), PER_QUERY)
    if files.name(metrics) != METRICS or not files.exists(uri):
        return None
    table = tables.read(uri)
    if missing := {*COLUMNS} - {*table.column_names}:
        raise UserError(f"{uri!r} has no column {min(missing)!r}; name the metrics.json of an evaluation by --baseline")
    return table


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
        return compared(self.uri, self.per_query, name, per_query)

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
    require_own(uri)
    found = files.read_json(uri)
    value: Any = found.get("map") if isinstance(found, dict) else None
    if type(value) not in (int, float) or not 0 <= value <= 1:  # no NaN either, below which nothing can fall
        raise UserError(
            f"{uri!r} holds no map from 0 to 1, but {quoted(value)}; name the metrics.json of an evaluation"
        )
    if found.get("protocol") != protocol:
        raise UserError(f"{uri!r} is of protocol {found.get('protocol')!r}, not {protocol!r}")
    return Baseline(uri, found, beside(uri))
