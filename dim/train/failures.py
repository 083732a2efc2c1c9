"""What workers have to say, carried to the job's own log through a queue of Ray's.

Room for a training's workers on a cluster that starts nodes as they are asked for.

What becomes of a training when a worker fails: it ends where a new try would fail alike, else it is tried again.
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

from dim.app import cluster, placement
from dim.errors import JobFailed, UserError
from dim.io import files


@contextlib.contextmanager
def listening() -> Iterator[Queue]:
    """A queue whose log records come out of the job's handlers."""
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": cluster.on_this_node()})
    listener = logging.handlers.QueueListener(queue, *logging.getLogger().handlers)
    listener.start()
    try:
        yield queue
    finally:
        listener.stop()
        queue.shutdown()


def speak_through(queue: Queue, level: int, worker: int | None = None) -> None:
    """Sends this process's `dim` log records of at least `level` to `queue`, as those of `worker`, if it is one, on
    this node.
    """

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


log = logging.getLogger(__name__)

PATIENCE = 600.0  # seconds in which a cloud has started its nodes, or won't
AGAIN = 60.0  # seconds after which nodes may have come or gone


def divisible(cpus: float) -> float:
    """The CPUs to ask for where a worker is to take `cpus`: of less than one the next lower power of two.

    Ray Train divides floats to know how many workers a node holds: of five that take a tenth it starts four.
    """
    return cpus if cpus >= 1 else 2.0 ** math.floor(math.log2(cpus))


def wait(workers: int, each: dict[str, float]) -> None:
    """Waits until there is room for all `workers`, with the resources `each`; in vain, for as many as the nodes hold.

    On a cluster that grows, all of them get PATIENCE seconds. Ray Train would start with the first worker that finds
    room, and from the last checkpoint again as nodes come; an epoch that is lost costs more than to wait.
    """
    if _found(workers, each, 1):
        return
    if cluster.autoscaled_nodes():
        log.info("all of them have %.0f s to find room; then as many begin as the nodes hold", PATIENCE)
        if _found(workers, each, PATIENCE):
            return
    seconds, said = 1.0, 0
    while not _found(number := _tried(workers, each), each, seconds):
        if number != said:
            log.info("%s", waiting(number))
        seconds, said = AGAIN, number


def waiting(workers: int) -> str:
    """What is said while there is no room for so many."""
    fewer = "s; fewer --workers need less" if workers > 1 else ""
    return f"waiting for room for {workers} training worker{fewer}"


def _tried(workers: int, each: dict[str, float]) -> int:
    """How many workers Ray Train tries to start: as many as the nodes would hold if no other job used them.

    Where one does, it tries again and again, without a word, and never with fewer.
    """
    return max(1, min(workers, placement.capacity(placement.live_nodes(), each["CPU"], each.get("GPU", 0.0))))


def _found(workers: int, each: dict[str, float], seconds: float) -> bool:
    """Whether there is room within `seconds`; a placement group, unlike Ray Train's wait, is one that Ctrl-C ends."""
    group = placement_group([each] * workers)
    try:
        end = time.monotonic() + seconds
        while not (found := bool(group.wait(1))) and time.monotonic() < end:
            pass
        return found
    finally:
        remove_placement_group(group)


SILENCE = 30.0  # seconds after which it is said that Ray Train waits
TRIES = 4  # a dead worker or a lost node costs one; a node that the cloud takes back costs none

# What TensorFlow puts before what is wrong, line by line: where in its graph and in the code it is.
_WHERE = re.compile(r"Graph execution error:|Detected at node |  File |    |Node: |<stack traces |\d+ root error")


class Failures(UserCallback):  # type: ignore[misc]
    """Ends the training at a worker's UserError or JobFailed; says of any other failure that the workers start again.

    Ray Train's controller, a process of its own, calls it for each failure. What workers raise is tried again, whatever
    it is; what a callback raises ends the training at once.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._tries = 0
        self._taken: set[Any] = set()

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Raises the first UserError or JobFailed of `worker_exceptions`, which are by rank."""
        speak_through(self._queue, logging.INFO)
        for rank, error in sorted(worker_exceptions.items()):
            if isinstance(error, UserError | JobFailed):
                if run_context.scaling_config.max_workers > 1:
                    log.warning("%s ends the training", _named(rank, error))
                raise error
        deaths = [_cause(error) for error in worker_exceptions.values()]
        taken = {getattr(death, "actor_id", None) for death in deaths if getattr(death, "preempted", False)}
        if taken and taken <= self._taken:
            return  # Ray Train tells of it again and again until the time is over that the cloud gave
        self._taken |= taken
        self._tries += not taken
        if self._tries < TRIES:
            log.warning("%s; the workers start again from the last checkpoint", described(worker_exceptions))


class Starts(ControllerCallback):  # type: ignore[misc]
    """Says why workers that are to start don't, each reason once. Ray Train tries again and again without a word."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._said = ""
        self._since = 0.0

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Called with what Ray Train's controller did before and does now; while it waits, with the same again."""
        if current_state is not previous_state:
            self._since = time.monotonic()
        if isinstance(current_state, RunningState):
            self._said = ""
        elif isinstance(current_state, ReschedulingState):
            self._say(_not_started(current_state.training_failed_error))
        elif time.monotonic() - self._since > SILENCE:
            self._say(waiting(1))

    def _say(self, what: str) -> None:
        if what != self._said:
            speak_through(self._queue, logging.INFO)
            log.warning("%s", what)
        self._said = what


def _not_started(error: Exception) -> str:
    cause = getattr(error, "controller_failure", error)
    if isinstance(cause, WorkerGroupStartupTimeoutError):
        return waiting(cause.num_workers)
    return f"the training workers could not start: {_reason(cause)}; they are started again"


def described(failures: Mapping[int, Exception]) -> str:
    """Which worker failed and why, in one line. A death goes first: it makes the others fail, too."""
    rank, error = min(failures.items(), key=lambda failure: (not _died(failure[1]), failure[0]))
    if _died(error):
        return f"{_named(rank, error)} died, as it does where memory is short or its node is lost"
    return f"{_named(rank, error)} failed: {_reason(error)}"


def as_own(error: Exception) -> UserError | JobFailed:
    """`error`, with which Ray Train ended a training, as the user reads it."""
    cause = getattr(error, "controller_failure", error)
    if isinstance(cause, UserError | JobFailed):
        return cause
    failures = getattr(error, "worker_failures", None)
    said = f"after {TRIES} tries, {described(failures)}" if failures else f"Ray Train failed: {files.reason(cause)}"
    return JobFailed(f"{said}; run the same command again to go on")


def _reason(error: Exception) -> str:
    """What is wrong, in one line; of what TensorFlow says, the first sentence that tells."""
    lines = str(error).splitlines()
    if lines[:1] != ["Graph execution error:"]:
        return files.reason(error)
    told = (line.strip() for line in lines if not _WHERE.match(line))
    return " ".join(re.sub(r"\[(\[|Op:).*", "", next(filter(None, told), lines[0])).split())


def _named(rank: int, error: Exception) -> str:
    node = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    return f"training worker {rank}{node}"


def _cause(error: Exception) -> Exception:
    cause: Exception = getattr(error, "health_check_failure", error)  # Ray Train asks its workers how they are
    return cause


def _died(error: Exception) -> bool:
    return isinstance(_cause(error), RayActorError)
