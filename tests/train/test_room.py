"""A training waits for room for all of its workers where nodes may still come, and says so."""

import logging
import threading

import pytest
import ray

from dim.train import room


@ray.remote(num_cpus=1)
class Holder:
    """Another job, which holds a CPU."""

    def here(self):
        return True


@pytest.fixture
def holder(ray_session):
    """Holds one of the session's two CPUs."""
    held = Holder.remote()
    assert ray.get(held.here.remote())
    yield held
    ray.kill(held)


@pytest.fixture
def wait(caplog, monkeypatch):
    def said(workers, each, growing=False):
        caplog.clear()
        monkeypatch.setattr(room.cluster, "may_come", lambda: [({"CPU": 1.0, "GPU": 0.0}, 1)] if growing else [])
        with caplog.at_level(logging.INFO, "dim"):
            room.wait(workers, each)
        return caplog.messages

    return said


def test_where_there_is_room_nothing_is_said(ray_session, wait):
    assert wait(2, {"CPU": 1}, growing=True) == []


def test_room_that_comes_is_waited_for(holder, wait):
    threading.Timer(3, lambda: ray.kill(holder)).start()
    (line,) = wait(2, {"CPU": 1}, growing=True)
    assert line == "all of them have 600 s to find room; then those that have found it begin"


def test_room_that_does_not_come_is_done_without(holder, wait, monkeypatch):
    monkeypatch.setattr(room, "PATIENCE", 1.0)
    assert len(wait(2, {"CPU": 1}, growing=True)) == 1
    assert wait(2, {"CPU": 1}) == []  # nobody starts a node


def test_one_worker_is_waited_for_as_long_as_it_takes(holder, wait):
    threading.Timer(3, lambda: ray.kill(holder)).start()
    assert wait(2, {"CPU": 2}) == ["waiting for room for one training worker"]
