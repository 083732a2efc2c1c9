"""Coverage-guided fuzzing of whatever reads a stranger's file: nothing but a UserError may come out of it.

    pip install -e '.[fuzz]'
    python tests/fuzz/run.py [TARGET …] --seconds 120

Ends with status 0 if nothing was found. What was found is kept in --found and run again by naming it as --input; once
mended, it becomes a case of tests/test_hostile.py.
"""

import argparse
import io
import json
import os
import pickle
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dim", "tifffile", "pickletools", "json", "yaml", "zipfile"]):
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import tifffile
    from PIL import Image

    from dim.app.config import read_yaml
    from dim.data import ground_truth, manifest
    from dim.data.config import ImportConfig
    from dim.data.decode import decode
    from dim.data.import_job import IMPORTERS, _manifest
    from dim.data.limits import DecodeError, Limits
    from dim.data.oxford_paris import unpickle
    from dim.errors import UserError
    from dim.extract.config import ExtractConfig
    from dim.io import uris
    from dim.model import spec, whitening

FOLDER = Path(tempfile.mkdtemp(prefix="dim-fuzz-"))
BETWEEN = b"\n\xff\n"  # the files of a layout, in one input
OXFORD = [f"all_souls_1_{kind}.txt" for kind in ("query", "good", "ok", "junk")]
REVISITED = {
    "imlist": ["a", "b"],
    "qimlist": ["q"],
    "gnd": [{"bbx": [1, 2, 3, 4], "easy": [0], "hard": [1], "junk": []}],
}
ROWS = {"image_id": ["a", "ü", "007"], "path": ["a.jpg", "b/c.jpg", "s3://b/c.jpg"], "label": ["x", None, "y"]}
ROWS |= {"split": ["train", "val", None], "role": ["query", None, "database"], "x1": ["1", None, None]}
ROWS |= {"y1": ["1", None, None], "x2": ["10.5", None, None], "y2": ["1e2", None, None]}
GRADES = {"query_id": ["a", "a"], "image_id": ["ü", "007"], "grade": ["good", "junk"]}
KNOWN = manifest.checked("photos.csv", pa.table(ROWS))


def _file(name, read):
    """A target: a file called `name` holds the input."""

    def target(content):
        (FOLDER / name).write_bytes(content)
        read(str(FOLDER / name))

    return target


def _layout(layout, names):
    """A target: the input is the files `names` of a set."""
    folder = FOLDER / layout
    (folder / "jpg").mkdir(parents=True)
    (folder / "jpg" / "all_souls_000013.jpg").touch()

    def target(content):
        for name, part in zip(names, content.split(BETWEEN), strict=False):
            (folder / name).write_bytes(part)
        _import(layout, folder)
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return target


def _names(layout):
    """A target: the input is the names of the set's files, one a line."""

    def target(content):
        folder = FOLDER / layout
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for line in content.splitlines()[:20]:
            name = line.replace(b"/", b"").replace(b"\0", b"")[:100]
            if name.strip(b"."):
                (folder / name.decode(errors="surrogateescape")).touch()
        _import(layout, folder)

    return target


def _import(layout, folder):
    config = ImportConfig(layout=layout, source=str(folder), out=str(folder))
    manifest.checked("manifest.parquet", _manifest(IMPORTERS[layout](config.source), config))


def _uri(content):
    uris.parts(content.decode(errors="surrogateescape"))


def _photo(content):
    try:
        decode(content, 32, "squash", limits=Limits(pixels=10**6, bytes=2**20))
    except DecodeError as error:
        assert "\n" not in str(error), f"more than one line: {error}"


def _photos():
    """Small photos, a file of each kind."""
    colours = np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3)
    for form in ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "GIF", "BMP", "PPM"):
        file = io.BytesIO()
        Image.fromarray(colours).save(file, form)
        yield file.getvalue()
    for options in ({"compression": "lzw"}, {"planarconfig": "separate", "tile": (16, 16)}, {"bigtiff": True}):
        file, values = io.BytesIO(), colours.astype(np.uint16)
        values = np.moveaxis(values, 2, 0) if "tile" in options else values
        tifffile.imwrite(file, values, photometric="rgb", **options)
        yield file.getvalue()


def _parquet(columns, **options):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def _csv(columns):
    rows = zip(*columns.values(), strict=True)
    return "\n".join(",".join(value or "" for value in row) for row in [columns, *rows]).encode()


def _whitening():
    folder = str(FOLDER / "seed.npz")
    whitening.Whitening(np.zeros(3), np.eye(3)[:2], np.ones(3), 0.25, "pca", {"rows": 9}).save(folder)
    return Path(folder).read_bytes()


def _model():
    spec.write(spec.Spec(), str(FOLDER))
    content = (FOLDER / spec.SPEC_FILE).read_bytes()
    learned = json.loads(content) | {"dimension": 64, "whitening": {"kind": "pca", "learned_on": {}}}
    return [content, json.dumps(learned).encode()]


DELTA = {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}

