"""How the memory and the CPU time of each job grow with the number of photos.

    python tests/benchmarks/growth.py --rows 100000,1000000
    python tests/benchmarks/growth.py --rows 10000,100000 --jobs whiten,audit --options "audit=--memory 4GB"

For each number of rows, the program makes a folder of descriptors (512 values, float16; ten photos a label) by an
extraction whose pipeline is replaced by one that draws them. Then it runs each job as a user does. `extract` is the
same extraction again: it reads the manifest, checks all photos, and finds nothing to do. The photos are empty files;
beyond a million, rows share them.
The jobs that compare all pairs run only up to a number of rows. Threads of FAISS that wait for each other sleep, so
that a loaded machine doesn't add to their CPU time.

Prints one JSON line. For each job and size: `peak_mib`, the peak of the memory (PSS) of all of the job's processes,
Ray's daemons left out; `cpu_seconds` of the same processes; `seconds`. And from each size to the next, `cpu` and
`memory`: the exponents e of growth as rowsᵉ.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from processes import MEBIBYTE, cpu_seconds, family, pss

REPOSITORY = Path(__file__).resolve().parents[2]
DIMENSION, SUBSPACE, PHOTOS_OF_A_LABEL, PHOTOS_OF_A_FOLDER = 512, 32, 10, 1000
QUERIES, WRONG, SIZE = 1000, 0.01, 32
MOST_FILES = 10**6
LISTS, ROWS_OF_A_LIST = 1024, 40  # most inverted lists of an index, and the fewest rows for each of them
EVERY = 0.25  # seconds between two looks at a job's processes
NETWORK = {
    "model": "vgg16-gem", "weights": "random", "precision": "float32", "image_size": SIZE, "gpus_per_worker": 0,
    "store": "float16",
}  # fmt: skip
INPUT = "--manifest {made}/photos.parquet --descriptors {made}/descriptors --out {out}"
INDEX = "index.py --descriptors {made}/descriptors --out {out} --factory "
PROPOSED = " --candidates PCA128,HNSW32_SQ8"
# What each job runs, and up to how many rows: below {made} is the input, and {out} is its output.
JOBS: dict[str, tuple[str, float]] = {
    "extract": ("extract.py {network} --manifest {made}/photos.parquet --out {made}/descriptors", math.inf),
    "whiten": ("whiten.py --manifest {made}/photos.parquet --descriptors {made}/descriptors --out {out}.npz", math.inf),
    "index": (INDEX + "Flat", math.inf),
    "index by lists": (INDEX + "IVF{lists},PQ64", math.inf),
    "search": ("search.py --no-report --index {made}/descriptors --queries {made}/queries --out {out}", math.inf),
    "search by index": ("search.py --no-report --index {by_lists} --queries {made}/queries --out {out}", math.inf),
    "evaluate": (f"evaluate.py --no-report {INPUT} --query-split test --database-split train", math.inf),
    "mine": (f"mine.py {INPUT} --top 1600", 4e5),
    "mine by index": (f"mine.py {INPUT} --top 1600{PROPOSED}", math.inf),
    "audit": (f"audit.py {INPUT}", 5e4),
    "audit by index": (f"audit.py {INPUT}{PROPOSED}", math.inf),
    "export": ("export.py --descriptors {made}/descriptors --out {out} --format npy", math.inf),
}


def make(rows: int, folder: Path) -> None:
    """Makes the manifest, the photos and the descriptors of `rows` rows in `folder`, and those of the queries."""
    from dim.app import cluster
    from dim.extract import job, own_process
    from dim.extract.config import ExtractConfig

    cluster.connected = contextlib.nullcontext  # type: ignore[assignment]
    own_process.run = _drawn
    for start in range(0, min(rows, MOST_FILES), PHOTOS_OF_A_FOLDER):
        below = folder / f"{start // PHOTOS_OF_A_FOLDER:05d}"
        below.mkdir()
        for row in range(start, min(start + PHOTOS_OF_A_FOLDER, rows)):
            os.mknod(below / f"{row:08d}.jpg")
    _manifest(folder / "photos.parquet", np.arange(rows), rows)
    _manifest(folder / "queries.parquet", np.arange(QUERIES), rows)
    for name, out in (("photos", "descriptors"), ("queries", "queries")):
        job.extract(ExtractConfig(manifest=str(folder / f"{name}.parquet"), out=str(folder / out), **NETWORK))


def _manifest(file: Path, numbers: np.ndarray, rows: int) -> None:
    from dim.io import tables

    labels = numbers % (rows // PHOTOS_OF_A_LABEL)
    wrong = np.random.default_rng(0).random(len(numbers)) < WRONG
    labels[wrong] = np.random.default_rng(1).permutation(labels)[wrong]
    columns = {
        "image_id": [f"image{row:08d}" for row in numbers],
        "path": [f"{row // PHOTOS_OF_A_FOLDER:05d}/{row:08d}.jpg" for row in numbers % MOST_FILES],
        "label": [f"label{label}" for label in labels],
        "split": ["test" if row < QUERIES else "train" for row in numbers],
    }
    tables.write(str(file), pa.table(columns))


def _drawn(rows: pa.Table, _recipe: Any, dtype: str, _machine: Any) -> Iterator[pa.Table]:
    """Stands for the pipeline: label centres in a 32-dimensional subspace, and noise of decaying spectrum."""
    from dim.extract import store

    labels = int(os.environ["DIM_GROWTH_ROWS"]) // PHOTOS_OF_A_LABEL
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.standard_normal((DIMENSION, SUBSPACE)))[0].T / SUBSPACE**0.5
    centres = random.standard_normal((labels, SUBSPACE), dtype=np.float32)
    spectrum = np.arange(1, DIMENSION + 1) ** -0.5
    spectrum = (spectrum / np.linalg.norm(spectrum)).astype(np.float32)
    schema = store.schema(DIMENSION, dtype)
    for start in range(0, rows.num_rows, PHOTOS_OF_A_FOLDER):
        batch = rows.slice(start, PHOTOS_OF_A_FOLDER)
        numbers = np.array([int(image_id[5:]) for image_id in batch["image_id"].to_pylist()])
        vectors = (centres[numbers % labels] @ basis).astype(np.float32)
        vectors += random.standard_normal(vectors.shape, dtype=np.float32) * spectrum
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        values = pa.array(vectors.astype(dtype).ravel())
        columns = {
            "image_id": batch["image_id"],
            "descriptor": pa.FixedSizeListArray.from_arrays(values, DIMENSION),
            "status": pa.array([store.OK] * len(batch)),
            "error": pa.nulls(len(batch), pa.string()),
            "width": pa.array([SIZE] * len(batch), pa.int32()),
            "height": pa.array([SIZE] * len(batch), pa.int32()),
            "content": batch["content"],
        }
        table = pa.table(columns).select(schema.names).cast(schema)
        yield table.append_column("shard", batch["shard"]).append_column("several", pa.array([False] * len(batch)))


def measured(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Runs a job. Returns its memory, CPU time and time."""
    started = time.perf_counter()
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(job.communicate()))
    reader.start()
    peak, seconds = 0, {}
    while reader.is_alive():
        pids = family(job.pid)
        peak = max(peak, sum(map(pss, pids)))
        seconds |= {pid: spent for pid in pids if (spent := cpu_seconds(pid))}
        reader.join(EVERY)
    if job.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {said[1][-3000:]}")
    return {
        "peak_mib": round(peak / MEBIBYTE),
        "cpu_seconds": round(sum(seconds.values()), 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


def measured_jobs(rows: int, names: list[str], options: dict[str, str], folder: Path) -> dict[str, dict[str, float]]:
    """What the jobs `names` cost for `rows` rows. Everything that is made is deleted."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "DIM_GROWTH_ROWS": str(rows)}
    environment["OMP_WAIT_POLICY"] = "passive"
    made = folder / "made"
    made.mkdir()
    subprocess.run([sys.executable, __file__, "--make", made, "--rows", str(rows)], env=environment, check=True)
    flags = {name.replace("_", "-"): value for name, value in NETWORK.items()}
    network = " ".join(f"--{name} {value}" for name, value in flags.items())
    by_lists, found = folder / "index by lists", {}
    lists = min(LISTS, rows // ROWS_OF_A_LIST)
    for name, (line, most) in JOBS.items():
        needed = name == "index by lists" and "search by index" in names
        if rows > most or not (name in names or needed):
            continue
        words = f"{line} {options.get(name, '')}".split()
        places = {"made": made, "out": folder / name, "lists": lists, "by_lists": by_lists, "network": network}
        command = [part for word in words for part in _filled(word, places)]
        found[name] = measured([sys.executable, str(REPOSITORY / "jobs" / command[0]), *command[1:]], environment)
        print(f"{rows} rows, {name}: {found[name]}", file=sys.stderr, flush=True)
        if name != "index by lists":
            shutil.rmtree(folder / name, ignore_errors=True)
    shutil.rmtree(made)
    shutil.rmtree(by_lists, ignore_errors=True)
    return found


def _filled(word: str, places: dict[str, Any]) -> list[str]:
    filled = word.format(**places)
    return filled.split() if word == "{network}" else [filled]


def exponent(before: dict[str, float], after: dict[str, float], figure: str, times: float) -> float:
    """The exponent of growth of a figure for `times` as many rows."""
    return round(math.log(after[figure] / before[figure]) / math.log(times), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="100000,1000000", help="numbers of rows, ascending")
    parser.add_argument("--jobs", default=",".join(JOBS), help="the jobs to run (default: all)")
    parser.add_argument("--options", action="append", default=[], metavar="JOB=FLAGS", help="more flags of a job")
    parser.add_argument("--place", help="folder for what is made (default: a temporary folder)")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = [int(rows) for rows in arguments.rows.split(",")]
    if arguments.make:
        make(sizes[0], arguments.make)
        return
    options = dict(option.split("=", 1) for option in arguments.options)
    found: dict[int, dict[str, dict[str, float]]] = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="dim-growth-", dir=arguments.place) as folder:
            found[rows] = measured_jobs(rows, arguments.jobs.split(","), options, Path(folder))
    growth = {
        f"{fewer} to {more}": {
            name: {
                "cpu": exponent(found[fewer][name], found[more][name], "cpu_seconds", more / fewer),
                "memory": exponent(found[fewer][name], found[more][name], "peak_mib", more / fewer),
            }
            for name in found[more]
            if name in found[fewer]
        }
        for fewer, more in itertools.pairwise(sizes)
    }
    print(json.dumps({"cpus": os.cpu_count(), "options": options, "jobs": found, "exponents": growth}))


if __name__ == "__main__":
    main()
