"""How good groups without labels are, and what finding them costs.

    python tests/benchmarks/groups.py quality --photos $DIM_BENCH --descriptors runs/descriptors --split test
    python tests/benchmarks/groups.py kmeans --rows 20000
    python tests/benchmarks/groups.py growth --rows 1000000 --factory IVF4096,Flat --parameters nprobe=8 --out DIR

`quality` groups the photos of a manifest.csv, with its labels hidden, and prints pairwise precision, recall and F1,
and the adjusted Rand index: at the threshold that is chosen, and at the best one by the labels.

`kmeans` compares two ways to find pairs of similar photos, at equal numbers of products. NeMo Curator clusters by
k-means and compares photos within a cluster; an inverted file compares a photo with the photos of several clusters.
Prints the share that each finds of all pairs above the threshold.

`growth` runs group.py on synthetic descriptors, ten photos an object, with an index or without, and prints the seconds
of the jobs and the largest memory of a process.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from dim.data import manifest as manifests
from dim.group import corrections, neighbours, threshold
from dim.group.components import Grouper
from dim.io import tables
from dim.search import descriptor_folder, exact
from dim.search.database import Exact

JOBS = Path(__file__).resolve().parents[2] / "jobs"
NEIGHBOURS = 10


def grouper_of(database: Exact, size: int) -> Grouper:
    """Exact neighbours of all photos, ready to be grouped."""
    found = neighbours.by_comparison(database, neighbours.unknown(size, NEIGHBOURS))
    return Grouper(database, found, 0.0, corrections.none(), 10**6)


def figures(groups: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Pairwise precision, recall and F1, and the adjusted Rand index."""
    table = pd.DataFrame({"group": groups, "truth": truth})
    pairs = {}
    for name, columns in (("both", ["group", "truth"]), ("group", "group"), ("truth", "truth")):
        sizes = table.groupby(columns).size()
        pairs[name] = (sizes * (sizes - 1) / 2).sum()
    precision, recall = pairs["both"] / max(1, pairs["group"]), pairs["both"] / pairs["truth"]
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    found = {"precision": precision, "recall": recall, "f1": f1, "ari": adjusted_rand_score(truth, groups)}
    return {name: round(float(value), 4) for name, value in found.items()}


def quality(arguments: argparse.Namespace) -> None:
    chosen = manifests.read(str(Path(arguments.photos) / "manifest.csv")).select(arguments.split)
    rows = descriptor_folder.read(arguments.descriptors, arguments.whitening, chosen)
    truth = pd.factorize(np.array(chosen.table["label"].take(rows.rows).to_pylist(), object))[0]
    grouper = grouper_of(Exact(rows.parts, exact.tie_order_of(rows.ids)), len(rows))
    curve = threshold.curve(grouper)
    measured = {float(one): figures(grouper.grouped(one).groups, truth) for one in curve.thresholds}
    best = max(measured, key=lambda one: measured[one]["f1"])
    print(json.dumps({"photos": len(rows), "threshold": curve.best, **measured[curve.best], "best_threshold": best,
                      **{f"best_{name}": value for name, value in measured[best].items()}}))  # fmt: skip


