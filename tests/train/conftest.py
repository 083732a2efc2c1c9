"""Fixtures for whole runs."""

import pytest


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A folder for the feature cache, which the runs of a file share."""
    return str(tmp_path_factory.mktemp("scratch"))
