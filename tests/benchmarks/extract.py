"""extract.py in its steady state, against a single-process loop, the bare forward pass, and float32 one at a time.

    python tests/benchmarks/extract.py --manifest $DIM_BENCH/manifest.csv

The photos are repeated to 5,000, 224 × 224 squash. The job runs as always, in this process and Ray's; once it is warm,
windows of it take turns with windows of the others, during which Ray's workers are stopped (SIGSTOP). The others run in
a process of their own: `loop` is Pillow's decode and the same tf.function, `bare` that function on arrays in memory,
both in the precision of the job; `one` is TensorFlow in float32 with one image at a time, decode included. Prints one
JSON line: images a second of all windows, and for each the median of the ratios of the job's windows to those after.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from processes import command_line, family

from dim.data import manifest as manifests
from dim.extract import pipeline
from dim.extract.config import ExtractConfig
from dim.extract.embedder import Recipe, set_up_tensorflow
from dim.extract.job import extract
from dim.io import files, tables
from dim.model import spec
from dim.model.devices import best_precision

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "dim" / "assets" / "demo" / "manifest.csv"
SIZE, BATCH, WARM = 224, 32, 4
KINDS = ("loop", "bare", "one")


def decoded(path: str) -> np.ndarray:
    """A photo as a plain loop decodes it."""
    image = Image.open(io.BytesIO(Path(path).read_bytes())).convert("RGB")
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def forward(precision: str) -> Callable[[np.ndarray], np.ndarray]:
    """The network as a tf.function of one trace, as `Embedder` runs it."""
    import tensorflow as tf

    from dim.model import network

    model = network.load(Recipe(spec.resolve("vgg16-gem"), precision).source, precision)
    signature = [tf.TensorSpec((None, None, None, 3), tf.uint8)]
    function = tf.function(lambda images: model(images, training=False), input_signature=signature)
    return lambda images: function(images).numpy()


def serve(paths: list[str], precision: str, pipe: Connection) -> None:
    """For each (kind, images) that comes: does so many, and answers with images a second."""
    set_up_tensorflow(os.cpu_count() or 1)
    fast, plain = forward(precision), forward("float32")
    photos = cycle(paths)
    held = np.stack([decoded(next(photos)) for _ in range(BATCH)])
    fast(held), plain(held[:1])
    pipe.send("ready")
    while message := pipe.recv():
        kind, images = message
        started = time.perf_counter()
        for _ in range(images if kind == "one" else images // BATCH):
            if kind == "bare":
                fast(held)
            elif kind == "loop":
                fast(np.stack([decoded(next(photos)) for _ in range(BATCH)]))
            else:
                plain(decoded(next(photos))[None])
        pipe.send(images / (time.perf_counter() - started))


class Enough(Exception):
    """All windows are done."""


class Windows:
    """Lets the job run in windows of `batches` batches, and measures the others between them."""

    def __init__(self, pipe: Connection, pairs: int, batches: int) -> None:
        self._pipe, self._pairs, self._batches = pipe, pairs, batches
        self.rates: dict[str, list[float]] = {kind: [] for kind in ("job", *KINDS)}

    def over(self, results: Generator[pa.Table, None, None]) -> Generator[pa.Table]:
        """Hands on the job's results as they come."""
        with contextlib.closing(results):
            yield from self._over(results)

    def _over(self, results: Iterator[pa.Table]) -> Iterator[pa.Table]:
        rows, seen, started = 0, -WARM, 0.0
        for table in results:
            seen, rows = seen + 1, rows + table.num_rows
            if seen == 0:
                rows, started = 0, time.perf_counter()
            if seen == self._batches:
                self.rates["job"].append(rows / (time.perf_counter() - started))
                self._others()
                seen = -1  # the batch that was begun before
                if len(self.rates["job"]) == self._pairs:
                    raise Enough
            yield table

    def _others(self) -> None:
        workers = [pid for pid in family(os.getpid()) if command_line(pid).startswith("ray::")]
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        for kind in KINDS:
            self._pipe.send((kind, self._batches * BATCH // (4 if kind == "one" else 1)))
            self.rates[kind].append(self._pipe.recv())
        for pid in workers:
            os.kill(pid, signal.SIGCONT)


def ratio(rates: dict[str, list[float]], kind: str) -> float:
    """The median of the job's rate over that of `kind`, pair by pair."""
    return round(statistics.median(ours / theirs for ours, theirs in zip(rates["job"], rates[kind], strict=True)), 3)


def repeated(manifest: str, rows: int, file: str) -> list[str]:
    """Writes a manifest of the photos of another, repeated until they are `rows`; returns their paths."""
    photos = manifests.read(manifest)
    paths = [files.absolute(photos.paths[row % len(photos)]) for row in range(rows)]
    tables.write(file, pa.table({"image_id": [f"{row:06d}" for row in range(rows)], "path": paths}))
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", default=str(DEMO))
    parser.add_argument("--photos", type=int, default=5_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=8, help="of 32 images, in a window")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        paths = repeated(arguments.manifest, arguments.photos, f"{folder}/photos.csv")
        process = context.Process(target=serve, args=(paths, best_precision(False), there), daemon=True)
        process.start()
        here.recv()
        windows, run = Windows(here, arguments.pairs, arguments.batches), pipeline.run
        pipeline.run = lambda *arguments: windows.over(run(*arguments))
        try:
            extract(ExtractConfig(manifest=f"{folder}/photos.csv", model="vgg16-gem", out=f"{folder}/out"))
        except Enough:
            pass
        here.send(None)
        process.join()
    result: dict[str, Any] = {
        "photos": arguments.photos,
        "cpus": os.cpu_count(),
        "precision": best_precision(False),
        "images_per_second": {kind: [round(rate, 2) for rate in rates] for kind, rates in windows.rates.items()},
        "to_loop": ratio(windows.rates, "loop"),
        "to_bare": ratio(windows.rates, "bare"),
        "to_float32_one_at_a_time": ratio(windows.rates, "one"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
