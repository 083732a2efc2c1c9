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


def reserved():
    return [ray.get_runtime_context().get_assigned_resources().get("CPU", 0)]


@pytest.mark.parametrize(("beside", "cpus", "expected"), [(False, None, 1), (False, 2, 2), (True, 2, 0.01)])
def test_a_task_reserves_cpus_so_that_none_goes_to_a_node_without(ray_session, beside, cpus, expected):
    remote = Remote(beside=beside)
    assert remote.node_cpus == 2
    assert remote.get(remote.call(reserved, cpus=cpus)[0]) == expected


def ended_after(seconds, path):
    time.sleep(seconds)
    path.touch()
    return [None]


def test_an_error_cancels_the_calls_that_have_not_begun(ray_session, tmp_path):
    with pytest.raises(KeyboardInterrupt), Remote(8) as remote:
        for number in range(8):
            remote.call(ended_after, 0.5, tmp_path / f"{number}")
        raise KeyboardInterrupt
    ray.get(ray.remote(num_cpus=2)(reserved).remote())  # the CPUs are free again
    assert len(list(tmp_path.iterdir())) < 8
