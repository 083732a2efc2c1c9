"""Calls functions as Ray tasks, whose results stay in Ray's object store.

`dim.app.tasks.spread` sends all results to the driver. Mining's intermediate results are as large as its input, so only
references to them come back, and these are passed on to other tasks. The driver owns the results: if a node is lost
with some of them, Ray repeats the tasks that made them.
"""

import functools
from collections.abc import Callable
from typing import Any

import ray

from dim.app import tasks, worker_placement
from dim.app.progress import Progress

# CPUs that a task reserves if it runs beside workers that wait for it. If tasks reserved 0 CPUs, Ray would also place
# them on a head node without CPUs, which must not do such work.
_BESIDE = 0.01


class Remote:
    """Calls functions as Ray tasks of one CPU each, at most `workers` at a time (default: all CPUs are busy).

    With `beside`, workers that wait for the results reserve most CPUs. The tasks then reserve hardly any CPU.
    """

    def __init__(self, workers: int | None = None, *, beside: bool = False) -> None:
        self._window = workers or tasks.slots() * (1 if beside else tasks.AHEAD)
        # Ray exports a remote function once, so it is made once for all calls.
        self._task = ray.remote(scheduling_strategy="SPREAD")(_called)
        self._beside = beside
        self._running: list[Any] = []
        self._progress: Progress | None = None

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Cancels the calls that have not ended if an error ends the block."""
        if kind:
            for ended in self._running:
                ray.cancel(ended)

    def expect(self, progress: Progress | None) -> None:
        """Waits for all calls so far. Then counts each further call that ends in `progress`, if any."""
        self.wait()
        self._progress = progress

    def put(self, value: Any) -> Any:
        """Puts `value` into the object store, and returns the reference."""
        return ray.put(value)

    def get(self, reference: Any) -> Any:
        """The value of `reference`."""
        return ray.get(reference)

    @property
    def node_cpus(self) -> int:
        """The CPUs of the largest node."""
        nodes = worker_placement.live_nodes() or worker_placement.known_nodes()
        return max([1, *(int(node.cpus) for node in nodes)])

    def call(
        self, function: Callable[..., Any], *arguments: Any, returns: int = 1, cpus: int | None = None
    ) -> list[Any]:
        """Calls function(*arguments), once fewer than `workers` calls are running.

        Args:
            function: A function at the top level of a module. It returns a sequence of `returns` values.
            arguments: A reference among them is replaced by its value; a reference within a list or dict is not.
            returns: The number of values.
            cpus: The number of CPUs that the call uses, if it is not one.

        Returns:
            A reference to each value.

        Raises:
            RayTaskError: One of the calls has failed.
        """
        self._wait(self._window - 1)
        reserved = _BESIDE if self._beside else cpus or 1
        task = self._task.options(num_cpus=reserved, num_returns=returns + 1, name=function.__name__)
        ended, *values = task.remote(function, *arguments)
        self._running.append(ended)
        return list(values)

    def wait(self) -> None:
        """Waits for all calls. Raises RayTaskError if one has failed."""
        self._wait(0)

    def _wait(self, most: int) -> None:
        while len(self._running) > most:
            done, self._running = ray.wait(self._running, num_returns=len(self._running) - most)
            ray.get(done)  # raises the error of a call
            if self._progress:
                self._progress.add(len(done))


def _called(function: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    return None, *function(*arguments)


def fetched(references: dict[int, Any]) -> dict[int, Any]:
    """The values of `references`, within a task. Arrays are not copied."""
    return dict(zip(references, ray.get(list(references.values())), strict=True))


def referring(reference: Any) -> Callable[[], Any]:
    """A function that gets the value of `reference` in any process."""
    return functools.partial(ray.get, reference)
