"""Each job on small input of two kinds, and its readers: what stands at its output, as the next job would take it.

Ray and the network are stood in for, so that a job is one process and takes a fraction of a second.
"""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from PIL import Image

from dim.app import cluster, output_folder
from dim.audit.config import AuditConfig
from dim.audit.job import audit
from dim.data import ground_truth, manifest
from dim.data.config import ImportConfig, SplitConfig
from dim.data.import_job import import_benchmark
from dim.data.split import split
from dim.errors import UserError
from dim.evaluate import comparison
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.export.config import ExportConfig
from dim.export.job import LAYOUTS, export
from dim.extract import descriptors, own_process, store
from dim.extract import job as extraction
from dim.extract.config import ExtractConfig
from dim.extract.import_embeddings import import_embeddings
from dim.group.config import GroupConfig
from dim.group.job import group
from dim.io import files, tables
from dim.mine.config import MineConfig
from dim.mine.job import mine_folder
from dim.model import whitening
from dim.nightly.config import Measurement, NightlyConfig
from dim.nightly.job import nightly
from dim.search import descriptor_folder, exact, read_index
from dim.search.build_index import build
from dim.search.config import IndexConfig, SearchConfig
from dim.search.job import search
from dim.whiten.config import WhitenConfig
from dim.whiten.job import whiten

KINDS = ("old", "new")
PHOTOS = {"old": 14, "new": 10}  # of each of the labels: an output of the one has other rows than one of the other
LABELS = 5
NETWORK = {"model": "vgg16-gem", "weights": "random", "precision": "float32", "image_size": 32, "gpus_per_worker": 0}
OXFORD = {
    "gt/hall_1_query.txt": "oxc1_house_0 1 1 20 20\n",
    "gt/hall_1_good.txt": "house_0\nhouse_1\n",
    "gt/hall_1_ok.txt": "house_2\n",
    "gt/hall_1_junk.txt": "",
}


@dataclass(frozen=True, eq=False)
class _Object:
    """What stands for a reference to an object of Ray's."""

    value: object


class _Task:
    """What stands for a Ray task: it runs where it is called."""

    def __init__(self, function, returns=1):
        self._function, self._returns = function, returns

    def options(self, num_returns=1, **_):
        return _Task(self._function, num_returns)

    def remote(self, *arguments):
        found = self._function(*(one.value if isinstance(one, _Object) else one for one in arguments))
        return _Object(found) if self._returns == 1 else list(map(_Object, found))


def stand_in():
    """Takes the place of Ray and of the network in this process."""
    ray.put, ray.cancel = _Object, lambda _: None
    ray.get = lambda found: [one.value for one in found] if isinstance(found, list) else found.value
    ray.remote = lambda *function, **_: _Task(*function) if function else _Task
    ray.wait = lambda parts, num_returns=1: (parts[:num_returns], parts[num_returns:])
    ray.cluster_resources = lambda: {"CPU": 1}
    cluster.connected = contextlib.nullcontext
    ray.nodes = lambda: [{"Alive": True, "Resources": {"CPU": 1}, "Labels": {}}]
    # `dim.mine.job` has taken the name by now.
    mine_folder.__globals__["connected"] = contextlib.nullcontext
    own_process.run = _embedded


def _embedded(rows, recipe, dtype, _):
    for row in rows.to_pylist():
        pixels = np.asarray(Image.open(row["path"]), np.float32)
        vector = pixels.mean(axis=0).reshape(-1) - pixels.mean()
        known = {"descriptor": (vector / np.linalg.norm(vector)).tolist(), "status": store.OK, "width": 8, "height": 8}
        table = pa.Table.from_pylist([row | known], schema=store.schema(len(vector), dtype))
        yield table.append_column("shard", pa.array([row["shard"]])).append_column("several", pa.array([False]))


def make_input(root):
    """Photos, manifests, descriptors, an index and a benchmark of each kind, below the folder `root`."""
    for seed, kind in enumerate(KINDS):
        folder = root / kind
        rows = []
        for label in range(LABELS):
            colours = np.random.default_rng([seed, label]).integers(40, 215, (1, 8, 3))
            for number in range(PHOTOS[kind]):
                name = f"{label}/{number}.png"
                (folder / "photos" / str(label)).mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng([seed, label, number]).integers(-25, 26, (8, 8, 3))
                Image.fromarray((colours + noise).astype(np.uint8)).save(folder / "photos" / name)
                rows.append(
                    {
                        "image_id": name,
                        "path": f"photos/{name}",
                        "label": str(label),
                        "split": ("train", "test")[number % 2],
                    }
                )
        (folder / "photos" / "0" / f"broken {kind}.png").write_bytes(b"no photo")
        tables.write(str(folder / "photos.csv"), pa.Table.from_pylist(rows))
        np.save(folder / "vectors.npy", np.random.default_rng(seed).standard_normal((len(rows), 8), np.float32))
        (folder / "ids.txt").write_text("".join(f"{row['image_id']}\n" for row in rows))
        for name, content in OXFORD.items():
            (folder / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "set" / name).write_text(
                content.replace("house_2\n", "house_2\nhouse_3\n" if seed else "house_2\n")
            )
        for number in range(4 + seed):
            Image.new("RGB", (24, 24), (seed, number, 0)).save(folder / "set" / f"house_{number}.jpg")
        run("extract", kind, root, folder / "descriptors")
        run("index", kind, root, folder / "index")


def run(job, kind, root, out):
    """Runs `job` on the input of this kind."""
    RUNS[job](root / kind, str(out))


