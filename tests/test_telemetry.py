"""What a job counts reaches Prometheus: Ray's exporter, asked as Prometheus asks it."""

import time
import urllib.request

from dim.progress import Progress


def exported(ray):
    address = ray.nodes()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{address['MetricsExportPort']}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.partition("{")[0]: line for line in lines if 'stage="a test"' in line}


def test_photos_errors_and_what_is_left_are_exported(ray_session):
    import ray

    progress = Progress("a test", 10, errors=True)
    progress.add(3, errors=1)
    progress.add(2)
    end = time.monotonic() + 60
    while not (found := exported(ray)) and time.monotonic() < end:
        time.sleep(1)
    assert {name: float(line.rpartition(" ")[2]) for name, line in found.items()} == {
        "ray_dim_done_total": 5,
        "ray_dim_errors_total": 1,
        "ray_dim_waiting": 5,
    }
