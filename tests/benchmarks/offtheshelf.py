"""Off-the-shelf networks on a set of photos, held against figures of an independent extraction.

    python tests/benchmarks/offtheshelf.py offtheshelf.json --photos $DIM_BENCH --out runs/offtheshelf

The folder of photos has a manifest.csv with splits train and test. Each pooling at each layer is extracted in float32
(split test) and bfloat16 (all), and a PCA is fitted on split train. Prints one JSON line: for each figure the value
found, the one expected and whether they are as near as they must be; ends in status 1 unless all are. Run it again to
resume: what is extracted stays.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray

from dim.data import manifest as manifests
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.extract import descriptors
from dim.extract.config import ExtractConfig
from dim.extract.job import extract
from dim.io import tables
from dim.whiten.config import WhitenConfig
from dim.whiten.job import whiten

TOLERANCES = {"float32": 0.003, "bfloat16": 0.006}
PCA_TOLERANCE = 0.01
COSINE = 0.9999
PCA = {"map_pca512_power0.25": 0.25, "map_pca512_power0.5": 0.5}


class Figure(NamedTuple):
    name: str
    found: float
    expected: float
    near: bool


def near(name: str, found: float, expected: float, tolerance: float) -> Figure:
    return Figure(name, round(found, 5), expected, abs(found - expected) <= tolerance)


def map_of(folder: Path, manifest: str, whitening: str | None = None) -> float:
    out = folder.with_name(f"{folder.name}-{Path(whitening).stem if whitening else 'plain'}")
    config = EvaluateConfig(
        manifest=manifest, descriptors=(str(folder),), whitening=whitening, split="test", out=str(out)
    )
    return float(evaluate(config)["map"])


def measured(network: str, expected: dict[str, float], manifest: str, out: Path) -> Iterator[Figure]:
    """The figures of one network, such as "gem@block5_conv3", whose descriptors are kept in `out`."""
    for precision, tolerance in TOLERANCES.items():
        folder = out / f"{network}-{precision}"
        split = "test" if precision == "float32" else None  # float32 is slow
        extract(
            ExtractConfig(
                manifest=manifest, model=f"vgg16-{network}", precision=precision, split=split, out=str(folder)
            )
        )
        yield near(f"{network} {precision}", map_of(folder, manifest), expected["map"], tolerance)
    for name, power in PCA.items():
        file = str(out / f"{network}-{name}.npz")
        whiten(WhitenConfig(manifest=manifest, descriptors=str(folder), dimension=512, power=power, out=file))
        yield near(f"{network} {name}", map_of(folder, manifest, file), expected[name], PCA_TOLERANCE)


def least_cosine(network: str, arrays: Path, manifest: str, out: Path) -> Figure:
    """The least cosine between the descriptors of the file and float32 ones of the same photos."""
    with np.load(arrays, allow_pickle=False) as known:
        ids, vectors = known["image_id"].tolist(), known[network.replace("@", "_")].astype(np.float64)
    photos = manifests.read(manifest)
    row_of = {image_id: row for row, image_id in enumerate(photos.image_ids)}
    table = photos.table.take([row_of[image_id] for image_id in ids])
    paths = pa.array([photos.paths[row_of[image_id]] for image_id in ids])
    few = str(out / "few.csv")
    tables.write(few, table.set_column(table.column_names.index("path"), "path", paths))
    folder = str(out / f"{network}-few")
    extract(ExtractConfig(manifest=few, model=f"vgg16-{network}", precision="float32", out=folder))
    mine = descriptors.read(folder, manifests.read(few)).vectors
    cosine = float(np.min(np.sum(mine * vectors, axis=1) / np.linalg.norm(vectors, axis=1)))
    return Figure(f"{network} cosine", round(cosine, 7), COSINE, cosine >= COSINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("expected", type=Path, help="JSON: results by network, each with map and map_pca512_…")
    parser.add_argument("--descriptors", type=Path, help=".npz of expected descriptors by network, and image_id")
    parser.add_argument(
        "--photos", type=Path, default=os.environ.get("DIM_BENCH"), required="DIM_BENCH" not in os.environ
    )
    parser.add_argument("--out", type=Path, default=Path("runs/offtheshelf"))
    parser.add_argument("--network", action="append", help="only this one, such as gem@block5_conv3")
    arguments = parser.parse_args()
    results = json.loads(arguments.expected.read_text(encoding="utf-8"))["results"]
    manifest = str(Path(arguments.photos) / "manifest.csv")
    arguments.out.mkdir(parents=True, exist_ok=True)
    ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    figures = []
    for network in arguments.network or results:
        for figure in measured(network, results[network], manifest, arguments.out):
            figures.append(figure)
            print(*figure, file=sys.stderr, flush=True)
        if arguments.descriptors:
            figures.append(least_cosine(network, arguments.descriptors, manifest, arguments.out))
    ray.shutdown()
    all_near = all(figure.near for figure in figures)
    print(json.dumps({"figures": [figure._asdict() for figure in figures], "all_near": all_near}))
    sys.exit(not all_near)


if __name__ == "__main__":
    main()
