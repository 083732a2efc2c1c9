"""The driver's side of the training workers: it gets their log records, waits for room, and handles their failures.

Log records reach the driver's log through a Ray queue (`log_queue`, `log_to`). `wait_for_room` waits until the workers
can start; the cluster may have to start nodes first. If a worker fails, Ray Train starts all workers again, and they
resume from the last checkpoint. `Failures` ends the training instead if another try would fail with the same error.
"""

import contextlib
import logging
import logging.handlers
import math
import platform
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RunningState, TrainControllerState
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.queue import Queue

from dim.app import cluster, worker_placement
from dim.errors import JobFailed, UserError
from dim.io import files

log = logging.getLogger(__name__)

PATIENCE = 600.0  # seconds to wait for nodes that the cluster may start
AGAIN = 60.0  # seconds between two counts of the nodes while the training waits for room
SILENCE = 30.0  # seconds that Ray Train may wait for workers before the log says so
TRIES = 4  # attempts to train; each failure ends one, but a node that the cloud preempts does not count

# Matches the lines that TensorFlow writes before the reason of an error. They name places in the graph and the code.
_LOCATION = re.compile(r"Graph execution error:|Detected at node |  File |    |Node: |<stack traces |\d+ root error")


@contextlib.contextmanager
def log_queue() -> Iterator[Queue]:
    """A queue whose log records go to the handlers of this process's root logger."""
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": cluster.on_this_node()})
    listener = logging.handlers.QueueListener(queue, *logging.getLogger().handlers)
    listener.start()
    try:
        yield queue
    finally:
        listener.stop()
        queue.shutdown()


def log_to(queue: Queue, level: int, worker: int | None = None) -> None:
    """Sends this process's `dim` log records of at least `level` to `queue`. They name node and rank `worker`."""

    def signed(record: logging.LogRecord) -> bool:
        record.node = platform.node()
        if worker is not None:
            record.worker = worker
        return True

    logger = logging.getLogger("dim")
    logger.handlers = [logging.handlers.QueueHandler(queue)]
    logger.handlers[0].addFilter(signed)
    logger.setLevel(level)
    logger.propagate = False


def rounded_cpus(cpus: float) -> float:
    """The number of CPUs to ask Ray Train for. Less than 1 CPU is rounded down to a power of two.

    Ray Train divides floats to find how many workers fit on a node. Without rounding, it may start four if five fit.
    """
    return cpus if cpus >= 1 else 2.0 ** math.floor(math.log2(cpus))


def wait_for_room(workers: int, each: dict[str, float]) -> None:
    """Waits until there is room for all `workers` or, if the nodes can't hold all, for as many as they hold.

    A worker needs the resources `each`. A cluster that may start nodes gets PATIENCE seconds to start them. Ray Train
    alone would begin as soon as one worker fits. When nodes come, it would start all workers again from the last
    checkpoint, and the repeated steps would cost more time than the wait.
    """
    if _has_room(workers, each, 1):
        return
    if cluster.autoscaled_nodes():
        log.info("waiting up to %.0f s for room for all workers; then as many start as the nodes hold", PATIENCE)
        if _has_room(workers, each, PATIENCE):
            return
    seconds, logged = 1.0, 0
    while not _has_room(number := _asked_for(workers, each), each, seconds):
        if number != logged:
            log.info("%s", waiting_line(number))
        seconds, logged = AGAIN, number


def waiting_line(workers: int) -> str:
    """The log line that is written while there is no room for `workers`."""
    fewer = "s; fewer --workers need less" if workers > 1 else ""
    return f"waiting for room for {workers} training worker{fewer}"


def _asked_for(workers: int, each: dict[str, float]) -> int:
    """How many workers Ray Train tries to start: as many as the nodes would hold if no other job used them.

    If another job uses them, Ray Train retries without logging anything, and never with fewer workers.
    """
    return max(
        1, min(workers, worker_placement.capacity(worker_placement.live_nodes(), each["CPU"], each.get("GPU", 0.0)))
    )


def _has_room(workers: int, each: dict[str, float], seconds: float) -> bool:
    """Whether `workers` find room within `seconds`. Ctrl-C ends this wait, but would not end Ray Train's own wait."""
    group = placement_group([each] * workers)
    try:
        end = time.monotonic() + seconds
        while not (found := bool(group.wait(1))) and time.monotonic() < end:
            pass
        return found
    finally:
        remove_placement_group(group)


