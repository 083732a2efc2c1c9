"""The time of extract.py on a few photos from a cold start, against the least that any such job must do.

    python tests/benchmarks/coldstart.py --manifest $DIM_BENCH/manifest.csv

The least: a script that starts Ray, imports TensorFlow in one worker, builds the network there and runs one batch. Both
are run as commands of their own, in turn. Prints one JSON line; `ratio` is that of the medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dim.data import manifest as manifests
from dim.io import files, tables

REPOSITORY = Path(__file__).resolve().parents[2]
LEAST = """
import ray

ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")


@ray.remote(num_cpus=1)
def one_batch():
    import os
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    import numpy as np
    import tensorflow as tf
    from dim.model import network, spec
    from dim.model.devices import best
    model = network.load(spec.resolve("vgg16-gem"), best(False))
    return tf.function(lambda images: model(images, training=False))(np.zeros((32, 224, 224, 3), np.uint8)).numpy()


assert ray.get(one_batch.remote()).shape == (32, 512)
ray.shutdown()
"""


def few(manifest: str, photos: int, folder: str) -> str:
    """A manifest of the first `photos` of `manifest`."""
    found = manifests.read(manifest)
    table = found.table.slice(0, photos)
    paths = [files.absolute(path) for path in found.paths[:photos]]
    file = f"{folder}/few.csv"
    tables.write(file, table.set_column(table.column_names.index("path"), "path", [paths]))
    return file


def seconds(command: list[str]) -> float:
    """The wall time of a command, which must succeed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", default=str(REPOSITORY / "dim" / "assets" / "demo" / "manifest.csv"))
    parser.add_argument("--photos", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    job = [sys.executable, str(REPOSITORY / "jobs" / "extract.py"), "--model", "vgg16-gem", "--workers", "1"]
    least, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        manifest = few(arguments.manifest, arguments.photos, folder)
        for pair in range(arguments.pairs):
            least.append(seconds([sys.executable, "-c", LEAST]))
            ours.append(seconds([*job, "--manifest", manifest, "--out", f"{folder}/{pair}"]))
    result = {
        "photos": arguments.photos,
        "cpus": os.cpu_count(),
        "least_seconds": [round(value, 2) for value in least],
        "extract_seconds": [round(value, 2) for value in ours],
        "ratio": round(statistics.median(ours) / statistics.median(least), 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
