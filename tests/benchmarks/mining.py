"""Mining against a bare matrix product of the same size (N × D by D × N), its growth and its memory, in one run.

    python tests/benchmarks/mining.py --rows 25000,100000
    python tests/benchmarks/mining.py --rows 40000,400000 --candidates IVF1024,Flat --product-share 0.01
    python tests/benchmarks/mining.py --rows 25000 --block-rows 128    # as many tasks as for 400,000 rows

Prints one JSON line. For each size: `rate` is the time of the full float32 product over that of mining 5 negatives and
4 positives of each row (1 means that mining, on Ray and with all its merging, takes as long as the product alone). A
share of the product is timed before and as much after mining. The descriptors lie on disk, as float16. `driver_mib` and
`task_mib` are the largest PSS of the driver, and of any worker of Ray, while it mines, both without Ray's object store;
`driver_cpu_seconds` is the CPU time of the driver. `growth` is the CPU time of the last size over that of the first.
With candidates, `recall` is the share of the exact 5 hardest negatives that is found, over 1,000 anchors.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from processes import MEBIBYTE, command_line, family, timed

from dim.app.memory import budget
from dim.mine.config import Mining
from dim.mine.mining import mine
from dim.mine.pool import BLOCK_ROWS
from dim.mine.remote import Remote
from dim.mine.triplets import Triplets
from dim.search.exact import Part

DIMENSION = 512
IMAGES_PER_LABEL = 10
SUBSPACE = 32
NEGATIVES = 5
PART_ROWS = 8192
JUDGED = 1000
ENOUGH = 100.0  # a margin by which every triplet is active, so that all negatives are seen


def generated(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Descriptors with label centres in a 32-dimensional subspace and noise of decaying spectrum; labels; ids."""
    random = np.random.default_rng(seed)
    n_labels = rows // IMAGES_PER_LABEL
    basis = np.linalg.qr(random.standard_normal((DIMENSION, SUBSPACE)))[0].T
    centres = random.standard_normal((n_labels, SUBSPACE)) @ basis / SUBSPACE**0.5
    spectrum = np.arange(1, DIMENSION + 1) ** -0.5
    spectrum /= np.linalg.norm(spectrum)
    codes = random.permutation(np.arange(rows) % n_labels)
    vectors = centres[codes].astype(np.float32)
    vectors += random.standard_normal((rows, DIMENSION), dtype=np.float32) * spectrum.astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.array([f"image{i:08d}" for i in range(rows)], dtype=object)
    return vectors, np.array([f"label{code}" for code in codes], dtype=object), ids


def product_seconds(vectors: np.ndarray, share: float, block: int = 2048) -> float:
    """The time of all blocks of vectors · vectorsᵀ, none of them kept, from that of a `share` of the rows."""
    rows = max(block, round(share * len(vectors)))
    started = time.perf_counter()
    for start in range(0, rows, block):
        for other in range(0, len(vectors), block):
            vectors[start : min(start + block, rows)] @ vectors[other : other + block].T
    return (time.perf_counter() - started) * len(vectors) / rows


def recall(vectors: np.ndarray, labels: np.ndarray, triplets: Triplets) -> float:
    """The share of the exact nearest negatives of `JUDGED` anchors that stand in `triplets`."""
    found: dict[int, set[int]] = {}
    for anchor, negative in zip(triplets.anchors.tolist(), triplets.negatives.tolist(), strict=True):
        found.setdefault(anchor, set()).add(negative)
    judged = np.random.default_rng(1).choice(len(vectors), min(JUDGED, len(vectors)), replace=False)
    products = vectors[judged] @ vectors.T
    products[labels[judged][:, None] == labels] = -np.inf
    nearest = np.argpartition(-products, NEGATIVES, axis=1)[:, :NEGATIVES]
    hits = sum(len(found[anchor] & set(row)) for anchor, row in zip(judged.tolist(), nearest.tolist(), strict=True))
    return hits / nearest.size


class Watch:
    """Looks at the memory of the driver and of Ray's workers, twice a second, for as long as the block runs."""

    def __enter__(self) -> "Watch":
        self.driver = self.task = 0
        self.cpu_seconds = 0.0  # of the watch itself
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.5):
            self.driver = max(self.driver, own_memory(os.getpid()))
            workers = [pid for pid in family(os.getpid()) if command_line(pid).startswith("ray::")]
            self.task = max([self.task, *map(own_memory, workers)])
            self.cpu_seconds = time.thread_time()


