"""A Ray cluster of three hosts, started by `ray up`, an S3 server on its head. Its tests are slow."""

import pytest

from cluster import hosts, ray_cluster


@pytest.fixture(scope="session")
def needs_hosts():
    """Skips where this machine can't make hosts."""
    if lacking := hosts.missing():
        pytest.skip(f"needs {lacking}")


@pytest.fixture(scope="module")
def cluster(needs_hosts, demo):
    """The cluster, up; afterwards it is taken down."""
    with ray_cluster.running(demo) as made:
        yield made
