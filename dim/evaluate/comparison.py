"""Two evaluations held against each other, query by query."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim import files, output, seal, tables
from dim.errors import UserError
from dim.evaluate import randomization
from dim.evaluate.randomization import Interval

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
    return replace(both, change=randomization.paired(ap, ap_other, _objects(both.judged)))


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
        output.finished(folder)
        sealed = seal.of_record(record, folder) or {}
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
