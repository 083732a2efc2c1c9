"""Whatever a stranger may hand in is refused in one line or does nothing, and needs little memory to be found out.

What tests/fuzz/run.py found has its cases here, too.
"""

import ast
import contextlib
import io
import json
import logging
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import warnings
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dim.app import logs, output_folder
from dim.app.config import read_yaml
from dim.data import ground_truth, manifest, photos
from dim.data.decode import decode
from dim.data.import_job import IMPORTERS
from dim.data.limits import DecodeError
from dim.errors import UserError
from dim.extract import identity
from dim.extract.config import ExtractConfig
from dim.io import files
from dim.model import spec, whitening

REPOSITORY = Path(__file__).resolve().parents[1]


class Calls:
    """Unpickled, it leaves a file named `proof`."""

    def __init__(self, proof):
        self._proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self._proof),)


def refused(call, *arguments, match=None):
    with pytest.raises(UserError, match=match) as error:
        call(*arguments)
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000


# Things that run.


@pytest.mark.parametrize("layout", ["roxford5k", "rparis6k"])
def test_a_pickle_that_calls(tmp_path, layout):
    (tmp_path / "a.jpg").touch()
    proof = tmp_path / "proof"
    (tmp_path / f"gnd_{layout}.pkl").write_bytes(pickle.dumps({"imlist": ["a"], "gnd": Calls(proof)}))
    refused(IMPORTERS[layout], str(tmp_path), match="only built-in types are allowed")
    assert not proof.exists()


@pytest.mark.parametrize(
    "read", [whitening.load, lambda uri: spec.resolve("vgg16-gem", uri)], ids=["whitening", "weights"]
)
def test_an_npz_with_objects(tmp_path, read):
    proof, path = tmp_path / "proof", tmp_path / "a.npz"
    np.savez(path, mean=np.array([Calls(proof)], dtype=object), **{"block1_conv1/kernel": np.array([Calls(proof)])})
    if read is whitening.load:
        refused(read, str(path), match="is not a whitening file .*allow_pickle=False")
    else:
        from dim.model import network

        refused(network.load, read(str(path)), "float32", match="cannot load the weights")
    assert not proof.exists()


@pytest.fixture(scope="module")
def lambdas(tmp_path_factory):
    """A network with a Lambda layer that makes a folder, as .keras, as .h5, and the folder."""
    import keras

    folder = tmp_path_factory.mktemp("lambda")
    proof = folder / "proof"
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x), keras.layers.Dense(2)])
    with warnings.catch_warnings():  # Keras says how unsafe this is
        warnings.simplefilter("ignore")
        code = keras.saving.serialize_keras_object(lambda x: __import__("os").mkdir("proof") or x)
        for ending in ("keras", "h5"):
            model.save(folder / f"a.{ending}")
    with zipfile.ZipFile(folder / "a.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"]["layers"][1]["config"]["function"] = code
    with zipfile.ZipFile(folder / "a.keras", "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, json.dumps(config) if name == "config.json" else part)
    with h5py.File(folder / "a.h5", "a") as file:
        file.attrs["model_config"] = json.dumps(config)
    return folder, proof


def test_networks_with_a_lambda(lambdas, monkeypatch):
    folder, proof = lambdas
    monkeypatch.chdir(folder)
    from dim.model import network

    refused(spec.resolve, "vgg16-gem", str(folder / "a.keras"), match="neither .npz nor .h5")
    refused(spec.resolve, str(folder / "a.keras"), match="no model")
    refused(network.load, spec.resolve("vgg16-gem", str(folder / "a.h5")), "float32", match="cannot load the weights")
    assert not proof.exists()


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.mkdir [proof]",
        "model: !!python/name:os.mkdir",
        "!!python/object/new:os.mkdir [proof]",
        "model: !unknown x",
        "model: 2020-13-45",
        "batch-size: " + "9" * 5000,
        "scales: " + "9" * 400,
        "scales: [.inf, 1e999, " + "9" * 400 + "]",
        "[" * 3000,
        "\0",
        "model: [\udc80",
        'model: "\\ud800"',
        'weights: "\\udfff.npz"',
    ],
)
def test_yaml(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_bytes(text.encode(errors="surrogateescape"))
    refused(lambda: ExtractConfig(manifest="", out="", **({"model": ""} | read_yaml("a.yaml", ExtractConfig))))
    assert not (tmp_path / "proof").exists()


def test_yaml_that_unfolds(tmp_path):
    nested = "model: &a0 [x]\n" + "\n".join(
        f"{key}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]"
        for i, key in enumerate(["out", "root", "manifest", "weights", "pooling", "split", "store", "whitening"], 1)
    )
    (tmp_path / "a.yaml").write_text(nested)
    refused(read_yaml, str(tmp_path / "a.yaml"), ExtractConfig, match="must be text")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"format_version": 1, "image_size": 1e999}',
        '{"format_version": ' + "1" * 5000 + "}",
        "\udc80",
        "null",
        '{"format_version": "\\ud800"}',
        '{"format_version": 1, "backbone": "\\ud800", "layer": "\\udfff"}',
        '{"\\ud800": 1}',
    ],
)
def test_model_json(tmp_path, text):
    (tmp_path / "model.json").write_bytes(text.encode(errors="surrogateescape"))
    refused(spec.read, str(tmp_path))


