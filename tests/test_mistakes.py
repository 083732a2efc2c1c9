"""Mistakes: exit status 2, one line on stderr that names the value and what to do, and nothing written."""

import dataclasses
import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import faiss
import h5py
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from terminal import messages

from dim.extract import store
from dim.extract.embedding import IGNORED, NetworkEmbedding
from dim.io import files, tables
from dim.jobs import command
from dim.model import spec
from dim.model.whitening import Whitening

JOBS = Path(__file__).resolve().parents[1] / "jobs"
IDS = [f"{label}{number}" for label in "abcd" for number in range(3)]
SPLITS = ["train"] * 6 + ["test"] * 6
EMBEDDING = NetworkEmbedding(
    "vgg16", "block5_conv3", "gem", "random", "caffe", 32, "squash", (1.0,), None, None, "float32"
)

# Of dim before it applied colour profiles.
FIRST = dataclasses.replace(EMBEDDING, profiles=IGNORED)


def write_descriptors(folder, embedding=EMBEDDING, ids=IDS):
    folder.mkdir()
    files.write_json(str(folder / "run.json"), {"job": "extract", "inputs": {}, "embedding": embedding.as_json()})
    vectors = np.random.default_rng(0).standard_normal((len(ids), 8))
    columns = {
        "image_id": ids,
        "descriptor": (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32).tolist(),
        "status": [store.OK] * len(ids),
        **{name: [None] * len(ids) for name in ("error", "width", "height", "content")},
    }
    facts = store.write_shard(str(folder), "part-0", pa.table(columns, schema=store.schema(8)))
    files.write_json(str(folder / "part-0.json"), facts)  # as dim wrote it before there were seals


def write_whitening(path, embedding):
    eye, ones = np.eye(8), np.ones(8)
    about = {"manifest": "photos.csv", "split": "train", "rows": 12}
    Whitening(ones * 0, eye, ones, 0.25, "pca", about, embedding.as_json()).save(str(path))


def write_photos_and_tables(place):
    (place / "photos").mkdir()
    for row, image_id in enumerate(IDS):
        colours = np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(colours).save(place / "photos" / f"{image_id}.png")
    good = {
        "image_id": IDS,
        "path": [f"photos/{image_id}.png" for image_id in IDS],
        "label": [image_id[0] for image_id in IDS],
        "split": SPLITS,
    }
    manifests = {
        "photos": {},
        "twice": {"image_id": [*IDS[:-1], "a0"]},
        "no-path": {"path": None},
        "no-label": {"label": None},
        "dev": {"split": ["dev", *SPLITS[1:]]},
        "gone": {"path": [f"elsewhere/{image_id}.png" for image_id in IDS]},
        "singles": {"label": [f"label {row}" for row in range(12)]},
        "one-label": {"label": ["a"] * 12},
        "more": {"image_id": [f"new {row}" for row in range(12)]},
        "web": {"path": [f"{'photos' if row < 9 else 'https://a.b'}/{name}.png" for row, name in enumerate(IDS)]},
        "azure": {"path": [*(f"photos/{name}.png" for name in IDS[1:]), "abfs://account@evil.example/a.png"]},
        "windows": {"path": [f"C:\\photos\\{name}.png" for name in IDS]},
        "backslashes": {"path": [f"photos\\{name}.png" for name in IDS]},
    }
    for name, changes in manifests.items():
        columns = {column: values for column, values in (good | changes).items() if values is not None}
        tables.write(str(place / f"{name}.csv"), pa.table(columns))
    (place / "broken.parquet").write_bytes(b"PAR1 no more")
    (place / "photos.txt").write_text("a0")
    (place / "latin.csv").write_bytes("image_id,path\né,é.jpg\n".encode("latin-1"))
    (place / "parts.parquet").mkdir()
    (place / "parts.parquet" / "part-0.parquet").write_bytes(b"PAR1")
    (place / "book.xlsx").write_bytes(b"PK\3\4")
    for folder in ("splits/train/a", "splits/test/a", "wrapped/images/train/a", "wrapped/images/test/a"):
        (place / folder).mkdir(parents=True)
        shutil.copy(place / "photos" / "a0.png", place / folder)
    (place / "empty").mkdir()
    shutil.copytree(place / "photos", place / "set")
    (place / "set" / "a0.png").rename(place / "set" / "100000.jpg")


TRAINED = {"manifest": "photos.csv", "weights": "random", "image_size": 32, "precision": "float32", "margin": 0.3}


