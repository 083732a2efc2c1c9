"""An evaluation whose descriptors stay on disk: time and memory, and its speed against a mAP that holds all scores.

    python tests/benchmarks/evaluate.py --rows 1000000 --queries 10 1000 10000

Descriptors of 512 values in float16 are stored as extract.py stores them: ten photos of each label around its centre.
Each number of queries is evaluated by jobs/evaluate.py in a process of its own, whose memory (PSS) is looked at all the
time. Where the scores fit, the same mAP is computed from the same rows in memory by tests/benchmarks/mean_ap.py, with
NumPy or, in the Python that DIM_TORCH names, with torchmetrics and pytorch-metric-learning. Prints one JSON line;
`ratio` is the CPU time of each of them over that of the whole job, which also starts Python and reads files.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from processes import MEBIBYTE, peak_of
from search import DIMENSION, EMBEDDING, PHOTOS_OF_A_LABEL, SHARD_ROWS, SUBSPACE

from dim.extract import store
from dim.io import files, tables

REPOSITORY = Path(__file__).resolve().parents[2]
MOST_SCORES = 2 * 10**8  # that a peer holds in memory


def written(folder: str, rows: int) -> np.ndarray:
    """Writes the descriptors of `rows` photos to `folder`, and returns the labels, int64 (N,)."""
    files.make_folder(folder)
    record = {"job": "extract", "format_version": 1, "status": "done", "embedding": EMBEDDING.as_json(), "inputs": {}}
    files.write_json(files.join(folder, "run.json"), record)
    schema = store.schema(DIMENSION, "float16")
    random = np.random.default_rng(0)
    labels = random.integers(0, rows // PHOTOS_OF_A_LABEL, rows)
    basis = np.linalg.qr(random.standard_normal((DIMENSION, SUBSPACE)))[0].T.astype(np.float32)
    centres = random.standard_normal((rows // PHOTOS_OF_A_LABEL, SUBSPACE), dtype=np.float32) @ basis / SUBSPACE**0.5
    for start in range(0, rows, SHARD_ROWS):
        vectors = centres[labels[start : start + SHARD_ROWS]]
        vectors += 2 * random.standard_normal(vectors.shape, dtype=np.float32) / DIMENSION**0.5
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        columns = {
            "image_id": ids(start, len(vectors)),
            "descriptor": pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), DIMENSION),
            "status": [store.OK] * len(vectors),
        }
        empty = {name: pa.nulls(len(vectors), schema.field(name).type) for name in schema.names if name not in columns}
        store.write_shard(folder, f"part-{start:016d}", pa.table(columns | empty).select(schema.names).cast(schema))
    return labels


def ids(start: int, count: int) -> list[str]:
    return [f"image{row:08d}" for row in range(start, start + count)]


def manifest(path: str, labels: np.ndarray, queries: int) -> str:
    """Writes a manifest whose first rows are queries as well as rows of the database."""
    names = ids(0, len(labels))
    role = pa.array([None] * queries + ["database"] * (len(labels) - queries), pa.string())
    label = [f"label{label}" for label in labels.tolist()]
    tables.write(path, pa.table({"image_id": names, "path": names, "label": label, "role": role}))
    return path


def evaluated(folder: str, photos: str, memory: str | None) -> dict[str, Any]:
    """What jobs/evaluate.py takes for the manifest `photos`."""
    command = [sys.executable, str(REPOSITORY / "jobs" / "evaluate.py"), "--manifest", photos, "--no-report"]
    command += ["--descriptors", f"{folder}/descriptors", "--out", f"{folder}/out"]
    command += ["--memory", memory] if memory else []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        with peak_of(process.pid, every=0.1) as peak:
            output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"evaluate.py ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads(output.splitlines()[-1])
    return {
        "map": result["map"],
        "seconds": result["seconds"],
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_mib": round(peak.bytes / MEBIBYTE),
    }


def peers(folder: str, labels: np.ndarray, queries: int) -> dict[str, Any]:
    """What tests/benchmarks/mean_ap.py takes on the same rows, by the name of its library."""
    shards = sorted(Path(folder, "descriptors").glob("part-*.parquet"))
    columns = [store.read_shard(str(shard.parent), shard.stem, ["descriptor"])["descriptor"] for shard in shards]
    np.savez(f"{folder}/rows.npz", vectors=np.concatenate(list(map(store.vectors, columns))), labels=labels)
    python = os.environ.get("DIM_TORCH")
    libraries = {"numpy": sys.executable}
    if python:
        libraries |= {"torchmetrics": python, "pytorch_metric_learning": python}
    script = str(REPOSITORY / "tests" / "benchmarks" / "mean_ap.py")
    found = {}
    for library, interpreter in libraries.items():
        command = [interpreter, script, library, f"{folder}/rows.npz", str(queries)]
        found[library] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--memory", help="--memory of the job")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        labels = written(f"{folder}/descriptors", arguments.rows)
        result: dict[str, Any] = {"rows": arguments.rows, "dimension": DIMENSION, "cpus": os.cpu_count()}
        for queries in arguments.queries:
            photos = manifest(f"{folder}/photos.parquet", labels, queries)
            found = result[f"{queries} queries"] = evaluated(folder, photos, arguments.memory)
            if queries >= 1000 and queries * arguments.rows <= MOST_SCORES:
                found["peers"] = peers(folder, labels, queries)
                found["ratio"] = {
                    library: round(peer["cpu_seconds"] / found["cpu_seconds"], 1)
                    for library, peer in found["peers"].items()
                }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
