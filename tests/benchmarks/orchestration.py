"""How much of many accelerators' time the pipeline of extract.py loses, on one machine, with accelerators that wait.

    python tests/benchmarks/orchestration.py

The network is replaced by a stage that waits as long as an accelerator would, 64 images in 1.0 s, and needs no CPU; Ray
is told of as many GPUs as there are such actors. Photos are 32 × 32 JPEGs, read and decoded as always. Prints one JSON
line; `efficiency` is the share of the actors' time in which they have images, between the moment at which all have
begun and that at which the first has nothing more to do; `driver_cpu_ms` the driver's CPU time for 1,000 images.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from PIL import Image

from dim.extract import photo_tables, pipeline
from dim.extract.embedder import Recipe
from dim.extract.resources import resources
from dim.model import spec

IMAGES_A_SECOND = 64
SIDE = 32
CPUS = 3  # that Ray is told of, so that as many photos are decoded at a time as on a small node
FILES = 256


class Accelerator:
    """Waits, and says from when to when. An actor's threads take turns: an accelerator does one thing at a time."""

    def __init__(self) -> None:
        self._turn = threading.Lock()

    def __call__(self, table: pa.Table) -> pa.Table:
        images = photo_tables.images(table)
        with self._turn:
            started = time.time()
            time.sleep(len(images) / IMAGES_A_SECOND)
            ended = time.time()
        return pa.table({"actor": [os.getpid()], "start": [started], "end": [ended], "images": [len(images)]})


def photos(folder: Path, count: int) -> pa.Table:
    """Rows for the pipeline: `count` photos, in `FILES` files."""
    random = np.random.default_rng(0)
    paths = []
    for number in range(FILES):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(file, "JPEG")
        paths.append(str(folder / f"{number}.jpg"))
        Path(paths[-1]).write_bytes(file.getvalue())
    return pa.table(
        {
            "image_id": [str(row) for row in range(count)],
            "path": [paths[row % FILES] for row in range(count)],
            "box": pa.nulls(count, pa.list_(pa.float64())),
            "content": [""] * count,
            "shard": [""] * count,
        }
    )


def measured(actors: int, calls: int, folder: Path) -> dict[str, Any]:
    """The efficiency of so many actors, each of which gets about so many windows of images."""
    quiet = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    ray.init(address="local", num_cpus=CPUS, num_gpus=actors, **quiet)
    recipe = Recipe(spec.resolve("vgg16-gem", "random", image_size=SIDE), "float32")
    machine = resources(None, None, IMAGES_A_SECOND, SIDE, sys.maxsize)
    rows = photos(folder, actors * calls * pipeline.WINDOW_BATCHES * IMAGES_A_SECOND)
    driver = time.process_time()
    dataset = pipeline.staged(rows, recipe, machine, Accelerator, ())
    log = pa.concat_tables(dataset.iter_batches(batch_size=None, batch_format="pyarrow")).to_pandas()
    driver = time.process_time() - driver
    ray.shutdown()
    by_actor = log.groupby("actor")
    begin, end = by_actor["start"].min().max(), by_actor["end"].max().min()
    busy = (log["end"].clip(begin, end) - log["start"].clip(begin, end)).sum()
    return {
        "actors": log["actor"].nunique(),
        "images": int(log["images"].sum()),
        "seconds": round(end - begin, 1),
        "images_per_second": round(busy * IMAGES_A_SECOND / (end - begin), 1),
        "efficiency": round(busy / (end - begin) / actors, 3),
        "driver_cpu_ms": round(1e6 * driver / len(rows), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", default="1,4,8,16")
    parser.add_argument("--calls", type=int, default=5, help="windows of images for each actor, of 8 s each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [measured(int(actors), arguments.calls, Path(folder)) for actors in arguments.actors.split(",")]
    print(json.dumps({"cpus": os.cpu_count(), "images_per_second_of_an_actor": IMAGES_A_SECOND, "runs": runs}))


if __name__ == "__main__":
    main()
