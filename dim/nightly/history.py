"""The history of all nights, history.csv, and the last night's figures for Prometheus, metrics.prom.

`NightlyHistory` reads and writes history.csv, which has one row per evaluation and night. Missed nights have rows,
too. `write_metrics_file` writes metrics.prom in Prometheus's text format. Unlike Ray's metrics, this file remains
after the job. Let node_exporter read it (`--collector.textfile.directory`), or send it to a Pushgateway:

    aws s3 cp s3://bucket/nightly/metrics.prom - | curl --data-binary @- http://localhost:9091/metrics/job/dim

The metrics in metrics.prom have the label `evaluation`. They are `dim_night_map`, `dim_night_difference` (mAP minus
that of the last accepted network), `dim_night_images`, `dim_night_accepted` (1 or 0) and `dim_night_seconds` (start of
the night's date in UTC, in seconds since 1970). A metric without a value is left out.
"""

import dataclasses
import datetime
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from dim.errors import UserError
from dim.io import csv_files, files, tables

FILE, METRICS_FILE = "history.csv", "metrics.prom"
ACCEPTED, REFUSED, MISSED = "accepted", "refused", "missed"
MOST_MISSED = 366  # most missed nights added at once; else one wrong date could add a row per day since year 1


@dataclass(frozen=True)
class NightRow:
    """A row of history.csv: the result of one evaluation in one night.

    `difference` is the night's mAP minus the mAP that the network of the night `baseline` has on the same photos. `low`
    and `high` bound the 95 % interval of `difference`; `p_value` is two-sided. `images`, `computed` and `errors` count
    photos of the whole manifest. `reason` says why the night was refused.
    """

    date: str
    evaluation: str
    status: str
    map: float | None = None
    queries: int | None = None
    baseline: str | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    images: int | None = None
    computed: int | None = None
    errors: int | None = None
    model: str | None = None
    embedding: str | None = None
    collection: str | None = None
    reason: str | None = None


class NightlyHistory:
    """The history.csv of a folder. `rows` are the rows of the file, in order of date. Each value is text or None."""

    def __init__(self, out: str) -> None:
        """Reads history.csv in the folder `out`, if it exists. Raises UserError if it is not a history of nights."""
        self._uri, self._nights = files.join(out, FILE), files.join(out, "nights")
        self.rows: list[dict[str, Any]] = []
        if files.exists(self._uri):
            self.rows = _checked(self._uri, tables.read(self._uri))

    @property
    def last(self) -> str | None:
        """The date of the last night, None if there is none."""
        return max((row["date"] for row in self.rows), default=None)

    def before(self, date: str) -> str | None:
        """The date of the last night that was run before `date`, None if there is none."""
        run = (row["date"] for row in self.rows if row["date"] < date and row["status"] != MISSED)
        return max(run, default=None)

    def baseline(self, evaluation: str, date: str) -> dict[str, Any] | None:
        """The row of the last night before `date` in which `evaluation` was accepted, None if there is none."""
        accepted = (
            row
            for row in self.rows
            if row["evaluation"] == evaluation and row["status"] == ACCEPTED and row["date"] < date
        )
        return max(accepted, key=lambda row: str(row["date"]), default=None)

    def require_next(self, date: str) -> None:
        """Raises UserError if the history has a later night, since that night was compared without `date`."""
        if self.last is None or date >= self.last:
            return
        today = datetime.datetime.now(datetime.UTC).date()
        if datetime.date.fromisoformat(self.last) > latest(today):
            raise UserError(
                f"{self._uri!r} has the night {self.last}, which is in the future, so no night can follow it; delete "
                f"its rows after {today}, and the folders of these dates in {self._nights!r}"
            )
        raise UserError(f"--date {date} is before {self.last}, the last night of {self._uri!r}; use a later one")

    def put(self, date: str, rows: Iterable[NightRow]) -> None:
        """Writes `rows` in place of all rows of the night `date`, and adds rows for the nights missed before `date`."""
        columns = [field.name for field in dataclasses.fields(NightRow)]
        new = [{name: None if (cell := getattr(row, name)) is None else str(cell) for name in columns} for row in rows]
        before = max((row["date"] for row in self.rows if row["date"] < date), default=None)
        evaluations = [str(row["evaluation"]) for row in new]
        for missed in _between(before, date) if before else ():
            new += [dataclasses.asdict(NightRow(missed, name, MISSED)) for name in evaluations]
        self.rows = [row for row in self.rows if row["date"] != date] + new
        self.rows.sort(key=lambda row: (str(row["date"]), str(row["evaluation"])))
        cells = {name: pa.array([row.get(name) for row in self.rows], pa.string()) for name in columns}
        csv_files.write_escaped(self._uri, pa.table(cells))


def _checked(uri: str, table: pa.Table) -> list[dict[str, Any]]:
    if missing := [field.name for field in dataclasses.fields(NightRow) if field.name not in table.column_names]:
        raise UserError(f"{uri!r} is not a history of nights: it has no column {missing[0]!r}; move or repair it")
    rows = [{name: csv_files.unescaped(cell) for name, cell in row.items()} for row in table.to_pylist()]
    for number, row in enumerate(rows, start=1):
        if not _is_date(row["date"]) or not row["evaluation"] or not row["status"]:
            raise UserError(
                f"{uri!r}: row {number} has date {row['date']!r}, evaluation {row['evaluation']!r} and status "
                f"{row['status']!r}; correct or delete it"
            )
    return rows


def latest(today: datetime.date) -> datetime.date:
    """The latest date that any time zone can have while the date in UTC is `today`."""
    return today + datetime.timedelta(days=1)


def number(row: dict[str, Any], name: str) -> float | None:
    """The number in the column `name` of `row`, None if the cell has no finite number."""
    try:
        value = float(row[name])
    except (TypeError, ValueError):  # empty, or edited by hand
        return None
    return value if math.isfinite(value) else None


def _is_date(text: str | None) -> bool:
    try:
        return datetime.date.fromisoformat(text or "").isoformat() == text  # dates are sorted as text
    except ValueError:
        return False


def _between(first: str, last: str) -> list[str]:
    """The dates after `first` and before `last`. If there are more than MOST_MISSED, only the last are returned."""
    start, end = datetime.date.fromisoformat(first), datetime.date.fromisoformat(last)
    gap = (end - start).days
    return [(start + datetime.timedelta(days)).isoformat() for days in range(max(1, gap - MOST_MISSED), gap)]


_GAUGES = {
    "map": "Mean average precision",
    "difference": "mAP less that of the last accepted network, on the same photos",
    "images": "Photos in the manifest",
    "accepted": "Whether the night was accepted",
    "seconds": "When the night's date began",
}


def write_metrics_file(out: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes metrics.prom to the folder `out`. `rows` are all rows of the history in that folder."""
    registry = CollectorRegistry()
    gauges = {
        name: Gauge(f"dim_night_{name}", text, ["evaluation"], registry=registry) for name, text in _GAUGES.items()
    }
    began = datetime.datetime.fromisoformat(rows[-1]["date"]).replace(tzinfo=datetime.UTC).timestamp()
    for row in rows:
        if row["date"] == rows[-1]["date"]:
            values = {name: number(row, name) for name in ("map", "difference", "images")}
            values |= {"accepted": float(row["status"] == ACCEPTED), "seconds": began}
            for name, value in values.items():
                if value is not None:
                    gauges[name].labels(str(row["evaluation"])).set(value)
    files.write_bytes(files.join(out, METRICS_FILE), generate_latest(registry))
