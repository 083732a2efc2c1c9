"""A training waits for room for all of its workers where nodes may still come, and says so."""

import logging
import threading
from collections import Counter

import pytest
import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

from dim.app.worker_placement import Node
from dim.train import failures


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
        monkeypatch.setattr(
            failures.cluster, "autoscaled_nodes", lambda: [({"CPU": 1.0, "GPU": 0.0}, 1)] if growing else []
        )
        with caplog.at_level(logging.INFO, "dim"):
            failures.wait_for_room(workers, each)
        return caplog.messages

    return said


def test_where_there_is_room_nothing_is_said(ray_session, wait):
    assert wait(2, {"CPU": 1}, growing=True) == []


def test_room_that_comes_is_waited_for(holder, wait):
    threading.Timer(3, lambda: ray.kill(holder)).start()
    (line,) = wait(2, {"CPU": 1}, growing=True)
    assert line == "waiting up to 600 s for room for all workers; then as many start as the nodes hold"


def test_nodes_that_do_not_come_are_done_without(ray_session, wait, monkeypatch):
    monkeypatch.setattr(failures, "PATIENCE", 1.0)
    assert len(wait(3, {"CPU": 1}, growing=True)) == 1
    assert wait(3, {"CPU": 1}) == []  # nobody starts a node


def test_one_worker_is_waited_for_as_long_as_it_takes(holder, wait):
    threading.Timer(3, lambda: ray.kill(holder)).start()
    assert wait(2, {"CPU": 2}) == ["waiting for room for 1 training worker"]


def test_what_another_job_uses_is_waited_for_as_ray_train_would_try_it(monkeypatch, wait):
    free, asked = iter([1, 1, 1, 2]), []

    def found(workers, each, seconds):
        asked.append(workers)
        return workers <= next(free)

    monkeypatch.setattr(failures, "_has_room", found)
    monkeypatch.setattr(
        failures.worker_placement, "live_nodes", lambda: Counter({Node(8.0, 0.0): 2, Node(0.0, 4.0): 1})
    )
    assert wait(3, {"CPU": 7.0}) == ["waiting for room for 2 training workers; fewer --workers need less"]
    assert asked == [3, 2, 2, 2]


def tried(workers, each, nodes):
    """How many of so many workers Ray Train tries to start on nodes of these resources."""
    coordinator = _AutoscalingCoordinatorActor(
        send_resources_request=lambda *_, **__: None,
        get_cluster_nodes=lambda: [
            {"NodeID": str(number), "Alive": True, "Labels": {}, "Resources": node} for number, node in enumerate(nodes)
        ],
    )
    coordinator.request_resources("train", [each] * workers, 100)
    scaling = ScalingConfig(num_workers=(1, workers), resources_per_worker=each, use_gpu="GPU" in each)
    return ElasticScalingPolicy(scaling)._count_possible_workers(coordinator.get_reserved_resources("train"))


def test_ray_train_tries_as_many_workers_as_the_nodes_hold_whoever_uses_them(monkeypatch):
    monkeypatch.setattr(failures.worker_placement, "live_nodes", lambda: Counter({Node(8.0, 1.0): 2}))
    each = {"CPU": 3.0, "GPU": 1.0}
    assert failures._asked_for(5, each) == tried(5, each, [{"CPU": 8.0, "GPU": 1.0}] * 2) == 2


@pytest.mark.parametrize("cpus", [1.0, 2.0, 3.0])
def test_ray_train_tries_all_workers_however_small_their_share(monkeypatch, cpus):
    monkeypatch.setattr(failures.worker_placement, "known_nodes", lambda: Counter({Node(cpus, 0.0): 2}))
    for workers in range(2, 13):
        each = {
            "CPU": failures.rounded_cpus(
                failures.worker_placement.worker_cpus(failures.worker_placement.cpu_share(workers, 0), 0)
            )
        }
        assert tried(workers, each, [{"CPU": cpus}] * 2) == workers
