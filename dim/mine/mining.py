"""Mining across the cluster: `mine` divides a strategy's work into Ray tasks and merges their results.

The strategies themselves, which do not use Ray, are in `hardest`, `indexed` and `triplets`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray

from dim.app import worker_placement
from dim.app.progress import Progress
from dim.mine import hardest
from dim.mine.config import Mining
from dim.mine.pool import BLOCK_ROWS, Pool, check, pool_of
from dim.mine.triplets import Triplets, random_units, random_work, ranked

# CPUs that a task reserves if it runs beside workers that wait for it. If tasks reserved 0 CPUs, Ray would also place
# them on a head node without CPUs, which must not do such work.
_BESIDE = 0.01
_CACHED = 64  # blocks that a task keeps; they are in memory that all tasks of a machine share


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to find triplets.

    `units` returns the number of units of work. `work` does a range of the units. `finish` makes triplets from the
    results of `work`. `worth` is the number of units, some seconds' work, that justifies starting another CPU.
    """

    units: Callable[[Pool], int]
    worth: int
    work: Callable[[Pool, Mining, int, int], Any]
    finish: Callable[[Pool, Mining, Iterator[Any]], Triplets]


_HARDEST = Strategy(hardest.units, 32, hardest.work, hardest.finish)
_RANDOM = Strategy(
    random_units, 16_384, random_work, lambda pool, settings, parts: ranked(parts, pool.id_ranks, settings.top)
)
STRATEGIES = {"hardest": _HARDEST, "distinct": _HARDEST, "random": _RANDOM}


def mine(
    vectors: np.ndarray,
    labels: np.ndarray,
    image_ids: np.ndarray,
    settings: Mining,
    *,
    block_rows: int = BLOCK_ROWS,
    beside: bool = False,
) -> Triplets:
    """Mines the hardest triplets of a training set. Ray must be connected.

    Without `settings.candidates` the result is the same for any `block_rows` and any cluster.

    Args:
        vectors: Descriptors, float32 (N, D), rows L2-normalised.
        labels: The labels, str (N,); None for a row that takes no part.
        image_ids: Unique ids (N,), which decide ties.
        settings: Which triplets are candidates and which are kept.
        block_rows: Rows per block of descriptors.
        beside: Whether workers that wait for the result reserve most CPUs. The tasks then reserve hardly any CPU.

    Returns:
        The triplets as positions in `vectors`, hardest first.

    Raises:
        UserError: The labels cannot give triplets, or a labelled row is not normalised.
    """
    check(vectors, labels, image_ids, settings)
    pool = pool_of(vectors, labels, image_ids, block_rows=block_rows, put=ray.put)
    if settings.candidates:
        pool = dataclasses.replace(pool, index=_built(pool, settings, beside))
    strategy = _strategy(settings)
    units = strategy.units(pool)
    tasks = worker_placement.task_count(units, units if beside else strategy.worth)
    ends = np.linspace(0, units, tasks + 1).astype(int).tolist()
    task, shared = ray.remote(num_cpus=_BESIDE if beside else 1, scheduling_strategy="SPREAD")(_work), ray.put(pool)
    parts = [task.remote(shared, settings, start, stop) for start, stop in itertools.pairwise(ends)]
    triplets = strategy.finish(pool, settings, _as_completed(parts))
    return triplets.at(pool.rows)


def check_candidates(settings: Mining, dimension: int) -> None:
    """Raises UserError if FAISS cannot make the index of `settings.candidates` for descriptors of `dimension`."""
    if settings.candidates:
        from dim.mine import indexed  # noqa: PLC0415  (only mining with an index needs FAISS)

        indexed.empty_index(settings, dimension)


def _strategy(settings: Mining) -> Strategy:
    if settings.candidates:
        from dim.mine import indexed  # noqa: PLC0415  (as above)

        return Strategy(indexed.units, 4, indexed.work, hardest.finish)
    return STRATEGIES[settings.strategy]


def _built(pool: Pool, settings: Mining, beside: bool) -> Any:
    """A reference to the index that proposes negatives. A task builds it with a thread per CPU of the largest node."""
    cpus = max((int(node.cpus) for node in worker_placement.live_nodes() or worker_placement.known_nodes()), default=1)
    task = ray.remote(num_cpus=_BESIDE if beside else cpus, num_returns=2)(_build)
    reference, size = task.remote(ray.put(pool), settings, cpus)
    ray.get(size)  # raises the task's error here; tasks that need the index start later and can't take its CPUs
    return reference


def _build(pool: Pool, settings: Mining, threads: int) -> tuple[np.ndarray, int]:
    from dim.mine import indexed  # noqa: PLC0415  (as above)

    serialised = indexed.build(_fetching(pool), settings, threads)
    return serialised, serialised.nbytes


def _work(pool: Pool, settings: Mining, start: int, stop: int) -> Any:
    return _strategy(settings).work(_fetching(pool), settings, start, stop)


def _fetching(pool: Pool) -> Pool:
    # A task uses a block many times, so it keeps the block: ray.get takes longer than some of the uses.
    return dataclasses.replace(pool, fetch=functools.lru_cache(maxsize=_CACHED)(ray.get))


def _as_completed(parts: list[Any]) -> Iterator[Any]:
    progress = Progress("mining", len(parts), "parts")
    while parts:
        done, parts = ray.wait(parts)
        yield ray.get(done[0])
        progress.add()
