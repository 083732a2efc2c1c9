"""A miniature of ILIAS in its layout goes the whole way to its figure, and its extraction is killed on the way.

import.py → extract.py (killed, and run again) → index.py → search.py → evaluate.py --ranked
"""

import gzip
import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dim.data.config import ImportConfig
from dim.data.import_job import import_benchmark
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.io import tables
from dim.search.build_index import build
from dim.search.config import IndexConfig, SearchConfig
from dim.search.job import search

OBJECTS, TARS, KEYS = 3, 2, 6
NETWORK = {"model": "vgg16-gem", "weights": "random", "image_size": 32, "precision": "float32", "batch_size": 4}
BROKEN = "0000.tar/00000002"  # a member that is no photo
CUT = "0001.tar/00000005"  # the member in which a tar is cut off


def photo(seed, place=None):
    """A photo of noise; with `place`, one that shows there the object of this number, which is noise of its own."""
    pixels = np.random.default_rng(1000 + seed).integers(100, 156, (48, 64, 3))
    if place is not None:
        number, x, y = place
        pixels[y : y + 32, x : x + 32] = (
            np.random.default_rng(number).integers(0, 2, (4, 4, 3)).repeat(8, 0).repeat(8, 1) * 255
        )
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def pack(contents):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def source(tmp_path):
    """Three objects with a query and two positives each, and two tars with six distractors each."""
    top = tmp_path / "ilias"
    (top / "image_ids").mkdir(parents=True)
    (top / "yfcc100m").mkdir()
    queries, positives, distractors = [], [], []
    for number in range(OBJECTS):
        name = f"odd_bimp_{number:03d}"
        places = {f"query/Q{number:03d}_00": (8, 8), f"pos/P{number:03d}_00": (8, 8), f"pos/P{number:03d}_01": (20, 12)}
        for seed, (image, (x, y)) in enumerate(places.items()):
            path = top / "ilias_core" / name / f"{image}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo(10 * number + seed, (number, x, y)))
            path.with_name(f"{path.stem}_bbox.txt").write_text(f"{x} {y} 32 32\n")
        queries.append(f"{name}/query/Q{number:03d}_00,0.3")
        positives += [f"{name}/pos/P{number:03d}_00,0.05,10", f"{name}/pos/P{number:03d}_01,0.3,60"]
    for tar in range(TARS):
        ids = [f"{tar:04d}.tar/{key:08d}" for key in range(KEYS)]
        distractors += ids
        contents = {f"{key:08d}.jpg": photo(100 * (tar + 1) + key) for key in range(KEYS)}
        contents |= {f"{key:08d}.jpg": b"no photo" for key in range(KEYS) if ids[key] == BROKEN}
        whole = pack(contents)
        cut = whole.index(contents[f"{KEYS - 1:08d}.jpg"]) + 100 if tar == TARS - 1 else len(whole)
        (top / "yfcc100m" / f"{tar:04d}.tar").write_bytes(whole[:cut])
    for name, lines in {"image_query_ids": queries, "positive_ids": positives}.items():
        (top / "image_ids" / f"{name}.txt").write_text("\n".join(lines))
    (top / "image_ids" / "distractor_ids.txt.gz").write_bytes(gzip.compress("\n".join(distractors).encode()))
    return top


def figures_of(rows, descriptors):
    """mAP and its value for small objects, by the definition, from the descriptors of all readable photos."""
    database = [row for row in rows if row["role"] == "database" and row["image_id"] in descriptors]
    values = {"all": [], "small": []}
    for query in (row for row in rows if row["role"] == "query"):
        order = sorted(
            database, key=lambda row: (-descriptors[query["image_id"]] @ descriptors[row["image_id"]], row["image_id"])
        )
        for name, largest in (("all", 1.0), ("small", 0.0688)):
            right = [
                row["label"] == query["label"] and row["scale"] < largest
                for row in order
                if row["label"] != query["label"] or row["scale"] < largest
            ]
            values[name].append(sum(sum(right[:rank]) / rank for rank, hit in enumerate(right, 1) if hit) / sum(right))
    return np.mean(values["all"]), np.mean(values["small"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_miniature_goes_the_whole_way(source, start, tmp_path, ray_session):
    def out(name):
        return str(tmp_path / name)

    imported = import_benchmark(ImportConfig("ilias", str(source), out("imported")))
    manifest = out("imported/manifest.parquet")
    assert (imported["distractors"], imported["queries"], imported["corrupt"]) == (TARS * KEYS, OBJECTS, 1)
    assert tables.read(out("imported/problems.csv"))["path"].to_pylist() == [f"{source}/yfcc100m/0001.tar"]

    flags = [part for name, value in NETWORK.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    flags += ["--manifest", manifest, "--shard-rows", "4"]
    job = start("extract", out("descriptors"), *flags, decode_seconds=0.2, write_seconds=0.5)
    if job.until(lambda: list(job.out.glob("part-*.parquet"))):
        job.kill()
    job.end()
    status, result = start("extract", out("descriptors"), *flags).end()
    assert status == 0 and (result["images"], result["errors"]) == (len(tables.read(manifest)), 2)
    stored = pa.concat_tables([pq.read_table(path) for path in job.out.glob("part-*.parquet")]).to_pylist()
    assert sorted(row["image_id"] for row in stored if row["status"] == "error") == [BROKEN, CUT]
    assert len({row["image_id"] for row in stored}) == len(stored) == result["images"]

    assert build(IndexConfig(descriptors=out("descriptors"), out=out("index")))["rows"] == len(stored) - 2
    search(SearchConfig(index=out("index"), queries=manifest, out=out("found"), top=1000, report=False, **NETWORK))
    found = evaluate(
        EvaluateConfig(manifest=manifest, ranked=out("found/ranked.parquet"), out=out("measured"), protocol="ilias")
    )
    descriptors = {row["image_id"]: np.array(row["descriptor"]) for row in stored if row["status"] == "ok"}
    everything, small = figures_of(tables.read(manifest).to_pylist(), descriptors)
    assert found["map"] == pytest.approx(everything, abs=1e-12)
    assert found["scale"]["0-0.0688"]["map"] == pytest.approx(small, abs=1e-12)
    assert (found["n_queries"], found["oracle"], found["clutter"]["0-18"]["n_queries"]) == (OBJECTS, 1.0, OBJECTS)
