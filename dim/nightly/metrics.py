"""The last night's figures as a file in Prometheus's text format, `metrics.prom` in the folder of the nights.

A night is over long before anybody looks, and Ray's own metrics end with the process that set them. The file stays: let
node_exporter read it (`--collector.textfile.directory`), or put it to a Pushgateway, from an object store, too:

    aws s3 cp s3://bucket/nightly/metrics.prom - | curl --data-binary @- http://localhost:9091/metrics/job/dim

`dim_night_map`, `dim_night_difference` (against the network of the last accepted night), `dim_night_images`,
`dim_night_accepted` (1 or 0) and `dim_night_seconds` (when the night's date began, UTC, in seconds since 1970), each by
`evaluation`. What has no value is left out.
"""

import datetime
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from dim import files
from dim.nightly.history import ACCEPTED, number

FILE = "metrics.prom"


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
    files.write_bytes(files.join(out, FILE), generate_latest(registry))


def _column(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda row: number(row, name)


def _accepted(row: dict[str, Any]) -> float:
    return float(row["status"] == ACCEPTED)


def _began(row: dict[str, Any]) -> float:
    return datetime.datetime.fromisoformat(row["date"]).replace(tzinfo=datetime.UTC).timestamp()
