"""Mining across the cluster: each strategy's work as Ray tasks, its parts merged as they come in."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray

from dim.app import placement
from dim.app.progress import Progress
from dim.mine import hardest, triplets
from dim.mine.config import Mining
from dim.mine.pool import BLOCK_ROWS, Pool, check, pool_of
from dim.mine.triplets import Triplets


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How triplets are found: `units` of work, the `work` on a range of them, and what makes triplets of its parts.
    `worth` units take some seconds, for which a further CPU is worth starting.
    """

    units: Callable[[Pool], int]
    worth: int
    work: Callable[[Pool, Mining, int, int], Any]
    finish: Callable[[Pool, Mining, Iterator[Any]], Triplets]


# The CPUs that a task asks for beside workers that wait for it. Were it none, a head node without CPUs, which is to do
# no such work, would be given its part.
_BESIDE = 0.01
_CACHED = 64  # blocks that a task holds at a time; they lie in the memory that all tasks of a machine share
_HARDEST = Strategy(hardest.units, 32, hardest.work, hardest.finish)
STRATEGIES = {
    "hardest": _HARDEST,
    "distinct": _HARDEST,
    "random": Strategy(triplets.units, 16_384, triplets.work, triplets.finish),
}


def mine(
    vectors: np.ndarray,
    labels: np.ndarray,
    image_ids: np.ndarray,
    settings: Mining,
    *,
    block_rows: int = BLOCK_ROWS,
    beside: bool = False,
) -> Triplets:
    """The hardest triplets of a training set, ranked; without `settings.candidates` the same for any `block_rows` and
    any cluster.

    `vectors` (N, D): float32, rows L2-normalised. `labels` (N,): str or None, which is never used. `image_ids` (N,):
    unique. `beside`: the caller is one of workers that hold most CPUs and wait, so the tasks ask for hardly any. Ray
    must be connected. Raises UserError where the labels cannot give triplets or a row is not normalised.
    """
    check(vectors, labels, image_ids, settings)
    pool = pool_of(vectors, labels, image_ids, block_rows=block_rows, put=ray.put)
    if settings.candidates:
        pool = dataclasses.replace(pool, index=_built(pool, settings, beside))
    strategy = _strategy(settings)
    units = strategy.units(pool)
    tasks = placement.task_count(units, units if beside else strategy.worth)
    ends = np.linspace(0, units, tasks + 1).astype(int).tolist()
    task, shared = ray.remote(num_cpus=_BESIDE if beside else 1, scheduling_strategy="SPREAD")(_work), ray.put(pool)
    parts = [task.remote(shared, settings, start, stop) for start, stop in itertools.pairwise(ends)]
    triplets = strategy.finish(pool, settings, _as_completed(parts))
    return triplets.at(pool.rows)


def check_candidates(settings: Mining, dimension: int) -> None:
    """Raises UserError where the index that is to propose negatives can't be made for descriptors of `dimension`."""
    if settings.candidates:
        from dim.mine import indexed  # noqa: PLC0415  (FAISS, which mining needs for this only)

        indexed.empty_index(settings, dimension)


def _strategy(settings: Mining) -> Strategy:
    if settings.candidates:
        from dim.mine import indexed  # noqa: PLC0415  (as above)

        return Strategy(indexed.units, 4, indexed.work, hardest.finish)
    return STRATEGIES[settings.strategy]


def _built(pool: Pool, settings: Mining, beside: bool) -> Any:
    """A reference to the index that proposes negatives, which one task builds with all CPUs of its node."""
    cpus = max((int(node.cpus) for node in placement.live_nodes() or placement.known_nodes()), default=1)
    task = ray.remote(num_cpus=_BESIDE if beside else cpus, num_returns=2)(_build)
    reference, size = task.remote(ray.put(pool), settings, cpus)
    ray.get(size)  # what goes wrong is said here, and the tasks that need the index don't take the CPUs that build it
    return reference


def _build(pool: Pool, settings: Mining, threads: int) -> tuple[np.ndarray, int]:
    from dim.mine import indexed  # noqa: PLC0415  (as above)

    serialised = indexed.build(_at_hand(pool), settings, threads)
    return serialised, serialised.nbytes


def _work(pool: Pool, settings: Mining, start: int, stop: int) -> Any:
    return _strategy(settings).work(_at_hand(pool), settings, start, stop)


def _at_hand(pool: Pool) -> Pool:
    # A block is asked for many times over, and ray.get takes longer than some uses of it.
    return dataclasses.replace(pool, fetch=functools.lru_cache(maxsize=_CACHED)(ray.get))


def _as_completed(parts: list[Any]) -> Iterator[Any]:
    progress = Progress("mining", len(parts), "parts")
    while parts:
        done, parts = ray.wait(parts)
        yield ray.get(done[0])
        progress.add()
