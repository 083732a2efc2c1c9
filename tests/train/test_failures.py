"""Which failures of workers end a training and which are tried again, and what is said of them; without Ray."""

import logging
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.callback_manager import CallbackManager
from ray.train.v2._internal.execution.controller.state import InitializingState, ReschedulingState, RunningState

from dim.errors import JobFailed, UserError
from dim.train import failures, job, loop, worker
from dim.train.failures import TRIES, Failures, Starts, as_dim_error, description


def died(**options):
    """A worker's death as Ray Train reports it."""
    return WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: …", ActorDiedError(**options))


def preempted(actor="a"):
    death = died()
    death.health_check_failure.actor_id = actor
    death.health_check_failure._preempted = True
    assert death.health_check_failure.preempted
    return death


def on(node, error):
    error.add_note(f"on {node}")
    return pickle.loads(pickle.dumps(error))  # it comes from another process


@pytest.fixture
def fail(monkeypatch, caplog):
    """Tells the callback of a run of so many workers of failures by rank, one after another; returns what it said."""
    monkeypatch.setattr(failures, "log_to", lambda *_: None)

    def told(*moments, workers=2):
        callback, context = Failures(None), SimpleNamespace(scaling_config=SimpleNamespace(max_workers=workers))
        with caplog.at_level(logging.INFO, "dim"):
            for moment in moments:
                callback.after_exception(context, moment)
        return caplog.messages

    return told


@pytest.mark.parametrize("error", [UserError("a wrong label"), JobFailed("a full disk")])
def test_a_fault_that_another_try_would_meet_ends_the_run_at_once(fail, caplog, error):
    with pytest.raises(type(error)) as raised:
        fail({0: RuntimeError("collateral"), 1: on("node-b", error)})
    assert str(raised.value) == str(error)
    assert caplog.messages == ["training worker 1 on node-b ends the training"]


def test_a_worker_that_is_alone_needs_no_name(fail, caplog):
    with pytest.raises(JobFailed):
        fail({0: JobFailed("a full disk")}, workers=1)
    assert caplog.messages == []


def test_other_failures_are_tried_again_and_said_each_time_but_the_last(fail):
    said = fail(*[{1: on("node-b", RuntimeError("no\nluck"))}] * TRIES)
    assert said == ["training worker 1 on node-b failed: no luck; the workers start again from the last checkpoint"] * (
        TRIES - 1
    )


def test_a_node_that_the_cloud_takes_back_costs_no_try(fail):
    assert len(fail(*[{1: preempted(actor)} for actor in range(9)], {0: died()})) == 10


def test_a_node_that_the_cloud_takes_back_is_told_once_of_each_worker(fail):
    assert len(fail(*[{1: preempted("a")}] * 3, *[{0: preempted("b"), 1: preempted("a")}] * 3)) == 2


def test_why_workers_do_not_start_again_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(failures, "log_to", lambda *_: None)
    full, lost = WorkerGroupStartupTimeoutError(2), WorkerGroupStartupFailedError("a worker\ndied")
    told = CallbackManager([pickle.loads(pickle.dumps(Starts(None)))])
    with caplog.at_level(logging.INFO, "dim"):
        for error in (full, full, lost, full, None, full):
            state = RunningState() if error is None else ReschedulingState(ControllerError(error))
            told.invoke("after_controller_state_update", None, state)
    room = "waiting for room for 2 training workers; fewer --workers need less"
    failed = "the training workers could not start: a worker died; they are started again"
    assert caplog.messages == [room, failed, room, room]


