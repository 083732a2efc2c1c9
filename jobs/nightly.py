#!/usr/bin/env -S python3 -X job
"""Measure the network on the photos as they are tonight, and refuse a night that is worse than the last good one.

    python jobs/nightly.py --config cluster/nightly.yaml
    ray job submit --working-dir . -- python jobs/nightly.py --config cluster/nightly.yaml

Only photos that are new or changed are extracted; then come index and evaluation. Where the network is another than in
the last accepted night, that one, of which a copy is kept, measures tonight's photos, too, and the two are compared
query by query, by a randomisation test that takes an object's queries together. A night that meets its gates becomes
the next baseline; one that doesn't ends in exit status 3 and leaves the baseline as it was. history.csv has a row for
each night and evaluation, trend.html shows them, metrics.prom has the last ones for Prometheus, and nights/DATE/NAME/
the metrics, queries and report. A date that was run already is not run again; --accept takes it for the baseline after
all. cluster/nightly.yaml is an example of the file. On Kubernetes see cluster/kubernetes/. In cron, after a line
CRON_TZ=UTC, on one line:

    0 2 * * *  RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 /srv/dim/.venv/bin/ray job submit
        --working-dir /srv/dim -- python jobs/nightly.py --config cluster/nightly.yaml
"""

from typing import Any

from dim.app.cli import main
from dim.nightly.config import NightlyConfig


def run(config: NightlyConfig) -> dict[str, Any]:
    from dim.nightly.job import nightly

    return nightly(config)


if __name__ == "__main__":
    main(run, NightlyConfig, __doc__)
