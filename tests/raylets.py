"""A cluster of raylets of different size on this machine, for tests/test_raylets.py: prints what jobs take as it grows.

It starts at a head that does no work. A node with a GPU, which is no more than a number to Ray, and one with more CPUs
join later. Run as a process of its own: a test session has a Ray of its own.
"""

import json
import logging
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from dim.app import cluster, worker_placement
from dim.extract import photo_tables, pipeline
from dim.extract.config import ExtractConfig
from dim.extract.job import extract
from dim.extract.resources import resolve_precision, resources
from dim.io import tables
from dim.model import devices

MAY_COME = {"autoscaled_4CPU_1GPU": 2, "autoscaled_6CPU": 1}
PHOTOS = 24


class StandIn:
    """A network that writes down on which GPUs it runs."""

    def __init__(self, _, dtype, __):
        self._dtype = dtype

    def __call__(self, table):
        Path(os.environ["RAYLETS_GPUS"]).write_text(json.dumps(devices.assigned_gpus()))
        images = photo_tables.images(table)
        vectors = np.ones((len(images), 8), np.float32)
        return photo_tables.embedded(table, vectors, self._dtype)


class Said(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def taken():
    """What jobs take of the cluster as it is."""
    many = 10**6
    return {
        "trainers": {
            f"{workers} × {gpus}": worker_placement.worker_cpus(worker_placement.cpu_share(workers, gpus), gpus)
            for workers, gpus in ((1, 1), (2, 1), (2, 0.5), (1, 0), (2, 0))
        },
        "actors": {photos: resources(None, None, None, 224, photos).workers for photos in (1, many)},
        "actors_without_gpus": {photos: resources(None, 0.0, None, 224, photos).workers for photos in (1, many)},
        "precision": resolve_precision("auto", 1),
    }


def extracted(folder, name, **options):
    """The result of an extraction of a few photos, and the GPUs on which it ran."""
    columns = {"image_id": [], "path": []}
    for number in range(PHOTOS):
        path = folder / f"{number}.png"
        Image.fromarray(np.full((40, 50, 3), number, np.uint8)).save(path)
        columns["image_id"].append(str(number))
        columns["path"].append(path.as_uri())
    tables.write(str(folder / "photos.parquet"), pa.table(columns))
    found = extract(
        ExtractConfig(
            manifest=(folder / "photos.parquet").as_uri(),
            model="vgg16-gem",
            out=(folder / name).as_uri(),
            weights="random",
            image_size=32,
            **options,
        )
    )
    return found["ok"], json.loads(Path(os.environ["RAYLETS_GPUS"]).read_text())


def main(folder):
    os.environ["RAYLETS_GPUS"] = str(folder / "gpus.json")
    pipeline.Network = StandIn
    said = Said()
    logging.getLogger("dim").setLevel(logging.INFO)
    logging.getLogger("dim").addHandler(said)
    with tempfile.TemporaryDirectory(prefix="dim-", dir="/tmp") as own:  # the paths of its sockets must be short
        head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "resources": MAY_COME, "temp_dir": own}
        raylets = Cluster(initialize_head=True, head_node_args=head)
        os.environ["RAY_ADDRESS"] = raylets.address
        try:
            print(json.dumps(grown(raylets, folder, said)))
        finally:
            raylets.shutdown()


def grown(raylets, folder, said):
    """What jobs take, and say, as nodes join."""
    found = {}
    with cluster.connected():
        found["before"] = taken()
        said.lines.clear()
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(extracted, folder, "waited")
            while not (waiting.done() or any(line.startswith("waiting") for line in said.lines)):
                time.sleep(0.1)
            found["said"] = [line for line in said.lines if line.startswith("waiting")]
            raylets.add_node(num_cpus=4, num_gpus=1)
            found["waited"] = waiting.result()
        # There is a GPU for one of them only.
        found["several"] = extracted(folder, "several", workers=2, batch_size=4)
        raylets.add_node(num_cpus=6)
        while len(cluster.nodes()) < 3:
            time.sleep(0.1)
        found["after"] = taken()
        found["without"] = extracted(folder, "without", gpus_per_worker=0.0)
        asked = ray.remote(devices.assigned_gpus)
        found["assigned"] = [ray.get(asked.options(num_gpus=gpus).remote()) for gpus in (0, 1)]
        cluster.autoscaled_nodes = list  # nothing more: the nodes that are there are asked
        found["precisions"] = [resolve_precision("auto", 0), devices.best_precision(gpu=False)]
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
