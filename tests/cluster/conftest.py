"""A Ray cluster of three hosts, started by `ray up`, an S3 server on its head. Behind `--cluster`, as it takes long."""

import pytest

from cluster import hosts, ray_cluster


def pytest_addoption(parser):
    parser.addoption("--cluster", action="store_true", help="run jobs on a cluster of network namespaces (root)")


@pytest.fixture(scope="session")
def needs_hosts():
    """Skips where this machine can't make hosts."""
    if lacking := hosts.missing():
        pytest.skip(f"needs {lacking}")


@pytest.fixture(scope="module")
def cluster(request, demo):
    """The cluster, up; afterwards it is taken down."""
    if not request.config.getoption("--cluster", False):
        pytest.skip("takes a quarter of an hour: pytest tests/cluster --cluster")
    request.getfixturevalue("needs_hosts")
    with ray_cluster.running(demo) as made:
        yield made