def write_outputs(place):
    write_descriptors(place / "descriptors")
    for name, record in (
        ("foreign", {"job": "elsewhere"}),
        ("broken-record", None),
        ("list-record", []),
        ("trained", {"job": "train", "configuration": TRAINED}),
    ):
        (place / name).mkdir()
        (place / name / "run.json").write_text('{"job": "extr' if record is None else json.dumps(record))

    for name, counts in (("lost", {"images": 20}), ("strange", {"images": 12})):
        write_descriptors(place / name)
        seal = {"part-0.parquet": {"rows": 12, "bytes": (place / name / "part-0.parquet").stat().st_size}}
        record = files.read_json(str(place / name / "run.json")) | {"counts": counts}
        files.write_json(str(place / name / "run.json"), record | ({"files": seal} if name == "strange" else {}))
    shutil.copy(place / "strange" / "part-0.parquet", place / "strange" / "part-1.parquet")
    for name, job in (("killed-import", "import"), ("killed-evaluation", "evaluate")):
        (place / name).mkdir()
        (place / name / "run.json").write_text(json.dumps({"job": job, "status": "running"}))
    shutil.copy(place / "photos.csv", place / "killed-import")
    (place / "killed-evaluation" / "metrics.json").write_text('{"protocol": "labels", "map": 0.5}')
    (place / "mixed-model").mkdir()
    spec.write(spec.Spec(), str(place / "mixed-model"), "0" * 64)
    with h5py.File(place / "mixed-model" / "model.weights.h5", "w") as file:
        file["kernel"] = np.zeros(3)


def write_vectors(place):
    np.save(place / "vectors.npy", 2 * np.eye(12, dtype=np.float32))
    (place / "ids.txt").write_text("\n".join(IDS))


def write_networks(place):
    random = np.random.default_rng(0).bytes(4000)
    for name in ("broken.npz", "broken.weights.h5"):
        (place / name).write_bytes(random)
    np.savez(place / "other.npz", **{"conv/kernel": np.zeros(3)})
    (place / "model").mkdir()
    (place / "model" / "model.json").write_text('{"format_version": 1, "backbone": "vgg17"}')
    (place / "later-model").mkdir()
    (place / "later-model" / "model.json").write_text('{"format_version": 99}')
    write_whitening(place / "whitening.npz", EMBEDDING)
    write_whitening(place / "other-whitening.npz", dataclasses.replace(EMBEDDING, layer="block5_pool", pooling="mac"))
    (place / "half-model").mkdir()
    (place / "half-model" / "model.json").write_text('{"format_version": 1, "backbone": "\\ud800"}')


