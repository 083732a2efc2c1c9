"""Measure the network on tonight's photos, and refuse the night if it is worse than the last accepted one.

    python jobs/nightly.py --config cluster/nightly.yaml
    ray job submit --working-dir . -- python jobs/nightly.py --config cluster/nightly.yaml

The job extracts new and changed photos, updates the index and evaluates. If the network is not the last accepted one,
a kept copy of the accepted network measures tonight's photos, too. A randomisation test then compares the two query by
query; it keeps all queries of an object together. A night that meets its gates becomes the new baseline. Any other
night ends with exit status 3, and the baseline stays.

    history.csv       one row per night and evaluation; trend.html plots them
    metrics.prom      the latest figures, for Prometheus
    nights/DATE/NAME/ metrics, queries and report of an evaluation

A date is run once; run it again with --accept to make a refused night the baseline. cluster/nightly.yaml is an example
of the file. For Kubernetes, see cluster/kubernetes/. For cron, write this on one line, after a line CRON_TZ=UTC:

    0 2 * * *  RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 /srv/dim/.venv/bin/ray job submit
        --working-dir /srv/dim -- python jobs/nightly.py --config cluster/nightly.yaml
"""

from typing import Any, NoReturn

from dim.app import cli
from dim.nightly.config import NightlyConfig


def run(config: NightlyConfig) -> dict[str, Any]:
    from dim.nightly.job import nightly

    return nightly(config)


def main() -> NoReturn:
    cli.main(run, NightlyConfig, __doc__)
