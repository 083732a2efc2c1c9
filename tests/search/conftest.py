"""One thread: on a busy machine, threads that wait for each other spin."""

import pytest
import threadpoolctl


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with threadpoolctl.threadpool_limits(1):
        yield