def write_first_version(place):
    """What an identity of version 1 made."""
    write_whitening(place / "first-whitening.npz", FIRST)
    write_descriptors(place / "first", FIRST)
    (place / "first-index").mkdir()
    tables.write(str(place / "first-index" / "ids.parquet"), pa.table({"image_id": IDS}))
    flat = faiss.IndexFlatIP(8)
    flat.add(np.eye(12, 8, dtype=np.float32))
    faiss.write_index(flat, str(place / "first-index" / "knn.index"))
    content = (place / "first-index" / "knn.index").read_bytes()
    counts = {"dimension": 8, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    record = {"job": "index", "embedding": FIRST.as_json(), "counts": counts}
    files.write_json(str(place / "first-index" / "run.json"), record)


def write_configurations(place):
    (place / "half.yaml").write_text('out: "\\ud800"\n')
    (place / "typo.yaml").write_text("imagesize: 32\n")
    (place / "type.yaml").write_text("manifest: [1, 2]\n")
    (place / "list.yaml").write_text("- manifest\n")
    network = "model: vgg16-gem\nweights: random\nimage-size: 32\nprecision: float32\n"
    for name, evaluations in (
        ("nightly", "[{name: test, manifest: photos.csv, split: test}]"),
        ("no-evaluations", "[]"),
        ("typo-evaluations", "[{name: test, manifets: photos.csv}]"),
        ("lost-evaluations", "[{name: test, manifest: none.csv}]"),
        ("azure-evaluations", "[{name: test, manifest: 'abfs://account@evil.example/photos.csv'}]"),
        ("folder-evaluations", "[{name: test, manifest: photos}]"),
        ("no-gate", "[{name: test, manifest: photos.csv, max-drop: -1}]"),
        ("twin-evaluations", "[{name: test, manifest: photos.csv}, {name: test, manifest: photos.csv}]"),
    ):
        (place / f"{name}.yaml").write_text(f"{network}evaluations: {evaluations}\n")


def write_evaluations(place):
    (place / "metrics.json").write_text('{"protocol": "oxford", "map": 0.5}')
    (place / "others").mkdir()
    (place / "others" / "metrics.json").write_text('{"protocol": "labels", "map": 0.5}')
    queries = {"query_id": ["z0"], "label": ["z"], "ap": [0.5]}
    tables.write(str(place / "others" / "per_query.parquet"), pa.table(queries))
    (place / "grades.csv").write_text("query_id,image_id,grade\na0,a1,good\na0,nothing,ok\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos, descriptors and an index as they should be, and with all that mistakes name."""
    place = tmp_path_factory.mktemp("mistakes")
    write_photos_and_tables(place)
    write_outputs(place)
    write_networks(place)
    write_vectors(place)
    write_first_version(place)
    write_configurations(place)
    write_evaluations(place)
    (place / "out.csv").write_text("in the way")
    return place


MODEL = "--model vgg16-gem --weights random --image-size 32 --precision float32"
# What is right about each job; a mistake's flags come after and win.
RIGHT = {
    "split": "photos --out new/manifest.csv",
    "import": "holidays set --out new",
    "extract": f"--manifest photos.csv {MODEL} --out new",
    "whiten": "--manifest photos.csv --descriptors descriptors --out new/whitening.npz",
    "mine": "--manifest photos.csv --descriptors descriptors --out new",
    "train": "--manifest photos.csv --out new --weights random --image-size 32 --precision float32",
    "index": "--descriptors descriptors --out new",
    "search": "--index descriptors --queries descriptors --out new",
    "evaluate": "--manifest photos.csv --descriptors descriptors --out new",
    "export": "--descriptors descriptors --format npy --out new",
    "audit": "--manifest photos.csv --descriptors descriptors --out new",
    "group": "--manifest photos.csv --descriptors descriptors --out new",
    "nightly": "--config nightly.yaml --out new",
}
TAKES_MANIFEST = ("extract", "whiten", "mine", "train", "evaluate", "audit", "group")
TAKES_SPLIT = ("extract", "whiten", "mine", "evaluate", "audit", "group")
TAKES_DESCRIPTORS = ("whiten", "mine", "index", "evaluate", "export", "audit", "group")
TAKES_MODEL = ("extract", "train")
WRITES_FOLDER = ("import", "extract", "mine", "train", "index", "search", "evaluate", "export", "audit", "group")

DECODES = ("split", "import", "extract", "train", "search", "evaluate", "nightly")
WHITENS = ("extract", "index", "search", "evaluate", "audit", "group")

OF_DECODING = {
    "--max-megapixels 0": "--max-megapixels must be above 0, not 0.0",
    "--max-megapixels 1e12": "--max-megapixels must be at most 100,000, not 1e\\+12",
    "--max-megapixels nan": "--max-megapixels: 'nan' is not a number",
}
OF_VERSIONS = {
    "--whitening first-whitening.npz": "profiles 'ignored' ≠ 'srgb'; .*first-whitening.npz' was made before dim "
    "applied colour profiles: run the same extract.py again with another --out, and whiten.py on its output"
}
OF_MANIFESTS = {
    "--manifest none.csv": "no file '.*none.csv'",
    "--manifest twice.csv": r"image_id 'a0' occurs more than once",
    "--manifest no-path.csv": "no column 'path'; it has 'image_id', 'label', 'split'",
    "--manifest dev.csv": "unknown split 'dev'; use train, val, test",
    "--manifest broken.parquet": "cannot read the table '.*broken.parquet'",
    "--manifest web.csv": r"web.csv': row 10 \(image_id 'd0'\): cannot open .*; 3 such rows",
    "--manifest killed-import/photos.csv": r"'killed-import' was never finished; run import\.py again",
    "--manifest photos.txt": "photos.txt' is neither .parquet nor .csv",
    "--manifest latin.csv": "latin.csv': byte 0xe9 in line 2 is not UTF-8; save it as UTF-8",
    "--manifest parts.parquet": "parts.parquet' is a folder; name one table; to join Parquet parts, run",
    "--manifest book.xlsx": "book.xlsx' is neither .parquet nor .csv but a spreadsheet's own file; save its sheet as",
}
OF_SPLITS = {"--split val": "photos.csv' has no row with split 'val'.*; its splits are test, train"}
OF_DESCRIPTORS = {
    "--descriptors none": "none' is not an output folder of dim: it has no run.json; make it with extract.py",
    "--descriptors broken-record": "broken-record/run.json' is not JSON",
    "--descriptors list-record": "list-record/run.json' is not the record of a dim job",
    "--descriptors foreign": "holds no complete embedding",
    "--descriptors lost": r"lost' has 12 rows in its shards, and 20 images in its run\.json; run the same extract\.py",
    "--descriptors strange": r"part-1\.parquet' is not one of the shards that run\.json lists; remove it, or run",
}
OF_MODELS = {
    "--model vgg17-gem": "unknown backbone 'vgg17'; did you mean 'vgg1[69]'",
    "--model vgg16-gen": "unknown pooling 'gen'; did you mean 'gem'",
    "--model vgg16-gem@block5_conv9": "unknown layer 'block5_conv9' in .*; did you mean 'block5_conv3'",
    "--model nothing": "no model 'nothing': neither a folder with model.json nor a name such as vgg16-gem",
    "--model model": "model.json' lacks the field 'image_size'",
    "--model half-model": "half-model/model.json' is not JSON: .*surrogates not allowed",
    "--model later-model": "has format version 99, this dim reads 1",
    "--weights none.npz": "no weights file '.*none.npz'",
    "--weights broken.npz": "cannot read the weights '.*broken.npz'",
    "--weights broken.weights.h5": "cannot read the weights '.*broken.weights.h5'",
    "--weights photos.txt": "weights '.*photos.txt' are neither .npz nor .h5",
    "--image-size 0": "image_size .* must be a whole number from 1 to .*, not 0",
    "--image-size big": "--image-size: 'big' is not a whole number",
    "--resize stretch": "--resize: invalid choice: 'stretch'",
    "--precision float8": "--precision: invalid choice: 'float8'",
    "--workers 0": "--workers must be at least 1, not 0",
    "--batch-size 0": "--batch-size must be at least 1, not 0",
    "--manifest gone.csv": "none of the 12 photos of '.*gone.csv' exists, the first at '.*elsewhere/a0.png'",
}
OF_OUTPUTS = {
    "--out=": "--out is empty; give it a value, or leave it out",
    "--out foreign": r"holds the output of elsewhere\.py; choose another --out",
    "--out broken-record": "broken-record/run.json' is not JSON",
    "--out out.csv": "cannot make the folder '.*out.csv'",
}
OF_LABELS = {
    "--manifest singles.csv": "none of its 6 labels has two images; at least one must have two",
    "--manifest one-label.csv": "at least two labels are needed",
}
OF_ALL = {
    "--mainfest x": "unknown argument '--mainfest'; ",
    "--config none.yaml": "cannot read the configuration 'none.yaml'",
    "--config list.yaml": "must hold a mapping of flags to values, not list",
    "--config half.yaml": "out in 'half.yaml' must be UTF-8, not '.ud800'",
    "--config typo.yaml": "unknown key 'imagesize' in 'typo.yaml'; ",
}
OF_ONE = {
    "split": {
        "none": "no folder 'none'; name a folder with one sub-folder per label, or a .parquet or .csv table",
        "no-label.csv": "has no column 'label'; it has 'image_id', 'path', 'split'",
        "gone.csv": "none of the 12 photos of 'gone.csv' can be read",
        "photos.csv --out ./photos.csv": "--out './photos.csv' is the table to split; choose another",
        "gs:///photos": "cannot open 'gs:///photos': '' is not a bucket; write gs://BUCKET/KEY",
        "photos.csv --ignore-label z": "--ignore-label 'z': no photo of 'photos.csv' has this label",
        "photos.csv --test-labels 0.99": "--val-labels and --test-labels sum to 1.09; leave some for train",
        "photos.csv --out out.csv/new.csv": "cannot make the folder '.*out.csv'",
        "parts.parquet": "holds tables \\('part-0.parquet'\\), not photos; name one table",
        "book.xlsx": "book.xlsx' is neither .parquet nor .csv but a spreadsheet's own file",
        "splits --test-labels 0.2": "--test-labels 0.2: the top folders of 'splits' are splits already; leave the flag",
        "wrapped": "folders test and train within 'images', .*; if they are splits, name wrapped/images; else",
        "photos.csv --out new/manifest.txt": "manifest.txt'.*\\.csv",
    },
    "import": {
        "oxford6k empty": "unknown layout 'oxford6k'; did you mean '.*oxford5k'",
        "oxford5k none": "none",
        "oxford5k empty": "empty",
        "ilias empty": r"no file 'empty/image_ids/image_query_ids\.txt'; SOURCE is the folder of the benchmark",
        "holidays set --distractors 5m": r"--distractors is for import\.py ilias, not for 'holidays'",
        "holidays set --normalise": r"--normalise is for import\.py embeddings, not for 'holidays'",
        "embeddings vectors.npy --ids ids.txt": "needs --name NAME: the network that made them",
        "embeddings vectors.npy --name x": "'vectors.npy' holds .npy files, which have no ids; give --ids FILE",
        "embeddings vectors.npy --name x --ids ids.txt": r"row 1 \(id 'a0'\) has the norm 2, not 1; give --normalise",
        "embeddings vectors.npy --name x --ids photos.txt": "'photos.txt' has .* ids, and 'vectors.npy' 12 rows",
        "embeddings photos --name x": r"'photos' is or holds neither an \.npy nor a \.parquet file",
    },
    "extract": {
        "--manifest azure.csv": r"row 12 \(image_id 'd2'\): .* unknown scheme 'abfs'; use a",
        "--manifest windows.csv": r"row 1 \(image_id 'a0'\): 'C:.* is a Windows path; .*; 12 such rows",
        "--manifest backslashes.csv": r"none of the 12 photos .* exists, .* and use / where Windows uses \\",
        "--manifest file://host/photos.csv": "names the host 'host'; write file:///…, the path on this machine",
        "--out file:new": "cannot open .file:new.*: it must begin with file:///",
        "--root abfss://a@b/c": "unknown scheme 'abfss'",
        "--model hdfs://a/b": "unknown scheme 'hdfs'",
        "--config type.yaml": r"manifest in 'type.yaml' must be text, not \[1, 2\]",
        "--split dev": "--split: invalid choice: 'dev'",
        "--scales 1,x": "--scales: '1,x' is not a list of numbers",
        "--gpus-per-worker 2": "--gpus-per-worker must be from 0 to 1, not 2: an actor computes on one GPU",
        "--gpus-per-worker -1": "--gpus-per-worker must be from 0 to 1, not -1: an actor",
        "--scales 0": "--scales must be above 0 and at most 4, not 0.0",
        "--shard-rows 0": "--shard-rows must be at least 1, not 0",
        "--part 5/4": "--part must be I/N with I from 1 to N, such as 1/4, not '5/4'",
        "--whitening none.npz": "no whitening file '.*none.npz'; make it with whiten.py",
        "--whitening broken.npz": "broken.npz' is not a whitening file",
        "--whitening other-whitening.npz": "different embeddings: layer 'block5_pool' ≠ 'block5_conv3'; pooling 'mac'",
        "--root empty": "image_id 'a0' of .* is at .*, outside --root 'empty'",
        "--out first": "'ignored' ≠ 'srgb'; 'first' was made before .*: run the same extract.py with another --out",
        "--out descriptors --image-size 64": "different embeddings: image_size 32 ≠ 64",
        "--out trained": r"holds the output of train\.py",
    },
    "whiten": {
        "--memory 8XB": "--memory '8XB' is not a size, such as 512MB or 8GB",
        "--dimension 9": "allow a whitening to 1 to 5 dimensions, .*, not to 9",
        "--power 2": "--power must be from 0 to 1, not 2.0",
        "--kind learned --manifest singles.csv": "has two",
        "--manifest more.csv": "lacks 6 of the 6 images asked for, the first 'new 0'",
        "--out empty": "--out 'empty' is a folder; name a file in it",
        "--out out.csv/new.npz": "cannot make the folder '.*out.csv'",
    },
    "mine": {
        "--manifest more.csv": r"lacks 6 of the 6 images asked for, the first 'new 0'; run extract\.py",
        "--seed 99999999999": "--seed must be at most 2147483647, not 99999999999",
        "--margin -1": "--margin must be at least 0, not -1.0",
        "--strategy hard": "--strategy: invalid choice: 'hard'",
        "--workers 0": "--workers must be at least 1, not 0",
        "--memory lots": "--memory 'lots' is not a size, such as 512MB or 8GB",
        "--strategy distinct": "lower --negatives-per-anchor or use --strategy hardest",
    },
    "train": {
        "--scratch s3://bucket/scratch": "'s3://bucket/scratch' is in an object store; name a folder on each node",
        "--epochs 0": "--epochs must be at least 1, not 0",
        "--layer block5_conv9": "unknown layer 'block5_conv9' in .*",
        "--batch-size 1 --workers 2": "--batch-size 1 gives less than a triplet to each of 2 workers; give at least 2",
        "--batch-size 3 --workers 2 --gpus-per-worker 2": "a triplet to each of 4 GPUs; give at least 4",
        "--batch-size 1 --workers 2 --gpus-per-worker 0.5": "less than a triplet to each of 2 workers; give at least 2",
        "--gpus-per-worker -1": "--gpus-per-worker must be a share of one GPU or a whole number of GPUs, not -1",
        "--gpus-per-worker 1.5": "--gpus-per-worker must be a share of one GPU or a whole number of GPUs, not 1.5",
        "--weights other.npz": "cannot load the weights '.*other.npz' into 'vgg16': it lacks the array",
        "--out trained": "trained' holds a run with margin 0.3, not 0.1",
        "--out list-record": "list-record/run.json' is not the record of a dim job",
    },
    "index": {
        "--factory Flta": "--factory 'Flta'",
        "--parts 0": "--parts must be at least 1, not 0",
        "--workers 0": "--workers must be at least 1, not 0",
        "--memory 1MB": "--memory '1MB' is too small; give at least 256MiB",
        "--factory PCAW4,Flat": "--factory 'PCAW4,Flat': it whitens, .*; use PCA and --whitening FILE",
        "--factory ITQ4,Flat": "--factory 'ITQ4,Flat': its ITQTransform changes the cosines .*; use PCA or OPQ",
        "--factory HNSW4_PQ2x2": "--factory 'HNSW4_PQ2x2': it compares by L2 distance; with HNSW, use SQ8",
        "--whitening other-whitening.npz": "different embeddings: layer 'block5_pool' ≠ 'block5_conv3'; pooling 'mac'",
        "--whitening broken.npz": "broken.npz' is not a whitening file",
    },
    "search": {
        "--rerank localize": "--rerank must be localise or geometry, .* such as localise:200, not 'localize'",
        "--rerank localise --expansion diffusion": "--expansion diffusion replaces the scores, so .*, and without",
        "--rerank geometry:0": "--rerank geometry:0: the number of photos must be from 1 to 10000, not 0",
        "--queries photos --model mixed-model": r"model\.json and model\.weights\.h5 in 'mixed-model' were not written",
        "--index none": "--index 'none' holds neither an index nor descriptors; make it with index.py",
        "--index foreign": "--index 'foreign' holds neither an index nor descriptors",
        "--queries none": "--queries 'none': there is no such file or folder",
        "--queries photos": "--queries 'photos' are photos; give --model",
        "--queries first": "'first' was made before dim applied colour profiles: run the same extract.py with another",
        f"--index first-index --queries photos {MODEL}": "'first-index' was made before dim applied colour "
        "profiles: run the same extract.py again with another --out, and index.py on its output",
        "--queries photos --model vgg16-mac --weights random": "different embeddings: pooling 'gem' ≠ 'mac'",
        "--queries gone.csv --model vgg16-gem --weights random": "none of the 12 photos of .* exists",
        "--top 0": "--top must be at least 1, not 0",
        "--label a": "--label and --in-split need --manifest, the table of the labels and splits",
        "--manifest none.csv": "no file 'none.csv'",
        "--memory 1MB": "--memory '1MB' is too small; give at least 256MiB",
        "--expansion aqe --neighbours 99999999999999999999": "--neighbours must be from 1 to 100000, not 9+",
    },
    "evaluate": {
        "--rerank geometry:": "--rerank must be localise or geometry, .* such as localise:200, not 'geometry:'",
        "--memory 8apples": "--memory '8apples' is not a size, such as 512MB or 8GB",
        "--memory 1MB": "--memory '1MB' is too small; give at least 256MiB",
        "--ranked ranked.parquet": r"--ranked 'ranked\.parquet' holds the results of a search; leave out --descriptors",
        "--protocol ilias": r"photos\.csv' has no column 'scale'; it has",
        "--baseline killed-evaluation/metrics.json": r"'killed-evaluation' was never finished; run evaluate\.py again",
        "--descriptors a --descriptors b --descriptors c": "give --descriptors DIR or --model X once, or twice",
        "--manifest singles.csv": "has a positive in the database; nothing to measure",
        "--manifest more.csv": "lacks 12 of the 12 images asked for, the first 'new 0'",
        "--protocol oxford": "--protocol oxford needs --ground-truth FILE",
        "--protocol oxford --ground-truth none.csv": "no file '.*none.csv'",
        "--protocol oxford --ground-truth grades.csv": "nothing",
        "--query-split test": "--query-split and --database-split together",
        "--baseline none.json": "no file '.*none.json'",
        "--baseline others/metrics.json": "others/metrics.json' and '.*photos.csv' have no query in common; name",
        "--baseline others/metrics.json --max-drop -1": "--max-drop must be at least 0 and below 1, not -1.0",
        "--max-drop 0.1": "--max-drop needs --baseline metrics.json",
        "--baseline metrics.json": "metrics.json' is of protocol 'oxford', not 'labels'",
        "--whitening other-whitening.npz": "different embeddings: layer 'block5_pool' ≠ 'block5_conv3'; pooling 'mac'",
    },
    "audit": {
        "--manifest more.csv": r"lacks 12 of the 12 images asked for, the first 'new 0'; run extract\.py",
        "--manifest no-label.csv": "has 0 label\\(s\\) on 12 images",
        "--manifest singles.csv": "none of its 12 labels has two images",
        "--least-score 0": "--least-score must be above 0 and at most 1, not 0.0",
        "--duplicates 2": "--duplicates must be above 0 and at most 1, not 2.0",
        "--candidates Nonsense": "--candidates 'Nonsense' is not an FAISS index for 8 values",
        "--candidate-parameters nprobe=2": "--candidate-parameters are for an index; give --candidates FACTORY, too",
        "--candidates Flat --candidate-parameters depth=2": "--candidate-parameters 'depth=2' can't be set on this",
        "--memory 1GB,2GB": "--memory '1GB,2GB' is not a size, such as 512MB or 8GB",
        "--workers 0": "--workers must be at least 1, not 0",
        "--whitening other-whitening.npz": "different embeddings: layer 'block5_pool' ≠ 'block5_conv3'; pooling 'mac'",
    },
    "group": {
        "--manifest more.csv": r"lacks 12 of the 12 images asked for, the first 'new 0'; run extract\.py",
        "--threshold 0": "--threshold must be above 0 and at most 1, not 0.0",
        "--copies 2": "--copies must be above 0 and at most 1, not 2.0",
        "--neighbours 0": "--neighbours must be at least 1, not 0",
        "--min-group 1": "--min-group must be at least 2, not 1",
        "--parameters nprobe=2": "--parameters are for an index; give --index DIR, too",
        "--index none": "--index 'none' holds neither an index nor descriptors",
        "--corrections none.csv": "no file '.*none.csv'",
        "--corrections photos.csv": "photos.csv' has no column 'other_id'",
        "--root elsewhere": "elsewhere",
        "--whitening other-whitening.npz": "different embeddings: layer 'block5_pool' ≠ 'block5_conv3'; pooling 'mac'",
    },
    "nightly": {
        "--config no-evaluations.yaml": "evaluations is empty; list at least one, with its name and manifest",
        "--config typo-evaluations.yaml": "unknown key 'manifets' in .*; did you mean 'manifest'",
        "--config lost-evaluations.yaml": "no file '.*none.csv'",
        "--config azure-evaluations.yaml": "cannot open 'abfs://account@evil.example/photos.csv': unknown scheme",
        "--config folder-evaluations.yaml": r"cannot read 'photos' \(.*\); name another file",
        "--whitening none.npz": "no file 'none.npz'",
        "--config no-gate.yaml": "max-drop of 'test' must be from 0 to 1, not -1",
        "--config twin-evaluations.yaml": "evaluations: two have the name 'test'; rename one",
        "--date tomorrow": "--date 'tomorrow'",
        "--date 2999-12-31": "--date 2999-12-31 is in the future",
        "--model vgg16-gen": "unknown pooling 'gen'; did you mean 'gem'",
    },
    "export": {
        "--format keras": "--format keras needs --model, and no other input",
        "--format nyp": "--format: invalid choice: 'nyp'",
    },
}
OF_GPUS = {
    "--gpus-per-worker 1": r"--gpus-per-worker 1: no node that this cluster has or may start has so many "
    r"GPUs \(2 CPUs\); ask for fewer, or declare on the head node which nodes may start, as in cluster/config.yaml$",
}
MISTAKES = [
    (job, flags, said)
    for jobs, mistakes in (
        (RIGHT, OF_ALL),
        (TAKES_MANIFEST, OF_MANIFESTS),
        (TAKES_SPLIT, OF_SPLITS),
        (TAKES_DESCRIPTORS, OF_DESCRIPTORS),
        (TAKES_MODEL, OF_MODELS),
        (TAKES_MODEL, OF_GPUS),
        (DECODES, OF_DECODING),
        (WHITENS, OF_VERSIONS),
        (WRITES_FOLDER, OF_OUTPUTS),
        (("mine", "train"), OF_LABELS),
        *(((job,), mistakes) for job, mistakes in OF_ONE.items()),
    )
    for job in jobs
    for flags, said in mistakes.items()
]


def test_each_job_has_its_mistakes():
    assert {path.stem for path in JOBS.glob("*.py")} == set(RIGHT)


def tree(folder):
    return {
        str(path.relative_to(folder)): None if path.is_dir() else (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def arguments(job, flags):
    right, given = RIGHT[job].split(), flags.split()
    positionals = {"split": 1, "import": 2}.get(job, 0)
    if positionals and not given[0].startswith("--"):
        right = right[positionals:]
    for name in {part for part in given if part.startswith("--")} & set(right):
        place = right.index(name)
        del right[place : place + 2]
    return [*right, *given]


@pytest.fixture
def fails(monkeypatch, capfd, place, ray_session):
    """Runs a job as its program does: the one line that it ends with."""
    monkeypatch.chdir(place)

    def run(job, flags):
        monkeypatch.setattr(sys, "argv", [f"{job}.py", *arguments(job, flags)])
        before = tree(place)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(JOBS / f"{job}.py"), run_name="__main__")
        out, err = capfd.readouterr()
        assert end.value.code == 2, err
        said = messages(err)
        assert out == "" and len(said) == 1 and said[0].startswith("error: "), err
        assert tree(place) == before, "something was written"
        return said[0]

    return run


# A training that starts its worker before it sees the mistake.
LATE = {"train --weights other.npz"}


def mistake(job, flags, said):
    name = f"{job} {flags}"
    return pytest.param(job, flags, said, id=name, marks=[pytest.mark.slow] if name in LATE else [])


@pytest.mark.parametrize(("job", "flags", "said"), [mistake(*row) for row in MISTAKES])
def test_mistake(fails, job, flags, said):
    assert re.search(said, fails(job, flags)), said


# More of them: tests/test_environment.py.
OF_ENVIRONMENTS = {
    "RAY_TMPDIR": ("nowhere", "RAY_TMPDIR='nowhere' is not an absolute path; set it to another folder"),
    "RAY_ADDRESS": ("", "RAY_ADDRESS='' is not the address of a Ray cluster; set RAY_ADDRESS to .*, or unset it"),
    "TMPDIR": ("photos.csv", "TMPDIR='photos.csv' is not a folder; set it to another folder, or unset it"),
    "DIM_SCRATCH": ("photos.csv", "DIM_SCRATCH='photos.csv' is not a folder; set it to another folder, or unset it"),
    "DIM_LOG": ("xml", "DIM_LOG='xml' is unknown; set it to json, or unset it"),
}


@pytest.mark.parametrize("name", OF_ENVIRONMENTS)
@pytest.mark.parametrize("job", RIGHT)
def test_mistake_of_the_environment(fails, monkeypatch, job, name):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    value, said = OF_ENVIRONMENTS[name]
    monkeypatch.setenv(name, value)
    assert re.search(f"^error: {said}$", fails(job, "--verbose")), said


@pytest.mark.parametrize(
    ("job", "flags", "said"),
    [
        ("extract", "--mainfest x", "error: unknown argument '--mainfest'; did you mean '--manifest'?"),
        ("train", "--manifest none.csv", "error: no file 'none.csv'"),
        (
            "whiten",
            "--descriptors none",
            "none' is not an output folder of dim: it has no run.json; make it with extract.py",
        ),
    ],
)
def test_mistake_of_a_process(place, job, flags, said):
    before = tree(place)
    program = [sys.executable, str(JOBS / f"{job}.py"), *arguments(job, flags)]
    done = subprocess.run(program, cwd=place, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = messages(done.stderr)
    assert line.startswith("error: ") and line.endswith(said)
    assert tree(place) == before


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (["trian", "--epochs", "5"], "unknown job 'trian'; did you mean 'train'?"),
        (["nonsense"], "unknown job 'nonsense'; known: import, split, extract, whiten, mine, train, index, search, "),
        ([], "no job was given; `dim --help` lists the jobs"),
    ],
)
def test_mistake_of_the_command(monkeypatch, capfd, job, said):
    monkeypatch.setattr(sys, "argv", ["/bin/dim", *job])
    with pytest.raises(SystemExit) as end:
        command.main()
    out, err = capfd.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith(f"error: {said}") and err.count("\n") == 1
