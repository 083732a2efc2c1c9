"""Indexes against exact search: recall@10, bytes a vector, and the time of 1,000 queries.

    python tests/benchmarks/search.py --rows 200000

Prints one JSON line. Descriptors of 512 values are made here: label centres in a 32-dimensional subspace, ten photos
each, and noise of decaying spectrum. They are stored as extract.py stores them, and indexed as index.py does.
`exact` is the search that streams them from disk, `faiss_seconds` bare FAISS over the same vectors in memory.
"""

import argparse
import json
import os
import tempfile
import time
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from dim.extract import store
from dim.extract.embedding import NetworkEmbedding
from dim.io import files
from dim.search import read_index
from dim.search.build_index import build
from dim.search.config import IndexConfig

DIMENSION, SUBSPACE, PHOTOS_OF_A_LABEL = 512, 32, 10
QUERIES, TOP = 1000, 10
SHARD_ROWS = 8192
INDEXES = {
    "Flat": None,
    "IVF1024,Flat": "nprobe=16",
    "HNSW32": "efSearch=64",
    "PQ64": None,
    "IVF1024,PQ64": "nprobe=16",
}
EMBEDDING = NetworkEmbedding("none", "none", "none", "generated", "none", 224, "squash", (1.0,), None, None, "float32")


def generated(rows: int, seed: int = 0) -> np.ndarray:
    """Descriptors (rows, 512), L2-normalised float32."""
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.standard_normal((DIMENSION, SUBSPACE)))[0].T
    centres = random.standard_normal((rows // PHOTOS_OF_A_LABEL, SUBSPACE)) @ basis / SUBSPACE**0.5
    spectrum = np.arange(1, DIMENSION + 1) ** -0.5
    spectrum /= np.linalg.norm(spectrum)
    vectors = centres[random.integers(0, len(centres), rows)].astype(np.float32)
    vectors += random.standard_normal((rows, DIMENSION), dtype=np.float32) * spectrum.astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def stored(folder: str, vectors: np.ndarray, kind: str) -> str:
    """Writes `vectors` to `folder` as extract.py does, in the type `kind`."""
    files.make_folder(folder)
    record = {"job": "extract", "format_version": 1, "status": "done", "embedding": EMBEDDING.as_json()}
    files.write_json(files.join(folder, "run.json"), record)
    schema = store.schema(vectors.shape[1], kind)
    for start in range(0, len(vectors), SHARD_ROWS):
        block = vectors[start : start + SHARD_ROWS]
        values = pa.array(block.astype(kind).ravel())
        columns = {
            "image_id": [f"image{row:08d}" for row in range(start, start + len(block))],
            "descriptor": pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]),
            "status": [store.OK] * len(block),
        }
        empty = {name: pa.nulls(len(block), schema.field(name).type) for name in schema.names if name not in columns}
        table = pa.table(columns | empty).select(schema.names).cast(schema)
        store.write_shard(folder, f"part-{start:016d}", table)
    return folder


def searched(folder: str, queries: np.ndarray, parameters: str | None = None) -> tuple[set[tuple[int, str]], float]:
    """The (query, image_id) of the first `TOP` of each query's list, and the seconds that they took."""
    found = read_index.read(folder, None, parameters)
    started = time.perf_counter()
    rows, _ = found.database.nearest(queries, TOP)
    seconds = time.perf_counter() - started
    ids = found.ids.to_pylist()
    return {(query, ids[row]) for query, listed in enumerate(rows) for row in listed if row >= 0}, seconds


def measured(
    descriptors: str, out: str, factory: str, queries: np.ndarray, truth: set[tuple[int, str]]
) -> dict[str, Any]:
    """What an index costs, and how much of `truth` it finds."""
    started = time.perf_counter()
    result = build(IndexConfig(descriptors=descriptors, out=out, factory=factory))
    seconds = time.perf_counter() - started
    found, search_seconds = searched(out, queries, INDEXES[factory])
    return {
        "parameters": INDEXES[factory],
        "recall_at_10": round(len(found & truth) / len(truth), 4),
        "bytes_per_vector": result["bytes_per_row"],
        "build_seconds": round(seconds, 1),
        "search_seconds": round(search_seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--store", choices=("float16", "float32"), default="float16")
    arguments = parser.parse_args()
    vectors = generated(arguments.rows + QUERIES)
    queries, vectors = vectors[:QUERIES], vectors[QUERIES:]
    with tempfile.TemporaryDirectory() as folder:
        descriptors = stored(f"{folder}/descriptors", vectors, arguments.store)
        truth, exact_seconds = searched(descriptors, queries)
        bare = faiss.IndexFlatIP(DIMENSION)
        bare.add(vectors)
        started = time.perf_counter()
        bare.search(queries, TOP)
        faiss_seconds = time.perf_counter() - started
        result = {
            "rows": len(vectors),
            "dimension": DIMENSION,
            "queries": QUERIES,
            "cpus": os.cpu_count(),
            "exact_seconds": round(exact_seconds, 2),
            "faiss_seconds": round(faiss_seconds, 2),
            "indexes": {
                factory: measured(descriptors, f"{folder}/{number}", factory, queries, truth)
                for number, factory in enumerate(INDEXES)
            },
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
