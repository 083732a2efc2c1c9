"""The presets of train.py on a set: mAP of the returned networks on split test, and the gain of each preset.

    python tests/benchmarks/presets.py $DIM_BENCH/manifest.csv --out runs/presets
    python tests/benchmarks/presets.py $DIM_BENCH/manifest.csv --out runs/presets --other runs/grocery/manifest.parquet

Trains each preset with each seed, then extracts split test with the network that the run returned. With --other, also
measures these networks on split test of another set, beside a network that was not trained but has the PCA of the first
set. Prints one JSON line: mAP of each network, the mean of each preset, and the mean gain with its 95 % interval
(paired by query; the AP of a query is its mean over the seeds). Run it again to resume.
"""

import argparse
import json
import shlex
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dim.evaluate.significance import paired_test

JOBS = Path(__file__).resolve().parents[2] / "jobs"
PRESETS = ("fast", "best")


def job(name: str, out: Path, *flags: str) -> dict[str, Any]:
    """The result of a job whose --out is `out`; if it is there already, it is not run again."""
    known = out / "result.json"
    if not known.exists():
        command = [sys.executable, str(JOBS / f"{name}.py"), *flags, "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return dict(json.loads(known.read_text()))


def seconds(out: Path) -> dict[str, int]:
    """How long the run `out` took."""
    record = json.loads((out / "run.json").read_text())
    began, ended = (datetime.fromisoformat(record[name]) for name in ("started", "finished"))
    return {"seconds": round((ended - began).total_seconds())}


class Queries:
    """AP and object of each query of split test of the set `manifest`, as found by a network."""

    def __init__(self, manifest: str, out: Path, *network: str) -> None:
        self.map = job("evaluate", out, "--manifest", manifest, "--split", "test", "--no-report", *network)["map"]
        table = pq.read_table(out / "per_query.parquet").sort_by("query_id")
        table = table.filter(pc.greater(table["n_positives"], 0))  # the others have no AP
        self.ap, self.labels = table["ap"].to_numpy(), np.array(table["label"].to_pylist())


def untrained(manifest: str, other: str, out: Path) -> Queries:
    """The network off the shelf, with the PCA of the set `manifest`, on the set `other`."""
    photos, whitening = out / "train", out / "whitening"
    job("extract", photos, "--manifest", manifest, "--model", "vgg16-gem", "--split", "train")
    if not (whitening / "pca.npz").exists():
        flags = ["--manifest", manifest, "--descriptors", str(photos), "--out", str(whitening / "pca.npz")]
        subprocess.run([sys.executable, str(JOBS / "whiten.py"), *flags], check=True, stdout=subprocess.DEVNULL)
    return Queries(other, out / "pca", "--model", "vgg16-gem", "--whitening", str(whitening / "pca.npz"))


def gain(before: list[Queries], after: list[Queries]) -> list[float]:
    """The gain of the mean AP, and its 95 % interval."""
    means = [np.mean([one.ap for one in queries], axis=0) for queries in (before, after)]
    found = paired_test(*means, before[0].labels)
    return [round(value, 4) for value in (float(np.mean(means[1] - means[0])), found.low, found.high)]


def measured(found: dict[str, list[Queries]]) -> dict[str, Any]:
    """The figures of each kind of network, and the gains from each kind to the next."""
    kinds = list(found)
    return {
        "map": {kind: [round(one.map, 4) for one in queries] for kind, queries in found.items()},
        "mean": {kind: round(float(np.mean([one.map for one in queries])), 4) for kind, queries in found.items()},
        "gain": {
            f"{kinds[i]} to {kinds[j]}": gain(found[kinds[i]], found[kinds[j]])
            for i in range(len(kinds))
            for j in range(i + 1, len(kinds))
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", help="photos with label and split")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=PRESETS)
    parser.add_argument("--other", help="another set with a split test")
    parser.add_argument("--train", default="", help="further flags of train.py, such as --train='--image-size 224'")
    arguments = parser.parse_args()
    out, result, further = arguments.out, {}, shlex.split(arguments.train)
    found: dict[str, list[Queries]] = {"off the shelf": [], **{preset: [] for preset in arguments.presets}}
    elsewhere: dict[str, list[Queries]] = {}
    found["off the shelf"].append(Queries(arguments.manifest, out / "plain", "--model", "vgg16-gem"))
    if arguments.other:
        elsewhere = {"off the shelf with PCA": [untrained(arguments.manifest, arguments.other, out / "untrained")]}
    for preset in arguments.presets:
        for seed in arguments.seeds:
            run = out / f"{preset}-{seed}"
            flags = ["--manifest", arguments.manifest, "--preset", preset, "--seed", str(seed), *further]
            trained = job("train", run, *flags)
            result[run.name] = {key: trained[key] for key in ("map_fitted", "val_after", "best_epoch")} | seconds(run)
            network = ("--model", str(run / "model"))
            found[preset].append(Queries(arguments.manifest, run / "test", *network))
            if arguments.other:
                elsewhere.setdefault(preset, []).append(Queries(arguments.other, run / "other", *network))
    print(json.dumps({"runs": result, "test": measured(found)} | ({"other": measured(elsewhere)} if elsewhere else {})))


if __name__ == "__main__":
    main()