HALVES = {
    "escaped": b'{"job": "extract", "model": "\\ud800"}',
    "in bytes": b'{"job": "extract", "model": "\xed\xa0\x80"}',
}


@pytest.mark.parametrize("kind", HALVES)
def test_half_a_surrogate_pair(tmp_path, kind):
    (tmp_path / "run.json").write_bytes(HALVES[kind])
    refused(output_folder.record_of, str(tmp_path), match="run.json' is not JSON: .*surrogates not allowed")
    refused(files.read_json, str(tmp_path / "run.json"), match="run.json' is not JSON")


def test_a_whole_surrogate_pair(tmp_path):
    (tmp_path / "a.json").write_bytes(b'["\\ud83d\\ude00", "\\\\ud800"]')
    assert files.read_json(str(tmp_path / "a.json")) == ["\U0001f600", "\\ud800"]


def test_half_a_surrogate_pair_in_a_whitening(tmp_path):
    arrays = {name: np.ones(2) for name in ("mean", "eigenvalues")} | {"projection": np.eye(2), "power": 1.0}
    np.savez(tmp_path / "a.npz", kind="pca", learned_on='{"manifest": "\\ud800"}', embedding="null", **arrays)
    refused(whitening.load, str(tmp_path / "a.npz"), match="is not a whitening file .*surrogates not allowed")