def _extract(given, out):
    extraction.extract(ExtractConfig(manifest=f"{given}/photos.csv", out=out, shard_rows=16, **NETWORK))


def _nightly(given, out):
    # The same manifest for both kinds, since a night is of one: what differs is the date.
    date = {"old": "2020-01-01", "new": "2020-01-02"}[given.name]
    shelf = Measurement(name="shelf", manifest=f"{given.parent}/old/photos.csv", split="test")
    nightly(NightlyConfig(out=out, date=date, evaluations=(shelf,), shard_rows=16, **NETWORK))


RUNS: dict[str, Callable[[Path, str], object]] = {
    "split": lambda given, out: split(SplitConfig(f"{given}/photos", f"{out}.csv", val_per_label=1, test_per_label=2)),
    "import": lambda given, out: import_benchmark(ImportConfig("oxford5k", f"{given}/set", out)),
    "import embeddings": lambda given, out: import_embeddings(
        ImportConfig("embeddings", f"{given}/vectors.npy", out, name="walk", ids=f"{given}/ids.txt", normalise=True)
    ),
    "extract": _extract,
    "whiten": lambda given, out: whiten(
        WhitenConfig(manifest=f"{given}/photos.csv", descriptors=f"{given}/descriptors", out=f"{out}.npz", dimension=8)
    ),
    "mine": lambda given, out: mine_folder(
        MineConfig(manifest=f"{given}/photos.csv", descriptors=f"{given}/descriptors", out=out, margin=4.0)
    ),
    "index": lambda given, out: build(IndexConfig(f"{given}/descriptors", out)),
    "search": lambda given, out: search(
        SearchConfig(index=f"{given}/index", queries=f"{given}/descriptors", out=out, top=5)
    ),
    "evaluate": lambda given, out: evaluate(
        EvaluateConfig(manifest=f"{given}/photos.csv", descriptors=(f"{given}/descriptors",), out=out)
    ),
    "audit": lambda given, out: audit(
        AuditConfig(manifest=f"{given}/photos.csv", descriptors=f"{given}/descriptors", out=out)
    ),
    "group": lambda given, out: group(
        GroupConfig(manifest=f"{given}/photos.csv", descriptors=f"{given}/descriptors", out=out)
    ),
    **{
        f"export {layout}": lambda given, out, layout=layout: export(
            ExportConfig(format=layout, out=out, descriptors=f"{given}/descriptors")
        )
        for layout in LAYOUTS
    },
    "nightly": _nightly,
}


def read(job, root, out):
    """What the readers of `job` find at `out`, equal for equal results. Raises UserError as they do."""
    return READERS.get(job, _sealed)(root, str(out))


def _sealed(_, out):
    """The files of a folder, all of which belong to it. (No job reads what these jobs leave.)"""
    if output_folder.record_of(out) is None:
        raise UserError(f"{out!r} is no output of a job")
    sealed = output_folder.verified_seal(out)
    found = {str(path.relative_to(out)) for path in Path(out).rglob("*") if path.is_file() and path.suffix != ".tmp"}
    assert sealed and found - {".lock", output_folder.RECORD, output_folder.RESULT} == sealed.keys(), (found, sealed)
    return {name: _sha256(f"{out}/{name}") for name in sorted(sealed) if not name.endswith(".html")}


def _sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _split(_, out):
    beside = f"{out}.unreadable.csv"
    listed = tables.read(beside).to_pydict() if files.exists(beside) else None
    return manifest.read(f"{out}.csv").table.to_pydict(), listed


def _import(_, out):
    photos = manifest.read(f"{out}/manifest.parquet")
    return photos.table.to_pydict(), ground_truth.read(f"{out}/ground_truth.parquet", photos).images


def _descriptors(root, out):
    rows = descriptor_folder.read(out)
    known = [manifest.read(f"{root}/{kind}/photos.csv") for kind in KINDS]
    asked = next(one for one in known if sorted(one.image_ids) == sorted(rows.ids.to_pylist()))
    in_memory = descriptors.read(out, asked)
    order = np.argsort(exact.tie_order_of(rows.ids))
    streamed = np.concatenate(list(rows))[order]
    placed = np.argsort(asked.image_ids[in_memory.rows])
    assert np.array_equal(in_memory.vectors[placed], streamed[np.argsort(rows.ids.take(order).to_numpy(False))])
    return rows.ids.take(order).to_pylist(), streamed.tobytes()


def _whitening(_, out):
    found = whitening.load(f"{out}.npz")
    return found.projection.tobytes(), found.learned_on


def _index(_, out):
    found = read_index.read(out, None, None)
    return found.ids.to_pylist(), found.database.take(np.arange(len(found.ids))).tobytes()


def _evaluation(_, out):
    metrics = f"{out}/metrics.json"
    comparison.require_unchanged(metrics)
    return files.read_json(metrics)["map"], comparison.read_per_query(metrics).to_pydict()


def _nights(_, out):
    rows = tables.read(f"{out}/history.csv").to_pylist()
    for row in rows:
        night = f"{out}/nights/{row['date']}"
        output_folder.verified_seal(f"{night}/shelf")
        assert files.read_json(f"{night}/shelf/metrics.json")["map"] == float(row["map"])
    output_folder.finished_record(out)
    return [(row["date"], row["status"], row["map"]) for row in rows]


READERS = {
    "split": _split,
    "import": _import,
    "extract": _descriptors,
    "import embeddings": _descriptors,
    "whiten": _whitening,
    "index": _index,
    "evaluate": _evaluation,
    "nightly": _nights,
}
