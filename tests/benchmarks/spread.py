"""How much faster the work that `tasks.spread` divides gets with more workers.

    python tests/benchmarks/spread.py exact

Each part of the table `PARTS` prints one JSON line. `gain` is the time of one worker of one thread over that of two,
and `bare_gain` that of bare NumPy products in one process and in two, in turns in the same run; `of_bare` is the ratio
of the gains. `efficiency` is the share of the time of 16 workers in which they work. Their units are replaced by waits
of `WAIT` seconds with results of the usual size, so that two CPUs are enough: the driver and Ray are what is measured.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
from processes import timed
from search import DIMENSION, QUERIES, TOP, generated, stored

from dim.app import tasks
from dim.search import exact, read_index
from dim.search.exact import Part

QUIET = {"address": "local", "include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
PAIRS = 5
SIMULATED, WAIT = 16, 2.0
SIMULATED_ROWS, SHARD = 10**7, 2**16
ROUNDS = 12  # bare products of a process that has all the work


def bare(rounds: int) -> None:
    """Products of the shape of a block of exact search."""
    random = np.random.default_rng(0)
    queries = random.standard_normal((exact.QUERIES, DIMENSION), dtype=np.float32)
    rows = random.standard_normal((exact.COLUMNS, DIMENSION), dtype=np.float32)
    products = np.empty((len(queries), len(rows)), np.float32)
    for _ in range(rounds):
        np.matmul(queries, rows.T, out=products)


def waits(seconds: float) -> None:
    """A unit that only takes time."""
    time.sleep(seconds)


def gain(work: Callable[[int], object]) -> dict[str, float]:
    """What `work` (given a number of workers) gains from a second worker, and what bare products gain."""
    ones, twos, bare_ones, bare_twos = [], [], [], []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for times, bare_times, workers in [(ones, bare_ones, 1), (twos, bare_twos, 2)] * (PAIRS + 1):
            times.append(timed(work, workers)[1])
            bare_times.append(timed(pool.map, bare, [ROUNDS // workers * 2] * workers, 1)[1])
    one, two, bare_one, bare_two = (statistics.median(times[1:]) for times in (ones, twos, bare_ones, bare_twos))
    return {
        "seconds_of_one": round(one, 2),
        "gain": round(one / two, 3),
        "bare_gain": round(bare_one / bare_two, 3),
        "of_bare": round(one / two / (bare_one / bare_two), 3),
    }


def efficiency(work: Callable[[], object], units: int) -> float:
    """The share of the time of `SIMULATED` workers in which they wait for one of the `units` of `work`."""
    for _ in tasks.spread(waits, [5.0] * SIMULATED):  # all processes start
        pass
    return round(units * WAIT / SIMULATED / timed(work)[1], 3)


def waiting_search(unit: tuple[slice, list[Part]], search: exact.Search) -> tuple[np.ndarray, np.ndarray]:
    """Lists as a unit of exact search gives them, after a wait."""
    time.sleep(WAIT)
    chunk, (part, *_) = unit
    random = np.random.default_rng(part.start)
    size = len(search.queries[chunk]), search.count
    return part.start + random.integers(0, part.size, size), np.sort(random.random(size), axis=1)[:, ::-1]


def spread_exact(rows: int) -> dict[str, Any]:
    """Exact search of a store on disk; and of 10⁷ rows, by workers that wait."""
    vectors = generated(rows + QUERIES)
    with tempfile.TemporaryDirectory() as folder:
        database = read_index.read(stored(folder, vectors[QUERIES:], "float16"), None, None).database
        ray.init(num_cpus=2, **QUIET)
        queries = np.repeat(vectors[:QUERIES], 4, axis=0)
        found = gain(lambda workers: exact.nearest(queries, database.parts, database.tie_order, TOP, workers))
        ray.shutdown()
    ray.init(num_cpus=SIMULATED, **QUIET)
    sizes = [(start, min(SHARD, SIMULATED_ROWS - start)) for start in range(0, SIMULATED_ROWS, SHARD)]
    parts = [Part(start, size, time.time) for start, size in sizes]  # type: ignore[arg-type]
    queries, tie_order = np.zeros((exact.UNIT_QUERIES, DIMENSION), np.float32), np.arange(SIMULATED_ROWS)
    exact.best_of_unit = waiting_search
    found["efficiency"] = efficiency(lambda: exact.nearest(queries, parts, tie_order, TOP), len(parts))
    ray.shutdown()
    return found


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {"exact": spread_exact}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[*PARTS], help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # of the processes that begin from here on
    for part in arguments.parts:
        print(json.dumps({"part": part, "rows": arguments.rows, "cpus": os.cpu_count(), **PARTS[part](arguments.rows)}))


if __name__ == "__main__":
    main()