def own_memory(pid: int) -> int:
    """The PSS of a process without shared memory, which is that of Ray's object store; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss")}
    return found.get("Pss", 0) - found.get("Pss_Shmem", 0)


def cpu_seconds() -> float:
    """The CPU time so far of the driver and of Ray's workers that are alive."""
    ticks = 0
    for pid in family(os.getpid()):
        try:
            values = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(values[11]) + int(values[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def loaded(file: str, start: int, stop: int) -> np.ndarray:
    """The rows from `start` to `stop` − 1 of an array on disk, float32."""
    return np.load(file, mmap_mode="r")[start:stop].astype(np.float32)


def mined(file: str, labels: np.ndarray, ids: np.ndarray, settings: Mining, **options: int) -> Triplets:
    """The triplets of the descriptors in `file`; `options` are those of `mine`."""
    ends = [*range(0, len(labels), PART_ROWS), len(labels)]
    parts = [Part(a, b - a, functools.partial(loaded, file, a, b)) for a, b in itertools.pairwise(ends)]
    return mine(parts, labels, ids, settings, remote=Remote(), **options).whole()


def measured(rows: int, settings: Mining, timed_share: float, **options: int) -> dict[str, Any]:
    """What mining `rows` descriptors costs, with the `options` of `mine`."""
    with tempfile.TemporaryDirectory() as folder:
        vectors, labels, ids = generated(rows)
        file = f"{folder}/descriptors.npy"
        np.save(file, vectors.astype(np.float16))
        few = f"{folder}/few.npy"
        np.save(few, vectors[:2000].astype(np.float16))
        untrained = dataclasses.replace(settings, candidates=None, candidate_parameters=None)
        mined(few, labels[:2000], ids[:2000], untrained, **options | {"block_rows": 256})  # the workers have started
        before = product_seconds(vectors, timed_share)
        del vectors
        own, every = time.process_time(), cpu_seconds()
        with Watch() as watch:
            triplets, seconds = timed(functools.partial(mined, **options), file, labels, ids, settings)
        own = time.process_time() - own - watch.cpu_seconds
        every = cpu_seconds() - every - watch.cpu_seconds
        vectors = loaded(file, 0, rows)
        bare = (before + product_seconds(vectors, timed_share)) / 2
        found = {
            "rows": rows,
            "product_seconds": round(bare, 2),
            "mining_seconds": round(seconds, 2),
            "rate": round(bare / seconds, 3),
            "cpu_seconds": round(every, 1),
            "driver_cpu_seconds": round(own, 2),
            "driver_mib": round(watch.driver / MEBIBYTE),
            "task_mib": round(watch.task / MEBIBYTE),
            **triplets.summary(),
        }
        if settings.candidates:
            all_active = dataclasses.replace(settings, margin=ENOUGH, top=None, positives_per_anchor=1)
            every_negative = mined(file, labels, ids, all_active, **options)
            found["recall"] = round(recall(vectors, labels, every_negative), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="25000", help="one size, or several: 25000,100000")
    parser.add_argument("--strategy", choices=("hardest", "distinct"), default="hardest")
    parser.add_argument("--candidates", help="FAISS factory string of an index that proposes negatives")
    parser.add_argument("--candidate-parameters")
    parser.add_argument("--product-share", type=float, default=0.25, help="share of the product that is timed")
    parser.add_argument("--block-rows", type=int, default=BLOCK_ROWS)
    parser.add_argument("--memory", default="8GB", help="as for mine.py")
    arguments = parser.parse_args()
    settings = Mining(
        strategy=arguments.strategy,
        top=1600,
        negatives_per_anchor=NEGATIVES,
        candidates=arguments.candidates,
        candidate_parameters=arguments.candidate_parameters,
    )
    ray.init(address="local", include_dashboard=False, logging_level="ERROR")
    options = {"share": budget(arguments.memory).share, "block_rows": arguments.block_rows}
    sizes = [measured(int(rows), settings, arguments.product_share, **options) for rows in arguments.rows.split(",")]
    ray.shutdown()
    result = {
        "strategy": arguments.strategy,
        "candidates": arguments.candidates,
        "cpus": os.cpu_count(),
        "sizes": sizes,
        "growth": round(sizes[-1]["cpu_seconds"] / sizes[0]["cpu_seconds"], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
