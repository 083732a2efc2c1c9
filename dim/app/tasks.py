"""Divides work among Ray tasks or, if the job has not connected to Ray, among threads of this process.

`spread` calls a function for each unit of work. Results arrive as they are completed, so a caller merges them in a way
that does not depend on their order. A unit should be some seconds of work: long enough to pay for a task, short enough
that the last tasks end at about the same time. Ray repeats the units of a worker or node that dies.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

import ray
from threadpoolctl import threadpool_limits

from dim.app import worker_placement
from dim.app.progress import Progress, Stage

Unit = TypeVar("Unit")
T = TypeVar("T")

AHEAD = 2  # tasks that are submitted for each CPU, so that no CPU waits for the driver
MOST_THREADS = 16  # of this process; more of them would wait for memory, not for each other


def spread(
    work: Callable[..., T],
    units: Sequence[Unit],
    shared: Sequence[Any] = (),
    *,
    workers: int | None = None,
    stage: Stage | None = None,
    size: Callable[[Unit], int] = lambda _: 1,
    unit: str = "parts",
    gpus: float = 0,
    light: bool = False,
) -> Iterator[tuple[int, T]]:
    """Calls work(unit, *shared) for each of `units`, each call on one CPU.

    Args:
        work: A function at the top level of a module. Its result is sent to the driver, so it should be small, or be
            the name of a file that the call has written.
        units: The units, in the order in which they are started.
        shared: Arguments that all calls share. Each node gets one copy of them; arrays are read-only.
        workers: The most calls that run at a time. By default, there is one for each CPU.
        stage: The stage of progress that the units count for, if any; `size` is a unit's share of it, in `unit`.
        gpus: The GPUs of each call, beside its CPU. Threads have none.
        light: Whether a single unit takes so little that this process does it. A cluster need not start a node for it.

    Yields:
        The position of each unit and the result of its call, as they are completed.
    """
    run = _by_threads if not ray.is_initialized() or (light and len(units) == 1) else _by_tasks
    progress = Progress(stage, sum(map(size, units)), unit) if stage else None
    for position, result in run(work, units, shared, workers, gpus):
        yield position, result
        if progress:
            progress.add(size(units[position]))


def in_order(results: Iterable[tuple[int, T]]) -> Iterator[T]:
    """Yields the `results` of `spread` in the order of the units. Those that come early are held until their turn."""
    early: dict[int, T] = {}
    turn = 0
    for position, result in results:
        early[position] = result
        while turn in early:
            yield early.pop(turn)
            turn += 1


def gpus_of_a_call(wanted: float | None = None) -> float:
    """The GPUs to give to each call of `spread`: `wanted`, by default one if any node has GPUs. Threads get none."""
    return worker_placement.gpus_per_worker(wanted) if ray.is_initialized() else 0.0


def slots(workers: int | None = None) -> int:
    """The number of calls of `spread` that run at a time: `workers`, or one for each CPU that there is or may be."""
    if not ray.is_initialized():
        return workers or min(os.cpu_count() or 1, MOST_THREADS)
    nodes = worker_placement.known_nodes()
    return workers or max(1, sum(int(node.cpus) * count for node, count in nodes.items()))


def threads_of_a_call(units: int, workers: int | None = None) -> int:
    """The threads that each call of `spread` may use, if there are `units` units. A Ray task has one CPU."""
    return 1 if ray.is_initialized() else max(1, min(slots(), slots(workers)) // max(1, units))


def _by_tasks(
    work: Callable[..., T], units: Sequence[Unit], shared: Sequence[Any], workers: int | None, gpus: float
) -> Iterator[tuple[int, T]]:
    # By default, a process that has used a GPU ends with its task. Here it goes on (max_calls=0), because TensorFlow
    # takes longer to start than a unit.
    remote = ray.remote(scheduling_strategy="SPREAD", max_calls=0, num_cpus=1, num_gpus=gpus)(work)
    arguments = [ray.put(value) for value in shared]
    window = workers or AHEAD * slots()
    left = iter(enumerate(units))
    running: dict[Any, int] = {}
    try:
        while True:
            for position, unit in islice(left, window - len(running)):
                running[remote.remote(unit, *arguments)] = position
            if not running:
                return
            done, _ = ray.wait(list(running))
            for reference in done:
                yield running.pop(reference), ray.get(reference)
    finally:
        for reference in running:
            ray.cancel(reference)


def _by_threads(
    work: Callable[..., T], units: Sequence[Unit], shared: Sequence[Any], workers: int | None, _: object
) -> Iterator[tuple[int, T]]:
    count = max(1, min(slots(workers), len(units)))
    left: Iterator[tuple[int, Unit]] = iter(enumerate(units))
    running: dict[Future[T], int] = {}
    # Independent threads are faster than the threads of one matrix product, which wait for each other.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(count) as threads:
        try:
            while True:
                for position, unit in islice(left, count - len(running)):
                    running[threads.submit(work, unit, *shared)] = position
                if not running:
                    return
                done, _pending = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()