class Failures(UserCallback):  # type: ignore[misc]
    """Ends the training at a worker's UserError or JobFailed, and logs any other failure.

    Ray Train's controller, which has its own process, calls this callback for each failure. The controller restarts the
    workers after any error of a worker. But if a callback raises an error, the controller ends the training at once.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue, self._tries = queue, 0
        self._preempted: set[Any] = set()

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Raises the first UserError or JobFailed of `worker_exceptions` (rank → error)."""
        log_to(self._queue, logging.INFO)
        for rank, error in sorted(worker_exceptions.items()):
            if isinstance(error, UserError | JobFailed):
                if run_context.scaling_config.max_workers > 1:
                    log.warning("%s ends the training", _named(rank, error))
                raise error
        deaths = [_cause(error) for error in worker_exceptions.values()]
        preempted = {getattr(death, "actor_id", None) for death in deaths if getattr(death, "preempted", False)}
        if preempted and preempted <= self._preempted:
            return  # Ray Train reports a preemption at each poll until the node is gone
        self._preempted |= preempted
        self._tries += not preempted
        if self._tries < TRIES:
            log.warning("%s; the workers start again from the last checkpoint", description(worker_exceptions))


class Starts(ControllerCallback):  # type: ignore[misc]
    """Logs why workers do not start, but does not repeat a reason. Ray Train itself retries without logging."""

    def __init__(self, queue: Queue) -> None:
        self._queue, self._logged, self._since = queue, "", 0.0

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Ray Train calls this method at each change of state, and repeatedly with the same state while it waits."""
        if current_state is not previous_state:
            self._since = time.monotonic()
        if isinstance(current_state, RunningState):
            self._logged = ""
        elif isinstance(current_state, ReschedulingState):
            self._log(_not_started(current_state.training_failed_error))
        elif time.monotonic() - self._since > SILENCE:
            self._log(waiting_line(1))

    def _log(self, reason: str) -> None:
        if reason != self._logged:
            log_to(self._queue, logging.INFO)
            log.warning("%s", reason)
        self._logged = reason


def _not_started(error: Exception) -> str:
    cause = getattr(error, "controller_failure", error)
    if isinstance(cause, WorkerGroupStartupTimeoutError):
        return waiting_line(cause.num_workers)
    return f"the training workers could not start: {_reason(cause)}; they are started again"


def description(failures: Mapping[int, Exception]) -> str:
    """Which worker failed and why, in one line. A dead worker comes first, as its death makes other workers fail."""
    rank, error = min(failures.items(), key=lambda failure: (not _died(failure[1]), failure[0]))
    if _died(error):
        return f"{_named(rank, error)} died, most likely because its node is lost or out of memory"
    return f"{_named(rank, error)} failed: {_reason(error)}"


def as_dim_error(error: Exception) -> UserError | JobFailed:
    """The error to show to the user after Ray Train has ended a training with `error`."""
    cause = getattr(error, "controller_failure", error)
    if isinstance(cause, UserError | JobFailed):
        return cause
    failures = getattr(error, "worker_failures", None)
    what = f"after {TRIES} tries, {description(failures)}" if failures else f"Ray Train failed: {files.reason(cause)}"
    return JobFailed(f"{what}; run the same command again to go on")


def _reason(error: Exception) -> str:
    """The reason for `error` in one line. In a long message of TensorFlow, it is the first line that names no place."""
    lines = str(error).splitlines()
    if lines[:1] != ["Graph execution error:"]:
        return files.reason(error)
    reasons = (line.strip() for line in lines if not _LOCATION.match(line))
    return " ".join(re.sub(r"\[(\[|Op:).*", "", next(filter(None, reasons), lines[0])).split())


def _named(rank: int, error: Exception) -> str:
    node = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    return f"training worker {rank}{node}"


def _cause(error: Exception) -> Exception:
    cause: Exception = getattr(error, "health_check_failure", error)  # a failed health check wraps the actual error
    return cause


def _died(error: Exception) -> bool:
    return isinstance(_cause(error), RayActorError)