def test_workers_for_which_ray_train_sees_no_room_are_said_to_wait(monkeypatch, caplog):
    clock = iter(range(0, 100, 10))
    monkeypatch.setattr(failures, "log_to", lambda *_: None)
    monkeypatch.setattr(failures, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    told, state = Starts(None), InitializingState()
    with caplog.at_level(logging.INFO, "dim"):
        told.after_controller_state_update(None, state)  # at 0 and 10 seconds
        told.after_controller_state_update(state, state)
        told.after_controller_state_update(state, state)
        assert caplog.messages == []
        told.after_controller_state_update(state, state)
        told.after_controller_state_update(state, state)
    assert caplog.messages == ["waiting for room for 1 training worker"]


def test_a_death_is_named_before_what_follows_from_it():
    said = description({0: RuntimeError("Connection reset by peer"), 1: died()})
    assert said == "training worker 1 died, most likely because its node is lost or out of memory"
    assert description({0: ActorUnavailableError("gone", b"0" * 16)}).startswith("training worker 0 died")


GRAPH = """Graph execution error:

Detected at node vgg16/block5_conv1/Conv2D defined at (most recent call last):
  File "worker.py", line 8, in <module>
    loop.run(job)
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"{GRAPH}\nOOM when allocating tensor with shape[32,512] on GPU:0\n\t [[{{{{node Conv2D}}}}]]\nHint: If …\n"
            " [Op:__inference_step_7]",
            "OOM when allocating tensor with shape[32,512] on GPU:0",
        ),
        (
            f"{GRAPH}Node: 'Conv2D'\n2 root error(s) found.\n  (0) INTERNAL:  Collective ops is aborted by: reset\n"
            "The error could be from a previous operation.\n  (1) CANCELLED: …",
            "(0) INTERNAL: Collective ops is aborted by: reset",
        ),
        ("Graph execution error:\n\nDetected at node a\n<stack traces unavailable>\nlost [Op:__inference_a_1]", "lost"),
        ("Graph execution error:", "Graph execution error:"),
    ],
)
def test_of_what_tensorflow_says_the_sentence_that_tells_is_told(text, said):
    error = tf.errors.InternalError(None, None, text)
    assert description({0: error}) == f"training worker 0 failed: {said}"


@pytest.mark.parametrize("error", [UserError("a wrong label"), JobFailed("a full disk")])
def test_what_ended_the_run_comes_out_as_it_was_raised(error):
    found = as_dim_error(pickle.loads(pickle.dumps(ControllerError(error))))
    assert (type(found), str(found)) == (type(error), str(error))


def test_what_ray_train_gives_up_is_one_line_that_says_how_to_go_on():
    found = as_dim_error(WorkerGroupError("two\nlines", {3: on("node-b", RuntimeError("no\nluck"))}))
    assert isinstance(found, JobFailed)
    assert str(found) == (
        f"after {TRIES} tries, training worker 3 on node-b failed: no luck; run the same command again to go on"
    )
    assert str(as_dim_error(ControllerError(OSError("no\nroom")))).startswith("Ray Train failed: no room; run the same")
    assert str(as_dim_error(ActorDiedError())).startswith("Ray Train failed: The actor died")


def test_whatever_a_worker_meets_leaves_it_with_the_nodes_name(monkeypatch):
    def fail(_):
        raise MemoryError("no room")

    monkeypatch.setattr(job.platform, "node", lambda: "node-b")
    monkeypatch.setattr(job.cluster.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(loop, "run", fail)
    with pytest.raises(MemoryError) as raised:
        job.train_worker({"job": SimpleNamespace(claims=())})
    assert (str(raised.value), raised.value.__notes__) == ("no room", ["on node-b"])


@pytest.mark.parametrize("rank", [0, 1])
def test_every_worker_sees_that_the_weights_of_one_differ(monkeypatch, rank):
    one = object.__new__(worker.Worker)
    one.workers, one.rank, one._strategy = 2, rank, None
    one.trained = SimpleNamespace(variables=[SimpleNamespace(numpy=lambda: np.ones(2))])
    monkeypatch.setattr(worker, "objects_from_all", lambda _, own: [own, "another"] if rank == 0 else ["another", own])
    with pytest.raises(RuntimeError, match="no longer hold the same weights"):
        one.require_equal_weights()
    monkeypatch.setattr(worker, "objects_from_all", lambda _, own: [own, own])
    one.require_equal_weights()