def test_nothing_in_the_source_runs_what_it_reads():
    """The calls that run what they are given stand nowhere, save the restricted unpickler."""
    banned = {"eval", "exec", "load_model", "unsafe_load", "full_load", "extractall", "extract_all", "model_from_json"}
    for path in [*REPOSITORY.glob("dim/**/*.py"), *REPOSITORY.glob("jobs/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called.rpartition(".")[2] not in banned, f"{path} calls {called}"
                assert called not in ("yaml.load", "pickle.load", "pickle.loads", "joblib.load"), (
                    f"{path} calls {called}"
                )
                assert not any(
                    word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords
                ), path
                assert called != "np.load" or any(word.arg == "allow_pickle" for word in node.keywords), path


# Paths that lead elsewhere.


def test_paths_outside_the_root(tmp_path, write_manifest):
    (tmp_path / "root" / "in").mkdir(parents=True)
    (tmp_path / "rooted").mkdir()
    for name in ("root/in/a.jpg", "rooted/b.jpg", "c.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "root" / "link.jpg").symlink_to(tmp_path / "c.jpg")
    (tmp_path / "root" / "folder").symlink_to(tmp_path)
    (tmp_path / "root" / "inner.jpg").symlink_to(tmp_path / "root" / "in" / "a.jpg")

    def check(path, root=f"{tmp_path}/root"):
        identity.require_under(root, manifest.read(write_manifest(image_id=["a"], path=[path])))

    for inside in ("root/in/a.jpg", "root/in/../in/a.jpg", "root/inner.jpg", f"file://{tmp_path}/root/in/a.jpg"):
        check(inside)
        check(inside, "/")
    outside = ["c.jpg", "root/../c.jpg", "root/link.jpg", "root/folder/c.jpg", "rooted/b.jpg", "/etc/passwd", "root"]
    outside += ["file:///etc/passwd", f"file://{tmp_path}/root/../c.jpg", "s3://bucket/a.jpg"]
    for path in outside:
        refused(check, path, match="outside --root")


def test_paths_outside_a_root_in_a_store(write_manifest, s3):
    bucket = s3.bucket("hostile")
    for path, inside in {"a/b.jpg": True, "a/../a/b.jpg": True, "a/../../b.jpg": False, "ab/c.jpg": False}.items():
        rows = manifest.read(write_manifest(image_id=["a"], path=[f"{bucket}/{path}"]))
        if inside:
            identity.require_under(f"{bucket}/a", rows)
        else:
            refused(identity.require_under, f"{bucket}/a", rows, match="outside --root")


# Names.


def test_names_cannot_steer_a_terminal_or_forge_a_line():
    handler = logging.StreamHandler(io.StringIO())
    logs.set_up(handler, "test")
    name = "a\x1b[2J\r12:00:00 all is well\n\u202egpj.exe s3://AKIA:hush@bucket/<script>"
    handler.emit(logging.makeLogRecord({"msg": "%s", "args": (name,)}))
    said = handler.stream.getvalue()
    assert said.endswith("a\\x1b[2J\\r12:00:00 all is well\\n\\u202egpj.exe s3://…@bucket/<script>\n")


def test_machines_read_no_secret_and_no_control_characters(monkeypatch):
    monkeypatch.setenv("DIM_LOG", "json")
    handler = logging.StreamHandler(io.StringIO())
    logs.set_up(handler, "test")
    try:
        raise ValueError("s3://AKIA:hush@bucket/\x9b2J")
    except ValueError:
        record = {"msg": "s3://AKIA:hush@bucket/\u202e", "exc_info": sys.exc_info()}
        handler.emit(logging.makeLogRecord(record))
    said = handler.stream.getvalue()
    assert "hush" not in said and "\u202e" not in said and "\x9b" not in said


def test_a_column_name_cannot_forge_a_line(tmp_path):
    pq.write_table(pa.table({"a\nb": ["x"]}), tmp_path / "a.parquet")
    refused(manifest.read, str(tmp_path / "a.parquet"), match=r"has no column '\w+'; it has 'a\\nb'")


def test_names_that_are_no_text(tmp_path):
    for name in (b"a\xff.jpg", b"b.jpg"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).touch()
    found = photos.list_folder(str(tmp_path))
    assert (found.files, found.skipped) == (["b.jpg"], {"a\\xff.jpg": "its name is not UTF-8; rename it"})
    refused(files.names, str(tmp_path), match="is not UTF-8; rename it")


def test_a_path_that_cannot_be_is_one_error_not_the_end(tmp_path, write_manifest):
    (tmp_path / "a.jpg").touch()
    rows = manifest.read(write_manifest(image_id=["a", "b"], path=["a.jpg", "x" * 300]))
    assert identity.fingerprint_photos(rows).present.tolist() == [True, False]
    refused(manifest.read, write_manifest(image_id=["a"], path=["a\0.jpg"]), match="row 1 has a NUL in its path")


# Tables.


def parquet(table, **options):
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


NESTED = pa.array([{"a": [1]}])
TABLES = {
    "binary.parquet": parquet(pa.table({"image_id": [b"\xff"], "path": [b"\xfe"]})),
    "nested.parquet": parquet(pa.table({"image_id": NESTED, "path": ["a"]})),
    "box.parquet": parquet(pa.table({"image_id": ["a"], "path": ["a"], **dict.fromkeys(manifest.BOX, NESTED)})),
    "twice.parquet": parquet(pa.table([["a"], ["b"], ["c"]], names=["image_id", "path", "path"])),
    "twice.csv": b"image_id,path,image_id\na,b,c\n",
    "name.csv": b"im\xa1age_id,path\na,b",
    "cell.csv": b"image_id,path\na,\xff",
    "utf8.parquet": parquet(pa.table({"image_id": ["abcdefgh"], "path": ["p"]}), compression="none").replace(
        b"abcdefgh", b"abcdef\xff\xff"
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_the_wrong_kind(tmp_path, name, write_manifest):
    (tmp_path / name).write_bytes(TABLES[name])
    refused(manifest.read, str(tmp_path / name))
    known = manifest.read(write_manifest(image_id=["a"]))
    refused(ground_truth.read, str(tmp_path / name), known)


# Ten gigabytes claimed by a few bytes. Each is read in a process that may not take so much.


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def tiff(width, height):
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 2**32 - 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("photo", [png(100_000, 100_000), tiff(100_000, 100_000), png(2**31 - 1, 2**31 - 1)])
def test_a_photo_that_claims_much(photo):
    with pytest.raises(DecodeError, match=r"the limit is|no photo|pixels"):
        decode(photo, 32, "squash")


def test_a_parquet_file_that_unfolds(tmp_path, limited):
    rows = 20_000_000  # of one value
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), ["a"])
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"image_id": column, "path": column}), row_group_size=rows))
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    limited(tmp_path / "a.parquet", "manifest.read", "rows and .* bytes, in a file of")


def test_rows_that_each_repeat_a_long_text_in_a_list(tmp_path, limited):
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(40_000, np.int32)), ["x" * 300_000])
    row = pa.table({"image_id": ["a"], "path": ["a"], "label": pa.ListArray.from_arrays([0, 40_000], text)})
    with pq.ParquetWriter(tmp_path / "a.parquet", row.schema, store_schema=False, compression="zstd") as file:
        for _ in range(2):
            file.write_table(row)  # a row group each
    limited(tmp_path / "a.parquet", "manifest.read", "12,000,.* bytes, in a file of")


