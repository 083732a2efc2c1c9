"""Exact mining against a bare matrix product of the same size (N × D by D × N), in one run.

    python tests/benchmarks/mining.py --rows 25000

Prints one JSON line. `rate` is the time of the full float32 product over the time of mining 5 negatives and 4
positives for each row: 1 means that mining, on Ray and with all its merging, takes as long as the product alone.
"""

import argparse
import json
import os
import time

import numpy as np
import ray

from dim.mine.config import Mining
from dim.mine.mining import mine

DIMENSION = 512
IMAGES_PER_LABEL = 10
SUBSPACE = 32


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


def product_seconds(vectors: np.ndarray, block: int = 2048) -> float:
    """The time of all blocks of vectors · vectorsᵀ, none of them kept."""
    started = time.perf_counter()
    for start in range(0, len(vectors), block):
        for other in range(0, len(vectors), block):
            vectors[start : start + block] @ vectors[other : other + block].T
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=25_000)
    parser.add_argument("--strategy", choices=("hardest", "distinct"), default="hardest")
    arguments = parser.parse_args()
    vectors, labels, ids = generated(arguments.rows)
    settings = Mining(strategy=arguments.strategy, top=1600)
    ray.init(address="local", include_dashboard=False, logging_level="ERROR")
    few = slice(0, 2000)
    mine(vectors[few], labels[few], ids[few], settings, block_rows=256)  # the workers have started
    bare = product_seconds(vectors)
    started = time.perf_counter()
    triplets = mine(vectors, labels, ids, settings)
    seconds = time.perf_counter() - started
    ray.shutdown()
    result = {
        "rows": arguments.rows,
        "strategy": arguments.strategy,
        "cpus": os.cpu_count(),
        "product_seconds": round(bare, 2),
        "mining_seconds": round(seconds, 2),
        "rate": round(bare / seconds, 2),
        **triplets.summary(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
