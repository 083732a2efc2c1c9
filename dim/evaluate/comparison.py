"""Compares two evaluations query by query, and checks whether mAP fell too far below that of an earlier evaluation.

`compare` joins two per_query.parquet tables and tests the change in mAP. `read_baseline` reads an earlier evaluation, a
`Baseline`. `Baseline.compare` compares a new evaluation with it, and `Baseline.gate_failure` applies --max-drop.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.app import output_folder
from dim.errors import UserError, quoted
from dim.evaluate import significance
from dim.evaluate.significance import MeanDifference
from dim.evaluate.task import RetrievalTask
from dim.io import files, seal, tables

COLUMNS = ["query_id", "label", "ap"]
METRICS, PER_QUERY = "metrics.json", "per_query.parquet"
_DATABASE = ("n_database", "database_split")
_SAME = ("n_queries", "query_split", *_DATABASE)  # figures are comparable only if these are equal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """The run `after` compared with the run `before`.

    `table` has one row per query that both runs have, largest gain first. The columns are query_id, label, ap (before),
    ap_other (after) and difference. `change` is the change in mAP, None if no query has an AP in both runs.
    """

    before: str
    after: str
    table: pa.Table
    change: MeanDifference | None

    @property
    def judged(self) -> list[dict[str, Any]]:
        """The rows of the queries that have an AP in both runs."""
        return list(self.table.filter(pc.is_valid(self.table["difference"])).to_pylist())

    def as_json(self) -> dict[str, Any] | None:
        """The change in mAP as written to metrics.json."""
        return None if self.change is None else {"before": self.before, "after": self.after, **vars(self.change)}

    def line(self) -> str:
        """The log line of the comparison."""
        if self.change is None:
            return f"{self.after} and {self.before} have no query in common"
        change = self.change
        return (
            f"{self.after} against {self.before}: mAP {change.difference:+.4f} on {len(self.judged)} queries of "
            f"{change.objects} objects, {change.interval_in_words()}, p {change.p_value:.4f}"
        )


def compare(before: str, one: pa.Table, after: str, other: pa.Table) -> Comparison:
    """Compares two runs, named `before` and `after`. `one` and `other` are their tables per_query.parquet.

    Labels are taken from `other`. Queries with the same label are taken to show the same object. A query without a
    label is taken to show an object that no other query shows.
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
    return replace(both, change=significance.paired_test(ap, ap_other, _objects(both.judged)))


def _objects(rows: list[dict[str, Any]]) -> np.ndarray:
    """The number of the object that each query shows."""
    names = [("query", row["query_id"]) if row["label"] is None else ("label", row["label"]) for row in rows]
    numbers: dict[tuple[str, str], int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])


@dataclass(frozen=True)
class Baseline:
    """An earlier evaluation."""

    uri: str  # path or URI of metrics.json
    metrics: dict[str, Any]  # the contents of metrics.json
    per_query: pa.Table | None  # the contents of per_query.parquet, None if there is none

    def require_common_queries(self, task: RetrievalTask) -> None:
        """Raises UserError if `task` measures none of the baseline's queries."""
        if self.per_query is None:
            return
        measured = self.per_query.filter(self.per_query["ap"].is_valid())["query_id"].cast(pa.string())
        common = pc.is_in(task.queries.table["image_id"], measured.combine_chunks()).to_numpy()
        if not (common & task.has_positive).any():
            raise UserError(
                f"{self.uri!r} and {task.queries.uri!r} have no query in common; name a baseline of the same queries"
            )

    def compare(self, name: str, per_query: pa.Table, metrics: dict[str, Any]) -> Comparison | None:
        """Compares the run `name` with this baseline, and warns if queries or database differ.

        `per_query` and `metrics` are what the run writes to per_query.parquet and metrics.json. Returns None if the
        baseline has no per_query.parquet.
        """
        own = {key: self.metrics.get(key, metrics[key]) for key in _SAME}
        if differing := [
            f"{key} {quoted(own[key])}, not {metrics[key]!r}" for key in _SAME if own[key] != metrics[key]
        ]:
            on = "all its queries" if self.per_query is None else "the queries in common"
            advice = f"mAP is compared on {on}"
            if any(own[key] != metrics[key] for key in _DATABASE):
                advice += (
                    ". AP depends on the photos searched, whatever the network: to compare two networks on the same "
                    "photos, name the descriptors of both runs by --descriptors"
                )
            log.warning("%s is another evaluation: %s; %s", self.uri, "; ".join(differing), advice)
        if self.per_query is None:
            return None
        return compare(self.uri, self.per_query, name, per_query)

    def gate_failure(self, value: float, comparison: Comparison | None, max_drop: float) -> str | None:
        """Why a run with the mAP `value` fails the gate, None if it passes. `comparison` is what `compare` returned."""
        if comparison is None:
            before = self.metrics["map"]
            fall, reason = before - value, f"mAP {value:.4f} is {{:.4f}} below the {before:.4f} of {self.uri!r}"
        elif comparison.change is None:
            return f"no query in common with {self.uri!r} could be read"
        else:
            fall = -comparison.change.difference
            reason = f"mAP is {{:.4f}} lower on the {len(comparison.judged)} queries in common with {self.uri!r}"
        return f"{reason.format(fall)}, which is more than --max-drop {max_drop}" if fall > max_drop else None


def read_baseline(uri: str, protocol: str) -> Baseline:
    """Reads an earlier evaluation from its metrics.json.

    Raises UserError if the file holds no mAP or names another protocol, or if the evaluation is unfinished or changed.
    """
    require_unchanged(uri)
    found = files.read_json(uri)
    value: Any = found.get("map") if isinstance(found, dict) else None
    if type(value) not in (int, float) or not 0 <= value <= 1:  # no NaN: no mAP is below NaN, so any run would pass
        raise UserError(
            f"{uri!r} holds no map from 0 to 1, but {quoted(value)}; name the metrics.json of an evaluation"
        )
    if found.get("protocol") != protocol:
        raise UserError(f"{uri!r} is of protocol {found.get('protocol')!r}, not {protocol!r}; name another")
    return Baseline(uri, found, read_per_query(uri))


def require_unchanged(metrics: str) -> None:
    """Checks the metrics.json at `metrics` and the per_query.parquet beside it, if they are in an evaluation's folder.

    Raises UserError if the evaluation is unfinished, or either file has changed since. Copies elsewhere aren't checked.
    """
    folder = files.parent(metrics)
    record = output_folder.record_of(folder)
    if record is not None and record["job"] == "evaluate" and files.name(metrics) == METRICS:
        output_folder.finished_record(folder)
        sealed = seal.from_record(record, folder) or {}
        for name in (METRICS, PER_QUERY):
            uri = files.join(folder, name)
            if name in sealed and files.exists(uri):
                seal.require_content(uri, sealed[name], "evaluate")


def read_per_query(metrics: str) -> pa.Table | None:
    """Reads the per_query.parquet beside the metrics.json at `metrics`. Returns None if there is none.

    Raises UserError if the table lacks a column.
    """
    uri = files.join(files.parent(metrics), PER_QUERY)
    if files.name(metrics) != METRICS or not files.exists(uri):
        return None
    table = tables.read(uri)
    if missing := {*COLUMNS} - {*table.column_names}:
        raise UserError(f"{uri!r} has no column {min(missing)!r}; name the metrics.json of an evaluation by --baseline")
    return table