@pytest.mark.parametrize("nested", [False, True])
def test_a_parquet_file_that_repeats_a_long_text(tmp_path, limited, nested):
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(40_000, np.int32)), ["x" * 300_000])
    label = pa.ListArray.from_arrays(pa.array(range(40_001), pa.int32()), text) if nested else text
    ids = pa.array(range(40_000)).cast(pa.string())
    table = pa.table({"image_id": ids, "path": ids, "label": label})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", row_group_size=40_000, store_schema=False)
    limited(tmp_path / "a.parquet", "manifest.read", "12,000,.* bytes, in a file of")


@pytest.mark.parametrize(("encoding", "rows"), [("DELTA_BYTE_ARRAY", 4000), ("DELTA_LENGTH_BYTE_ARRAY", 1000)])
def test_a_parquet_file_whose_texts_repeat_the_one_before(tmp_path, limited, encoding, rows):
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), ["x" * 300_000]).dictionary_decode()
    schema = pa.schema([(name, pa.string()) for name in ("image_id", "path", "label")])
    options = {"use_dictionary": False, "column_encoding": {"label": encoding}, "compression": "zstd"}
    with pq.ParquetWriter(tmp_path / "a.parquet", schema, store_schema=False, **options) as writer:
        for start in range(0, rows, 1000):
            ids = pa.array(range(start, start + 1000)).cast(pa.string())
            writer.write_table(pa.table([ids, ids, text], schema=schema))
    limited(tmp_path / "a.parquet", "manifest.read", "it claims .* bytes, in a file of")


def test_a_parquet_file_that_repeats_a_long_binary(tmp_path, limited):
    values = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(4000, np.int32)), pa.array([bytes(300_000)], pa.binary(300_000))
    )
    ids = pa.array(range(4000)).cast(pa.string())
    table = pa.table({"image_id": ids, "path": ids, "label": values})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", row_group_size=4000, store_schema=False)
    limited(tmp_path / "a.parquet", "manifest.read", "it claims .* bytes, in a file of")


def test_a_parquet_file_of_which_a_group_claims_more_rows_than_the_whole(tmp_path, limited):
    content = parquet(pa.table({"image_id": ["a", "b"], "path": ["a", "b"]}))
    (footer,) = struct.unpack("<I", content[-8:-4])
    many = bytes([0xFC, 0xFF, 0xFF, 0xFF, 0xFF, 0x03])  # 2^36 or so, as 0x04 is 2
    found = 0
    for place in range(len(content) - 8 - footer, len(content) - 8):
        if content[place] == 0x04:
            changed = content[:place] + many + content[place + 1 : -8]
            path = tmp_path / f"{place}.parquet"
            path.write_bytes(changed + struct.pack("<I", footer + len(many) - 1) + b"PAR1")
            with contextlib.suppress(pa.ArrowInvalid, OSError):
                about = pq.read_metadata(path)
                if about.num_rows == 2 and about.row_group(0).num_rows > 10**9:
                    limited(path, "manifest.read", "it claims .* rows")
                    found += 1
    assert found == 1


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    refused(manifest.read, str(tmp_path / "a.csv"), match="is not a regular file")
    refused(files.read_json, str(tmp_path / "a.csv"), match="is not a regular file")
    with pytest.raises(OSError, match="is not a regular file"):
        photos.read(str(tmp_path / "a.csv"))


def test_arrays_that_claim_much(tmp_path, limited):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("mean.npy", "w") as file:
        np.lib.format.write_array_header_2_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**10,)})
    limited(tmp_path / "a.npz", "whitening.load", "is not a whitening file")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("block1_conv1/kernel", (10**5, 10**5), "f8", chunks=(1000, 1000), compression="gzip")
    limited(tmp_path / "a.h5", "lambda uri: network.load(spec.resolve('vgg16-gem', uri), 'float32')", "cannot read")


@pytest.fixture
def limited():
    """Asserts that a call on a file is refused with a message, and takes less than 1 GB beyond what was there."""

    def check(path, call, message):
        program = textwrap.dedent(f"""
            import re, resource
            from dim.data import manifest
            from dim.errors import UserError
            from dim.model import spec, whitening
            if "network" in {call!r}:
                from dim.model import network
                network.load(spec.resolve("vgg16-gem", "random"), "float32")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                ({call})({str(path)!r})
            except UserError as error:
                assert re.search({message!r}, str(error)), error
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                assert grown < 1e6, grown
                print("refused")
        """)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.stdout == "refused\n", done.stderr

    return check
