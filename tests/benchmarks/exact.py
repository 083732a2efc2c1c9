"""Exact search that streams descriptors from disk, against bare FAISS flat search over the same vectors in memory.

    python tests/benchmarks/exact.py --rows 1000000

By default 1,000 queries, the best 10 of each, and a thread per CPU for either. The descriptors are stored as extract.py
stores them, in float16, and searched in a process of its own, whose memory (PSS) is looked at all the time. The two
searches take turns. Prints one JSON line; `rate` is the median time of FAISS over that of ours, `agreement` the share
of the lists in which both have the same rows.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import tempfile
from multiprocessing.connection import Connection
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from processes import MEBIBYTE, peak_of, timed
from search import DIMENSION, EMBEDDING, QUERIES, SHARD_ROWS, TOP

from dim.extract import store
from dim.io import files
from dim.search import read_index

SUBSPACE, PHOTOS_OF_A_LABEL = 32, 10


def blocks(rows: int, seed: int = 0):  # type: ignore[no-untyped-def]
    """Descriptors as in `search.generated`, a shard at a time: so many are made that they would not fit twice."""
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.standard_normal((DIMENSION, SUBSPACE)))[0].T.astype(np.float32)
    centres = random.standard_normal((rows // PHOTOS_OF_A_LABEL, SUBSPACE), dtype=np.float32) @ basis / SUBSPACE**0.5
    spectrum = np.arange(1, DIMENSION + 1, dtype=np.float32) ** -0.5
    spectrum /= np.linalg.norm(spectrum)
    for start in range(0, rows, SHARD_ROWS):
        count = min(SHARD_ROWS, rows - start)
        vectors = centres[random.integers(0, len(centres), count)]
        vectors += random.standard_normal((count, DIMENSION), dtype=np.float32) * spectrum
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield start, vectors.astype(np.float16)


def written(folder: str, rows: int) -> Any:
    """Writes `rows` descriptors to `folder` and returns the FAISS flat index of the same float16 values."""
    files.make_folder(folder)
    record = {"job": "extract", "format_version": 1, "status": "done", "embedding": EMBEDDING.as_json()}
    files.write_json(files.join(folder, "run.json"), record)
    schema = store.schema(DIMENSION, "float16")
    index = faiss.IndexFlatIP(DIMENSION)
    for start, block in blocks(rows):
        index.add(block.astype(np.float32))
        columns = {
            "image_id": [f"image{row:08d}" for row in range(start, start + len(block))],
            "descriptor": pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), DIMENSION),
            "status": [store.OK] * len(block),
        }
        empty = {name: pa.nulls(len(block), schema.field(name).type) for name in schema.names if name not in columns}
        store.write_shard(folder, f"part-{start:016d}", pa.table(columns | empty).select(schema.names).cast(schema))
    return index


def serve(folder: str, queries: np.ndarray, top: int, threads: int, pipe: Connection) -> None:
    """Searches once for each message, and answers with the ids that were found and the seconds."""
    found = read_index.read(folder, None, None)
    database = dataclasses.replace(found.database, workers=threads)  # type: ignore[type-var]
    while pipe.recv():
        (rows, _), seconds = timed(database.nearest, queries, top)
        names = np.array(found.ids.take(pa.array(rows.ravel())).to_pylist())
        pipe.send((np.char.replace(names, "image", "").astype(np.int64).reshape(rows.shape), seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--top", type=int, default=TOP)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    ours, theirs, peak = [], [], 0
    faiss.omp_set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        index = written(folder, arguments.rows)
        count = arguments.queries
        queries = next(blocks(count * PHOTOS_OF_A_LABEL, seed=1))[1][:count].astype(np.float32)
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(
            target=serve, args=(folder, queries, arguments.top, arguments.threads, there), daemon=True
        )
        process.start()
        for _ in range(arguments.pairs):
            with peak_of(process.pid, every=0.1) as seen:
                here.send(True)
                rows, seconds = here.recv()
            ours.append(seconds)
            peak = max(peak, seen.bytes)
            (_, expected), seconds = timed(index.search, queries, arguments.top)
            theirs.append(seconds)
        here.send(False)
        process.join()
    same = np.mean(np.sort(rows, axis=1) == np.sort(expected, axis=1))
    result = {
        "rows": arguments.rows,
        "dimension": DIMENSION,
        "queries": count,
        "top": arguments.top,
        "threads": arguments.threads,
        "cpus": os.cpu_count(),
        "exact_seconds": [round(value, 2) for value in ours],
        "faiss_seconds": [round(value, 2) for value in theirs],
        "rate": round(statistics.median(theirs) / statistics.median(ours), 3),
        "peak_mib": round(peak / MEBIBYTE),
        "agreement": round(float(same), 5),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
