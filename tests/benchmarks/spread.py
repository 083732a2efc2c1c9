"""How much faster the work that `tasks.spread` divides gets with more workers.

    python tests/benchmarks/spread.py exact index evaluate
    python tests/benchmarks/spread.py mine --rows 25000

Each part of the table `PARTS` prints one JSON line. `gain` is the time of one worker of one thread over that of two,
and `bare_gain` that of bare NumPy products in one process and in two, in turns in the same run; `of_bare` is the ratio
of the gains. `efficiency` is the share of the time of 16 workers in which they work. Their units are replaced by waits
of `WAIT` seconds with results of the usual size, so that two CPUs are enough: the driver and Ray are what is measured.
Mining passes the results of its units on, so a wait comes before each unit, and the units are small. Their time counts
as work, too.
"""

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import faiss
import numpy as np
import ray
from processes import timed
from search import DIMENSION, PHOTOS_OF_A_LABEL, QUERIES, TOP, generated, stored

from dim.app import tasks
from dim.mine import mining, remote
from dim.mine.config import Mining
from dim.mine.remote import Remote
from dim.search import exact, index_factory, ranks, read_index
from dim.search.database import Exact
from dim.search.exact import Part
from dim.search.fill_index import Filling, Unit, fill_unit

QUIET = {"address": "local", "include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
PAIRS = 5
SIMULATED, WAIT = 16, 2.0
SIMULATED_ROWS, SHARD = 10**7, 2**16
FACTORY, TRAINED = "IVF256,SQ8", 20_000  # rows that train the index
MINED_ROWS, MINED_BLOCK = 2**13, 2**6  # of the mining by workers that wait
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


def efficiency(work: Callable[[], float]) -> float:
    """The share of the time of `SIMULATED` workers in which they work. `work` returns the seconds of all its units."""
    for _ in tasks.spread(waits, [5.0] * SIMULATED):  # all processes start
        pass
    busy, seconds = timed(work)
    return round(busy / SIMULATED / seconds, 3)


def measured(real: Callable[[int], object], simulated: Callable[[], float]) -> dict[str, float]:
    """The figures of a part: `gain` of its `real` work, and the `efficiency` of its `simulated` work."""
    ray.init(num_cpus=2, **QUIET)
    found = gain(real)
    ray.shutdown()
    ray.init(num_cpus=SIMULATED, **QUIET)
    found["efficiency"] = efficiency(simulated)
    ray.shutdown()
    return found


def simulated_parts() -> list[Part]:
    """Parts of a database of `SIMULATED_ROWS` rows that are never loaded."""
    sizes = [(start, min(SHARD, SIMULATED_ROWS - start)) for start in range(0, SIMULATED_ROWS, SHARD)]
    return [Part(start, size, time.time) for start, size in sizes]  # type: ignore[arg-type]


def database_of(folder: str, vectors: np.ndarray) -> Exact:
    """A store of `vectors` in `folder`, as a database."""
    found: Any = read_index.read(stored(folder, vectors, "float16"), None, None).database
    assert isinstance(found, Exact)
    return found


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
        database = database_of(folder, vectors[QUERIES:])
        queries = np.repeat(vectors[:QUERIES], 4, axis=0)

        def real(workers: int) -> object:
            return exact.nearest(queries, database.parts, database.tie_order, TOP, workers)

        def simulated() -> float:
            exact.best_of_unit = waiting_search
            parts = simulated_parts()
            asked = np.zeros((exact.UNIT_QUERIES, DIMENSION), np.float32)
            exact.nearest(asked, parts, np.arange(SIMULATED_ROWS), TOP)
            return len(parts) * WAIT

        return measured(real, simulated)


class WaitingFilling(Filling):
    """Fills an index without adding rows, after a wait."""

    def add(self, index: Any, blocks: Iterable[np.ndarray]) -> None:  # noqa: ARG002
        time.sleep(WAIT)


def filled(kind: type[Filling], trained: np.ndarray, units: Sequence[Unit], workers: int | None = None) -> float:
    """Fills the `units` of an index. Returns the seconds of as many waits."""
    with tempfile.TemporaryDirectory() as notes:
        filling = kind(notes, notes, FACTORY, "", trained)
        return WAIT * sum(1 for _ in tasks.spread(fill_unit, units, [filling], workers=workers))


def spread_index(rows: int) -> dict[str, Any]:
    """Units of an index of a store on disk; and 160 units whose rows take a wait to add. Training is one task."""
    vectors = generated(rows)
    empty = index_factory.empty_index(FACTORY, DIMENSION, 0)
    index_factory.train(empty, vectors[:TRAINED], "the index")
    trained = faiss.serialize_index(empty)
    with tempfile.TemporaryDirectory() as folder:
        units = [Unit(f"{part.start}", part.size, [part]) for part in database_of(folder, vectors).parts]
        waiting = [Unit(f"{number}", 0, []) for number in range(10 * SIMULATED)]
        return measured(
            functools.partial(filled, Filling, trained, units),
            functools.partial(filled, WaitingFilling, trained, waiting),
        )


def waiting_pairs(unit: ranks.Asked, queries: np.ndarray) -> np.ndarray:
    """Scores of the pairs of a unit, after a wait."""
    time.sleep(WAIT)
    return np.zeros(len(unit.pairs))


def waiting_block(unit: ranks.Block, search: ranks.Search) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts and lists as a unit of an evaluation gives them, after a wait."""
    found = waiting_search((slice(unit.first, unit.last), unit.parts), search)  # type: ignore[arg-type]
    return np.zeros(search.starts[unit.last] - search.starts[unit.first], np.int64), *found


def spread_evaluate(rows: int) -> dict[str, Any]:
    """Ranks and first rows in a store on disk; and in 10⁷ rows, by workers that wait."""
    vectors = generated(rows + QUERIES)
    with tempfile.TemporaryDirectory() as folder:
        database = database_of(folder, vectors[QUERIES:])
        queries = np.repeat(vectors[:QUERIES], 4, axis=0)

        def pairs(size: int) -> ranks.Pairs:
            of = np.repeat(np.arange(len(queries)), PHOTOS_OF_A_LABEL)
            return ranks.Pairs(of, np.random.default_rng(0).integers(0, size, len(of)))

        def real(workers: int) -> object:
            asked = pairs(rows)
            return ranks.ranks(queries, database.parts, database.tie_order, asked, count=TOP, workers=workers)

        def simulated() -> float:
            ranks.score_pairs, ranks.search_block = waiting_pairs, waiting_block
            parts = simulated_parts()
            step = ranks.CELLS // SHARD  # queries of a unit
            order = np.arange(SIMULATED_ROWS)
            ranks.ranks(queries, parts, order, pairs(SIMULATED_ROWS), count=TOP)
            return len(parts) * (1 + -(-len(queries) // step)) * WAIT

        return measured(real, simulated)


def waiting_calls(times: str) -> Callable[..., tuple[Any, ...]]:
    """What does a call of mining after a wait, and adds the seconds of both to the file `times`."""

    def called(function: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
        started = time.perf_counter()
        time.sleep(WAIT)
        found = None, *function(*arguments)
        with open(times, "a") as file:
            file.write(f"{time.perf_counter() - started}\n")
        return found

    return called


def mined(parts: Sequence[Part], block_rows: int, workers: int | None = None) -> None:
    """Mines triplets."""
    count = sum(part.size for part in parts)
    labels = np.array([f"label{row // PHOTOS_OF_A_LABEL}" for row in range(count)], object)
    ids = np.array([f"image{row:08d}" for row in range(count)], object)
    mining.mine(parts, labels, ids, Mining(top=1600), remote=Remote(workers), share=2**29, block_rows=block_rows)


def spread_mine(rows: int) -> dict[str, Any]:
    """Mining in a store on disk; and in few rows, by workers that wait before each call."""
    with tempfile.TemporaryDirectory() as folder:
        vectors = generated(rows)
        parts = database_of(f"{folder}/all", vectors).parts
        few = database_of(f"{folder}/few", vectors[:MINED_ROWS]).parts

        def simulated() -> float:
            times = f"{folder}/times"
            remote._called = waiting_calls(times)
            mined(few, MINED_BLOCK)
            return float(np.loadtxt(times).sum())

        return measured(lambda workers: mined(parts, mining.BLOCK_ROWS, workers), simulated)


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "exact": spread_exact,
    "index": spread_index,
    "evaluate": spread_evaluate,
    "mine": spread_mine,
}


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
