"""Mining against a bare matrix product of the same size (N × D by D × N), its growth and its memory, in one run.

    python tests/benchmarks/mining.py --rows 25000,100000
    python tests/benchmarks/mining.py --rows 25000,100000 --candidates PCA128,HNSW32_SQ8 \\
        --candidate-parameters efSearch=200 --product-share 0.02

Prints one JSON line. For each size: `rate` is the time of the full float32 product over that of mining 5 negatives and
4 positives of each row (1 means that mining, on Ray and with all its merging, takes as long as the product alone). A
share of the product is timed before and as much after mining. `peak_mib` is the PSS of the driver and Ray's workers,
its daemons left out, less the descriptors. `growth` is the time of the last size over that of the first. With
candidates, `recall` is the share of the exact 5 hardest negatives that is found, over 1,000 anchors.
"""

import argparse
import dataclasses
import json
import os
import time
from typing import Any

import numpy as np
import ray
from processes import MEBIBYTE, peak_of, timed

from dim.mine.config import Mining
from dim.mine.mining import mine
from dim.mine.triplets import Triplets

DIMENSION = 512
IMAGES_PER_LABEL = 10
SUBSPACE = 32
NEGATIVES = 5
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


def measured(rows: int, settings: Mining, share: float) -> dict[str, Any]:
    """What mining `rows` descriptors costs."""
    vectors, labels, ids = generated(rows)
    few = slice(0, 2000)
    mine(vectors[few], labels[few], ids[few], settings, block_rows=256)  # the workers have started
    before = product_seconds(vectors, share)
    with peak_of(os.getpid()) as peak:
        triplets, seconds = timed(mine, vectors, labels, ids, settings)
    bare = (before + product_seconds(vectors, share)) / 2
    found = {
        "rows": rows,
        "product_seconds": round(bare, 2),
        "mining_seconds": round(seconds, 2),
        "rate": round(bare / seconds, 3),
        "peak_mib": round((peak.bytes - vectors.nbytes) / MEBIBYTE),
        **triplets.summary(),
    }
    if settings.candidates:
        all_active = dataclasses.replace(settings, margin=ENOUGH, top=None, positives_per_anchor=1)
        found["recall"] = round(recall(vectors, labels, mine(vectors, labels, ids, all_active)), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="25000", help="one size, or several: 25000,100000")
    parser.add_argument("--strategy", choices=("hardest", "distinct"), default="hardest")
    parser.add_argument("--candidates", help="FAISS factory string of an index that proposes negatives")
    parser.add_argument("--candidate-parameters")
    parser.add_argument("--product-share", type=float, default=0.25, help="share of the product that is timed")
    arguments = parser.parse_args()
    settings = Mining(
        strategy=arguments.strategy,
        top=1600,
        negatives_per_anchor=NEGATIVES,
        candidates=arguments.candidates,
        candidate_parameters=arguments.candidate_parameters,
    )
    ray.init(address="local", include_dashboard=False, logging_level="ERROR")
    sizes = [measured(int(rows), settings, arguments.product_share) for rows in arguments.rows.split(",")]
    ray.shutdown()
    result = {
        "strategy": arguments.strategy,
        "candidates": arguments.candidates,
        "cpus": os.cpu_count(),
        "sizes": sizes,
        "growth": round(sizes[-1]["mining_seconds"] / sizes[0]["mining_seconds"], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
