"""The history of all nights: `history.csv`, a row for each night and evaluation, also for nights that were missed.

The last night's figures as a file in Prometheus's text format, `metrics.prom` in the folder of the nights.

A night is over long before anybody looks, and Ray's own metrics end with the process that set them. The file stays: let
node_exporter read it (`--collector.textfile.directory`), or put it to a Pushgateway, from an object store, too:

    aws s3 cp s3://bucket/nightly/metrics.prom - | curl --data-binary @- http://localhost:9091/metrics/job/dim

`dim_night_map`, `dim_night_difference` (against the network of the last accepted night), `dim_night_images`,
`dim_night_accepted` (1 or 0) and `dim_night_seconds` (when the night's date began, UTC, in seconds since 1970), each by
`evaluation`. What has no value is left out.
"""

import dataclasses
import datetime
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from dim.errors import UserError
from dim.io import csv_files, files, tables

FILE = "history.csv"
ACCEPTED, REFUSED, MISSED = "accepted", "refused", "missed"
MOST_MISSED = 366  # nights that are listed as missed at once: one wrong date would make a row of each since the year 1


@dataclass(frozen=True)
class NightRow:
    """A night's figure. `difference` is its mAP less that of the network of the night `baseline` on the same photos;
    `low` and `high` bound its 95 % interval, and `p_value` is two-sided. `images`, `computed` and `errors` are counts
    of the whole manifest; `reason` says why it was refused.
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
    """The rows in the folder `out`, by date; written whole. Raises UserError where they are no history."""

    def __init__(self, out: str) -> None:
        self._uri, self._nights = files.join(out, FILE), files.join(out, "nights")
        self._rows: list[dict[str, Any]] = []
        if files.exists(self._uri):
            self._rows = _checked(self._uri, tables.read(self._uri))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows by date, their values as text."""
        return list(self._rows)

    @property
    def last(self) -> str | None:
        """The date of the last night."""
        return max((row["date"] for row in self._rows), default=None)

    def before(self, date: str) -> str | None:
        """The date of the last night before `date` that was run."""
        run = (row["date"] for row in self._rows if row["date"] < date and row["status"] != MISSED)
        return max(run, default=None)

    def baseline(self, evaluation: str, date: str) -> dict[str, Any] | None:
        """The row of the last night before `date` in which `evaluation` was accepted, its values as text."""
        accepted = (
            row
            for row in self._rows
            if row["evaluation"] == evaluation and row["status"] == ACCEPTED and row["date"] < date
        )
        return max(accepted, key=lambda row: str(row["date"]), default=None)

    def require_next(self, date: str) -> None:
        """Raises UserError where `date` is before the last night: it would be compared with nights that came later."""
        if self.last is None or date >= self.last:
            return
        today = datetime.datetime.now(datetime.UTC).date()
        if datetime.date.fromisoformat(self.last) > latest(today):
            raise UserError(
                f"{self._uri!r} has the night {self.last}, which is yet to come, so that none can follow it; delete "
                f"its rows after {today}, and the folders of these dates in {self._nights!r}"
            )
        raise UserError(f"--date {date} is before {self.last}, the last night of {self._uri!r}; use a later one")

    def put(self, date: str, rows: Iterable[NightRow]) -> None:
        """Writes the rows of the night `date` in place of any that it had, and those of the last nights missed."""
        new = [{name: _text(value) for name, value in dataclasses.asdict(row).items()} for row in rows]
        before = max((row["date"] for row in self._rows if row["date"] < date), default=None)
        for missed in _between(before, date) if before else ():
            new += [
                dataclasses.asdict(NightRow(missed, str(row["evaluation"]), MISSED))
                for row in new
                if row["date"] == date
            ]
        self._rows = [row for row in self._rows if row["date"] != date] + new
        self._rows.sort(key=lambda row: (str(row["date"]), str(row["evaluation"])))
        columns = {field.name: [row.get(field.name) for row in self._rows] for field in dataclasses.fields(NightRow)}
        csv_files.write_escaped(
            self._uri, pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()})
        )


def _checked(uri: str, table: pa.Table) -> list[dict[str, Any]]:
    if missing := [field.name for field in dataclasses.fields(NightRow) if field.name not in table.column_names]:
        raise UserError(f"{uri!r} is no history of nights: it has no column {missing[0]!r}; move it away or mend it")
    rows = [{name: csv_files.unescaped(cell) for name, cell in row.items()} for row in table.to_pylist()]
    for number, row in enumerate(rows, start=1):
        if not _is_date(row["date"]) or not row["evaluation"] or not row["status"]:
            raise UserError(
                f"{uri!r}: row {number} has date {row['date']!r}, evaluation {row['evaluation']!r} and status "
                f"{row['status']!r}; mend or delete it"
            )
    return rows


def latest(today: datetime.date) -> datetime.date:
    """The last date that it is anywhere on Earth while it is `today` in UTC."""
    return today + datetime.timedelta(days=1)


def number(row: dict[str, Any], name: str) -> float | None:
    """The number in the column `name` of a row, None where there is none."""
    try:
        value = float(row[name])
    except (TypeError, ValueError):  # empty, or mended by hand
        return None
    return value if math.isfinite(value) else None


def _is_date(text: str | None) -> bool:
    try:
        return datetime.date.fromisoformat(text or "").isoformat() == text  # dates are put in order as text
    except ValueError:
        return False


def _between(first: str, last: str) -> list[str]:
    """The dates between two, the last MOST_MISSED of them."""
    start, end = datetime.date.fromisoformat(first), datetime.date.fromisoformat(last)
    gap = (end - start).days
    return [(start + datetime.timedelta(days)).isoformat() for days in range(max(1, gap - MOST_MISSED), gap)]


def _text(value: object) -> str | None:
    return None if value is None else str(value)


METRICS_FILE = "metrics.prom"


def write(out: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the figures of the last night of `rows`, a history's, by evaluation."""
    last = {str(row["evaluation"]): row for row in rows if row["date"] == rows[-1]["date"]}
    registry = CollectorRegistry()
    for name, told, value in (
        ("map", "Mean average precision", _column("map")),
        ("difference", "mAP less that of the last accepted network, on the same photos", _column("difference")),
        ("images", "Photos in the manifest", _column("images")),
        ("accepted", "Whether the night was accepted", _accepted),
        ("seconds", "When the night's date began", _began),
    ):
        gauge = Gauge(f"dim_night_{name}", told, ["evaluation"], registry=registry)
        for evaluation, row in last.items():
            if (known := value(row)) is not None:
                gauge.labels(evaluation).set(known)
    files.write_bytes(files.join(out, METRICS_FILE), generate_latest(registry))


def _column(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda row: number(row, name)


def _accepted(row: dict[str, Any]) -> float:
    return float(row["status"] == ACCEPTED)


def _began(row: dict[str, Any]) -> float:
    return datetime.datetime.fromisoformat(row["date"]).replace(tzinfo=datetime.UTC).timestamp()
