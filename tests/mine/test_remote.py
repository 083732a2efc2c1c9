"""Calls as Ray tasks: how many run at a time, what they reserve, and what the caller gets."""

import time

import pytest
import ray
from ray.exceptions import RayTaskError

from dim.errors import UserError
from dim.mine.remote import Remote, fetched


def doubled(value):
    return value, 2 * value


def summed(values):
    return [sum(fetched(values).values())]


def refused():
    raise UserError("no such row")


def started_and_ended():
    started = time.time()
    time.sleep(0.05)
    return [(started, time.time())]


def test_results_are_passed_on_by_reference(ray_session):
    remote = Remote()
    one, two = remote.call(doubled, remote.put(3), returns=2)
    (total,) = remote.call(summed, {7: one, 9: two})
    assert remote.get(total) == 9


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_calls_run_at_a_time_than_workers(ray_session, workers):
    remote = Remote(workers, beside=True)
    references = [remote.call(started_and_ended)[0] for _ in range(6)]
    remote.wait()
    spans = sorted(map(remote.get, references))
    assert all(earlier[1] <= later[0] for earlier, later in zip(spans, spans[workers:], strict=False))


def test_the_error_of_a_call_is_raised(ray_session):
    remote = Remote(1)
    remote.call(refused)
    with pytest.raises(RayTaskError, match="no such row") as raised:
        remote.wait()
    assert isinstance(raised.value.cause, UserError)


@pytest.mark.parametrize(("beside", "cpus"), [(False, 1), (True, 0.01)])
def test_no_task_may_go_to_a_node_without_cpus(ray_session, monkeypatch, beside, cpus):
    asked = []
    monkeypatch.setattr(ray, "remote", lambda **options: asked.append(options["num_cpus"]) or original(**options))
    Remote(beside=beside).call(doubled, 1, returns=2)
    assert asked == [cpus]


original = ray.remote
