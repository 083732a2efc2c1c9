"""Building an index against bare FAISS from memory: seconds and CPU seconds, and the peak memory of index.py.

    python tests/benchmarks/index.py --rows 100000

Prints one JSON line. The descriptors are those of tests/benchmarks/search.py, stored as float16. index.py reads them
from the store. Bare FAISS has them in memory as float32, trains on as many rows, adds all rows, and writes the file.
In the Python that DIM_AUTOFAISS names, autofaiss builds the same index from an .npy file. All use all CPUs. `ratio` is
that of the seconds of FAISS, or autofaiss, over those of index.py. The CPU seconds of index.py count its start. `added`
is the time in which index.py adds a tenth of the rows to an index of the others.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from processes import MEBIBYTE, peak_of
from search import DIMENSION, SHARD_ROWS, generated, stored

from dim.search import index_factory

JOB = Path(__file__).resolve().parents[2] / "jobs" / "index.py"
FACTORIES = ("Flat", "IVF256,Flat", "IVF1024,PQ64")


def cpu_seconds(who: int) -> float:
    """The CPU seconds of this process, or of its children that ended."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def built(descriptors: str, out: str, factory: str) -> dict[str, Any]:
    """The result of index.py, with its CPU seconds and its peak memory."""
    before = cpu_seconds(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-X", "job", str(JOB), "--descriptors", descriptors, "--out", out, "--factory", factory]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with job, peak_of(job.pid, every=0.1) as peak:
        said, _ = job.communicate()
    cpu = cpu_seconds(resource.RUSAGE_CHILDREN) - before
    return json.loads(said.splitlines()[-1]) | {"cpu": cpu, "peak": peak.bytes}


def bare(vectors: np.ndarray, out: str, factory: str, trained_on: int) -> tuple[float, float]:
    """The seconds and the CPU seconds in which FAISS alone builds and writes the index."""
    started, before = time.perf_counter(), cpu_seconds(resource.RUSAGE_SELF)
    index = index_factory.empty_index(factory, DIMENSION, 0)
    if trained_on:
        index.train(vectors[np.random.default_rng(0).choice(len(vectors), trained_on, replace=False)])
    for start in range(0, len(vectors), SHARD_ROWS):
        index.add(vectors[start : start + SHARD_ROWS])
    faiss.write_index(index, out)
    return time.perf_counter() - started, cpu_seconds(resource.RUSAGE_SELF) - before


def with_autofaiss(vectors: np.ndarray, folder: str, factory: str) -> dict[str, float]:
    """The seconds and the CPU seconds in which autofaiss builds and writes the index; nothing without autofaiss."""
    python = os.environ.get("DIM_AUTOFAISS")
    if not python:
        return {}
    Path(folder, "npy").mkdir()
    np.save(f"{folder}/npy/vectors.npy", vectors)
    command = [python, str(Path(__file__).with_name("with_autofaiss.py")), f"{folder}/npy", factory, folder]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


def measured(vectors: np.ndarray, folder: str, factory: str) -> dict[str, Any]:
    """The figures of one kind of index."""
    out = f"{folder}/index"
    most = stored(f"{folder}/descriptors", vectors[: len(vectors) // 10 * 9], "float16")
    built(most, out, factory)
    stored(most, vectors, "float16")
    added = built(most, out, factory)
    shutil.rmtree(out)
    result = built(most, out, factory)
    alone, alone_cpu = bare(vectors, f"{folder}/bare.index", factory, result["trained_on"])
    shutil.rmtree(out)
    peer = with_autofaiss(vectors, folder, factory)
    return {
        "seconds": round(result["seconds"], 2),
        "faiss_seconds": round(alone, 2),
        "ratio": round(alone / result["seconds"], 3),
        "autofaiss": {**peer, "ratio": round(peer["seconds"] / result["seconds"], 3)} if peer else None,
        "cpu_seconds": round(result["cpu"], 2),
        "faiss_cpu_seconds": round(alone_cpu, 2),
        "peak_mib": round(result["peak"] / MEBIBYTE),
        "index_mib": round(result["bytes"] / MEBIBYTE),
        "added": round(added["seconds"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--factory", action="append", help="instead of the usual ones; may be given more than once")
    arguments = parser.parse_args()
    vectors = generated(arguments.rows)
    figures = {}
    for factory in arguments.factory or FACTORIES:
        with tempfile.TemporaryDirectory() as folder:
            figures[factory] = measured(vectors, folder, factory)
    print(json.dumps({"rows": len(vectors), "dimension": DIMENSION, "indexes": figures}))


if __name__ == "__main__":
    main()