# Each with inputs to start from.
TARGETS = {
    "manifest-csv": (
        _file("photos.csv", manifest.read),
        [_csv(ROWS), _csv({"image_id": ["a"], "path": ["b"]}), _csv(ROWS).decode().encode("utf-16")],
    ),
    "manifest-parquet": (_file("photos.parquet", manifest.read), [_parquet(ROWS), _parquet(ROWS, **DELTA)]),
    "ground-truth-csv": (_file("truth.csv", lambda uri: ground_truth.read(uri, KNOWN)), [_csv(GRADES)]),
    "ground-truth-parquet": (_file("truth.parquet", lambda uri: ground_truth.read(uri, KNOWN)), [_parquet(GRADES)]),
    "model": (_file(spec.SPEC_FILE, lambda uri: spec.read(str(Path(uri).parent))), _model()),
    "whitening": (_file("whitening.npz", whitening.load), [_whitening()]),
    "uri": (_uri, [b"file:///a/%C3%BC%20.jpg", b"s3://bucket/a%2B.jpg", b"C:\\a.jpg", b"~/a.tar#b", b"abfs://a@b/c"]),
    "photo": (_photo, [*_photos()]),
    "pickle": (_file("a.pkl", unpickle), [pickle.dumps(REVISITED, protocol) for protocol in range(6)]),
    "configuration": (
        _file("config.yaml", lambda uri: read_yaml(uri, ExtractConfig)),
        [b"model: vgg16-gem\nbatch-size: 8\nscales: [1, 0.5]\nretry-failed: true\n", b"a: &x [1]\nscales: *x\n"],
    ),
    "oxford5k": (
        _layout("oxford5k", OXFORD),
        [BETWEEN.join([b"oxc1_all_souls_000013 136.5 34.1 648.5 955.7", b"all_souls_000013", b"b", b"c\nd"])],
    ),
    "paris6k": (
        _layout("paris6k", OXFORD),
        [BETWEEN.join([b"all_souls_000013 136.5 34.1 648.5 955.7", b"all_souls_000013", b"b", b"c\nd"])],
    ),
    "roxford5k": (_layout("roxford5k", ["gnd_roxford5k.pkl"]), [pickle.dumps(REVISITED, n) for n in range(6)]),
    "rparis6k": (_layout("rparis6k", ["gnd_rparis6k.pkl"]), [pickle.dumps(REVISITED, n) for n in range(6)]),
    "holidays": (_names("holidays"), [b"100000.jpg\n100001.JPG\n200001.jpeg"]),
    "ukbench": (_names("ukbench"), [b"ukbench00000.jpg\nukbench00005.jpg"]),
    "gldv2": (
        _layout("gldv2", ["index.csv", "retrieval_solution_v2.1.csv"]),
        [b"id\nabc\ndef" + BETWEEN + b"id,images,Usage\nq1,abc def,Public\nq2,,Ignored"],
    ),
    "sop": (
        _layout("sop", ["Ebay_train.txt", "Ebay_test.txt"]),
        [b"image_id class_id super_class_id path\n1 1 1 a/b.JPG" + BETWEEN + b"h\n2 2 1 a/c.JPG"],
    ),
    "cub": (
        _layout("cub", ["images.txt", "image_class_labels.txt", "classes.txt"]),
        [BETWEEN.join([b"1 001.a/b.jpg\n2 150.c/d.jpg", b"1 1\n2 150", b"1 001.a\n150 150.c"])],
    ),
    "grocery": (
        _layout("grocery", ["train.txt", "val.txt", "test.txt"]),
        [BETWEEN.join([b"train/a/b/c.jpg, 0, 0", b"val/a/b/c.jpg, 0, 0", b"test/a/d/e.jpg, 1, 0"])],
    ),
}


def fuzz(name, seconds, found):
    """Fuzzes one target; does not return."""
    target, seeds = TARGETS[name]

    def one(content):
        try:
            target(content)
        except UserError as error:
            assert "\n" not in str(error), f"more than one line: {error}"

    corpus = FOLDER / f"corpus-{name}"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    limits = [f"-max_total_time={seconds}", "-rss_limit_mb=4096", "-timeout=60", "-max_len=8192"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={found}/{name}-", str(corpus)], one)
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="all if none is named")
    parser.add_argument("--seconds", type=int, default=120, help="for each")
    parser.add_argument("--found", type=Path, default=Path(tempfile.gettempdir()) / "dim-fuzz-found")
    parser.add_argument("--input", type=Path, help="run this input only")
    arguments = parser.parse_args()
    if arguments.input:
        TARGETS[arguments.targets[0]][0](arguments.input.read_bytes())
        return
    arguments.found.mkdir(exist_ok=True)
    failed = []
    for name in arguments.targets or TARGETS:
        if (child := os.fork()) == 0:  # libFuzzer ends its process
            fuzz(name, arguments.seconds, arguments.found)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f"{name}: {'nothing found' if status == 0 else f'ended with {status}'}", flush=True)
        failed += [name] if status else []
    shutil.rmtree(FOLDER)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
