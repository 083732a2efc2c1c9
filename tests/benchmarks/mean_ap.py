"""The mAP of queries among all rows of a data set, from all scores at once: what tests/benchmarks/evaluate.py compares.

    python tests/benchmarks/mean_ap.py numpy|torchmetrics|pytorch_metric_learning ROWS.npz QUERIES

ROWS.npz has `vectors`, float32 (N, D), and `labels`, int64 (N,). The first QUERIES rows are the queries, each of which
leaves its own list. Prints the mAP and the seconds of clock and CPU, reading left out. This file imports nothing of
dim, because the Python that has PyTorch may be another.
"""

import json
import sys
import time

import numpy as np


def with_numpy(vectors: np.ndarray, labels: np.ndarray, queries: int) -> float:
    scores = vectors[:queries] @ vectors.T
    np.fill_diagonal(scores, -2)
    order = np.argsort(-scores, axis=1)
    right = labels[order] == labels[:queries, None]
    right[:, -1] = False  # the query itself
    aps = []
    for found in right:
        (ranks,) = np.nonzero(found)
        hits = np.arange(len(ranks))
        before = np.where(ranks == 0, 1.0, hits / np.maximum(ranks, 1))
        if len(ranks):
            aps.append(((before + (hits + 1) / (ranks + 1)) / 2).mean())
    return float(np.mean(aps))


def with_torchmetrics(vectors: np.ndarray, labels: np.ndarray, queries: int) -> float:
    import torch
    from torchmetrics.retrieval import RetrievalMAP

    scores = torch.from_numpy(vectors[:queries]) @ torch.from_numpy(vectors).T
    right = torch.from_numpy(labels[:queries, None] == labels)
    others = ~torch.eye(queries, len(labels), dtype=torch.bool)
    numbers = torch.arange(queries)[:, None].expand(scores.shape)
    return float(RetrievalMAP(empty_target_action="skip")(scores[others], right[others], indexes=numbers[others]))


def with_pytorch_metric_learning(vectors: np.ndarray, labels: np.ndarray, queries: int) -> float:
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    rows, of = torch.from_numpy(vectors), torch.from_numpy(labels)
    calculator = AccuracyCalculator(include=("mean_average_precision",), k=len(rows) - 1)
    found = calculator.get_accuracy(rows[:queries], of[:queries], rows, of, ref_includes_query=True)
    return float(found["mean_average_precision"])


def main() -> None:
    library, path, queries = sys.argv[1:]
    with np.load(path) as arrays:
        vectors, labels = arrays["vectors"], arrays["labels"]
    started, worked = time.perf_counter(), time.process_time()
    value = globals()[f"with_{library}"](vectors, labels, int(queries))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    print(json.dumps({"map": value, "seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2)}))


if __name__ == "__main__":
    main()