def synthetic(rows: int, dimension: int, each: int = 10) -> np.ndarray:
    """Descriptors of `rows` / `each` objects, whose photos are similar by 0.7 in the mean, float32 (rows, dimension).

    Objects lie around 100 centres, so that some are similar.
    """
    generator = np.random.default_rng(0)
    kinds = generator.standard_normal((100, dimension), np.float32)
    objects = kinds[generator.integers(0, 100, rows // each)]
    objects = objects + 1.2 * generator.standard_normal(objects.shape, np.float32)
    vectors = np.repeat(objects, each, axis=0)
    for start in range(0, rows, 65536):
        block = vectors[start : start + 65536]
        block += generator.standard_normal(block.shape, np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return vectors


def kmeans(arguments: argparse.Namespace) -> None:
    vectors = synthetic(arguments.rows, 64)
    products = vectors @ vectors.T
    np.fill_diagonal(products, -1)
    pairs = products >= arguments.threshold
    wanted = int(pairs.sum())
    for clusters in (16, 64, 256):
        clustered = KMeans(clusters, n_init=1, max_iter=20, random_state=0).fit(vectors)
        labels, size = clustered.labels_, len(vectors)
        compared = int((np.bincount(labels).astype(np.int64) ** 2).sum())
        budget = size * clusters * clustered.n_iter_ + compared
        within = int(pairs[labels[:, None] == labels[None]].sum())
        lists = (clusters // 2, clusters, 2 * clusters)
        found, spent = max(by_index(vectors, pairs, count, budget) for count in lists)
        costs = {"products_kmeans": budget, "products_index": spent}
        shares = {"found_kmeans": round(within / wanted, 4), "found_index": round(found / wanted, 4)}
        print(json.dumps({"clusters": clusters, "pairs": wanted // 2, **costs, **shares}))


def by_index(vectors: np.ndarray, pairs: np.ndarray, lists: int, budget: int) -> tuple[int, int]:
    """How many of `pairs` an inverted file finds with at most `budget` products, and these, training included."""
    index = faiss.index_factory(vectors.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = 40
    index.train(vectors)
    index.add(vectors)
    training = min(len(vectors), 40 * lists) * lists * index.cp.niter
    best = (0, 0)
    for probes in range(1, lists + 1):
        faiss.cvar.indexIVF_stats.reset()
        index.nprobe = probes
        _, near = index.search(vectors, NEIGHBOURS + 1)
        cost = training + 2 * len(vectors) * lists + faiss.cvar.indexIVF_stats.ndis
        if cost > budget:
            break
        listed = np.zeros_like(pairs)
        own = np.broadcast_to(np.arange(len(vectors))[:, None], near.shape)
        listed[own[near >= 0], near[near >= 0]] = True
        best = max(best, (int((pairs & (listed | listed.T)).sum()), cost))
    return best


def growth(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"{row:08}" for row in range(arguments.rows)]
    np.save(folder / "vectors.npy", synthetic(arguments.rows, 128))
    (folder / "ids.txt").write_text("\n".join(ids) + "\n")
    tables.write(str(folder / "photos.parquet"), pa.table({"image_id": ids, "path": ids}))
    descriptors, index, out = (str(folder / name) for name in ("descriptors", "index", "groups"))
    job("import", "embeddings", str(folder / "vectors.npy"), "--ids", str(folder / "ids.txt"), "--name", "synthetic",
        "--normalise", "--out", descriptors)  # fmt: skip
    flags = ["--manifest", str(folder / "photos.parquet"), "--descriptors", descriptors, "--out", out]
    seconds = {}
    if arguments.factory:
        seconds["index"] = job("index", "--descriptors", descriptors, "--factory", arguments.factory, "--out", index)
        flags += ["--index", index]
    if arguments.parameters:
        flags += ["--parameters", arguments.parameters]
    seconds["group"] = job("group", *flags)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    groups = pq.read_table(f"{out}/groups.parquet", filters=[("level", "=", "object")], columns=["image_id", "group"])
    names = pd.factorize(np.array(groups["group"].to_pylist(), object))[0]
    truth = np.array(groups["image_id"].to_pylist()).astype(np.int64) // 10
    threshold = json.loads((Path(out) / "result.json").read_text())["threshold"]
    print(json.dumps({"rows": arguments.rows, "threshold": threshold, **figures(names, truth), "seconds": seconds,
                      "mib": memory}))  # fmt: skip


def job(name: str, *flags: str) -> int:
    """Runs a job, and returns its seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, JOBS / f"{name}.py", *flags], check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "kmeans", "growth"))
    parser.add_argument("--photos", default=os.environ.get("DIM_BENCH", "."))
    parser.add_argument("--descriptors", help="a folder that extract.py made of them")
    parser.add_argument("--whitening")
    parser.add_argument("--split")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--factory", help="search the neighbours in such an index")
    parser.add_argument("--parameters", help="search parameters of the index")
    parser.add_argument("--out", default="runs/groups-benchmark")
    arguments = parser.parse_args()
    {"quality": quality, "kmeans": kmeans, "growth": growth}[arguments.what](arguments)


if __name__ == "__main__":
    main()
