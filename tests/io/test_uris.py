"""Paths and URIs: `file://` is encoded and decoded once, all else is literal, and no host is ever asked."""

import ast
import os
import re
import string
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dim.app import cluster
from dim.data import import_job as importing
from dim.data import manifest, photos, split
from dim.data.config import ImportConfig, SplitConfig
from dim.data.decode import decode
from dim.errors import UserError
from dim.evaluate import descriptor_sets
from dim.extract import identity
from dim.io import files, storage, tables, uris
from dim.report import search
from dim.search import queries

REPOSITORY = Path(__file__).resolve().parents[2]
ODD = [
    *"%#~",
    "100%",
    "100%.jpg",
    "%zz",
    "%%41",
    "a%2Bb.jpg",
    "a+b.jpg",
    "%C3%BC.jpg",
    "x y.jpg",
    "ü – é.jpg",
    "日本.jpg",
]
ODD += ["a#1?b=c&d;e.jpg", "back\\slash.jpg", "a:b@c.jpg", "'\"<>.jpg", " leading", "trailing ", "new\nline", "tab\t"]
NAMES = st.sampled_from(ODD) | st.text(
    st.sampled_from("ab%2Ff#?+ ü~:@\\;&=") | st.characters(codec="utf-8", exclude_characters="/\0\r"), min_size=1
).filter(lambda name: name not in (".", "..") and uris.MEMBER not in name and len(name.encode()) < 200)


def decoded(text):
    """A naive reading of percent-encoding."""
    found, left = b"", text.encode()
    while left:
        escaped = left[:1] == b"%" and len(left) > 2 and all(chr(byte) in string.hexdigits for byte in left[1:3])
        found += bytes([int(left[1:3], 16)]) if escaped else left[:1]
        left = left[3 if escaped else 1 :]
    return found


@given(folder=NAMES, name=NAMES)
@example("Fotos von 100% – ü #1?", "a%2Bb.jpg")
def test_a_name_below_a_file_uri_is_encoded_as_pathlib_does_and_decoded_once(folder, name):
    path = Path(f"/mnt/{folder}/{name}")
    uri = files.join(files.join("file:///mnt", folder), name)
    assert uri == path.as_uri()
    if "%" not in folder:
        assert files.join(f"file:///mnt/{folder}", name) == uri
    assert uris.parts(uri) == ("file", str(path)) and files.locate(uri)[1] == str(path)
    assert files.name(uri) == name and files.parent(uri) == path.parent.as_uri()
    assert files.absolute(uri) == uri and files.is_local(uri)


@given(NAMES)
def test_what_a_person_left_unencoded_stands_for_itself(name):
    uri, path = f"file:///mnt/{name}", b"/mnt/" + decoded(name)
    if b"/" in decoded(name) or b"\0" in decoded(name):
        return
    try:
        path.decode()
    except UnicodeDecodeError:
        with pytest.raises(UserError, match="is not UTF-8"):
            uris.parts(uri)
        return
    assert uris.parts(uri)[1] == os.path.abspath(path.decode())
    if "%" not in name:
        assert uris.parts(uri)[1] == f"/mnt/{name}"
    assert uris.parts(files.absolute(uri)) == uris.parts(uri)
    assert files.absolute(uri) == f"file:///mnt/{Path(path.decode()).as_uri().removeprefix('file:///mnt/')}"


def test_what_looks_like_a_secret_may_be_a_file_s_name():
    assert uris.parts("file:///mnt/a?token=b&key=c@d:e.jpg") == ("file", "/mnt/a?token=b&key=c@d:e.jpg")


@given(NAMES)
def test_names_elsewhere_are_literal(name):
    assert uris.parts(f"/mnt/{name}") == ("", f"/mnt/{name}")
    for scheme in ("s3", "gs"):
        uri = files.join(f"{scheme}://bucket/a b", name)
        assert uri == f"{scheme}://bucket/a b/{name}"
        if not re.search(r"[?&;].*=", name):  # which may be credentials or parameters
            assert uris.parts(uri) == (scheme, f"bucket/a b/{name}")


@settings(deadline=None, max_examples=30)
@given(names=st.lists(st.tuples(NAMES, NAMES), min_size=1, unique=True), ending=st.sampled_from([".csv", ".parquet"]))
@example([("file:", "x.jpg"), ("C:\\", "x.jpg"), ("s3:", "x.jpg"), ("~", "x.jpg")], ".csv")
def test_from_a_folder_through_a_manifest_each_photo_stays_itself(tmp_path_factory, names, ending):
    top = tmp_path_factory.mktemp("100% #1 ü")
    paths = [f"{top}/photos/{label}/{name}" for label, name in names]
    for scheme in ("", "file://"):
        folder = f"{scheme}{top}/photos"  # as a person writes it, the name not encoded
        uris = [files.join(folder, f"{label}/{name}") for label, name in names]
        assert [files.locate(uri)[1] for uri in uris] == paths
        for place in (f"{scheme}{top}", folder, f"{scheme}/elsewhere"):
            named = photos.manifest_paths(uris, place)
            if place != folder:  # else a label may be called "file:"
                expected = [path.removeprefix(f"{top}/") for path in paths] if place == f"{scheme}{top}" else uris
                assert named == expected
            kept = f"{scheme}{top}/kept{ending}"
            tables.write(kept, pa.table({"image_id": list(map(str, range(len(names)))), "path": named}))
            found = manifest.checked(f"{place}/photos{ending}", tables.read(kept)).paths
            assert [files.locate(path)[1] for path in found] == paths


@pytest.fixture
def odd(tmp_path):
    """A folder of an odd name, with files of odd names, each of which holds its own."""
    folder = tmp_path / "Fotos von 100% – ü #1?"
    (folder / "label").mkdir(parents=True)
    for name in ODD:
        (folder / "label" / name).write_text(name)
    return folder


@pytest.mark.parametrize("spelling", ["path", "uri", "unencoded"])
def test_a_folder_lists_and_reads_the_same_however_it_is_spelt(odd, spelling):
    folder = {"path": str(odd), "uri": odd.as_uri(), "unencoded": f"file://{odd}"}[spelling]
    assert files.folders(folder) == ["label"] and files.names(files.join(folder, "label")) == sorted(ODD)
    found = [
        (row["image_id"], files.read_bytes(row["path"]).decode()) for row in queries.list_photos(folder).to_pylist()
    ]
    assert found == sorted((f"label/{name}", name) for name in ODD)
    out = files.join(folder, "50 %25")
    files.make_folder(out)
    files.write_json(files.join(out, "run.json"), {})
    assert (odd / "50 %25" / "run.json").exists()


@pytest.mark.parametrize("spelling", ["path", "uri", "unencoded"])
def test_split_and_import_write_names_that_lead_to_the_same_photos(tmp_path, spelling):
    top = tmp_path / "Fotos von 100% – ü #1?"
    names = {f"{label}/{name}" for label in ("50%", "a#b") for name in ("a%2Bb.png", "a+b.png", "x y.png")}
    holidays = {"100000.jpg", "100001.jpg"}
    for number, name in enumerate(sorted(names | holidays)):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (20 * number, 0, 0)).save(top / name, format="PNG")
    folder = {"path": str(top), "uri": top.as_uri(), "unencoded": f"file://{top}"}[spelling]

    def colours(uri):
        found = manifest.read(uri)
        reds = [round(decode(photos.read(path), 32, "squash").pixels.mean(axis=(0, 1))[0]) for path in found.paths]
        return sorted(reds), found.table["path"].to_pylist()

    within, elsewhere = f"{folder}/m.csv", str(tmp_path / "m.parquet")
    for out in (within, elsewhere):
        split.split(SplitConfig(images=folder, out=out, val_per_label=0, test_per_label=1))
    reds = [20 * number for number, name in enumerate(sorted(names | holidays)) if name in names]
    full = {f"{top.name}/{name}" if spelling == "path" else (top / name).as_uri() for name in names}
    assert colours(within)[0] == colours(elsewhere)[0] == reds
    assert set(colours(within)[1]) == names and set(colours(elsewhere)[1]) == full
    result = importing.import_benchmark(ImportConfig(layout="holidays", source=folder, out=f"{folder}/50 % off"))
    assert (result["photos"], result["missing"], result["corrupt"]) == (2, 0, 0)
    assert colours(f"{folder}/50 % off/manifest.parquet")[0] == [0, 20]


def test_a_relative_path_in_a_manifest_at_a_file_uri_is_a_plain_name(odd):
    table = pa.table({"image_id": ODD, "path": [f"label/{name}" for name in ODD]})
    (odd / "label" / "100%.jpg").unlink()
    for folder in (str(odd), odd.as_uri(), f"file://{odd}"):
        found = manifest.checked(f"{folder}/photos.csv", table)
        assert identity.fingerprint_photos(found).present.tolist() == [name != "100%.jpg" for name in ODD]
        identity.require_under(folder, found)
        identity.require_under(odd.as_uri(), found)
        with pytest.raises(UserError, match="outside --root"):
            identity.require_under(f"{folder}/lab", found)


def test_content_is_that_of_the_path_as_the_manifest_writes_it(odd):
    """What was computed before is not computed again; the golden number is the hash that earlier versions made."""
    file = odd / "label" / "a+b.jpg"
    os.utime(file, ns=(10**18, 10**18))
    table = pa.table({"image_id": ["a"], "path": ["label/a+b.jpg"]})
    (found,) = identity.fingerprint_photos(manifest.checked(f"{odd}/photos.csv", table)).contents.to_pylist()
    assert found == "38ac4fba8234e72abb1478b9e1776415"
    assert identity.fingerprint_photos(manifest.checked(f"file://{odd}/photos.csv", table)).contents.to_pylist() == [
        found
    ]


def test_the_query_of_a_file_uri_is_called_by_its_name(odd):
    uri = (odd / "label" / "a%2Bb.jpg").as_uri()
    assert queries.list_photos(uri).to_pylist() == [{"image_id": "a%2Bb.jpg", "path": uri}]


def test_the_mark_of_a_tar_s_member_stays_one():
    assert files.join("file:///mnt/ü", "a#1.tar#b#2 .jpg") == "file:///mnt/%C3%BC/a%231.tar#b%232%20.jpg"
    for uri in ("file:///mnt/a%23.tar#b%20c.jpg", "file:///mnt/a.tar%23b.jpg"):
        assert files.absolute(uri) == uri
    assert files.join("s3://bucket", "a.tar#b.jpg") == "s3://bucket/a.tar#b.jpg"


def test_a_tar_s_member_is_named_as_it_is_in_the_tar():
    """Neither `..` nor what a store's keys can't have means anything in the name of a member."""
    for name in ("b.jpg", "./b.jpg", "a/../b.jpg", "a//b?c=d.jpg", "ü #1%20.jpg", "c.tar", ""):
        for folder, scheme in (("/mnt", ""), ("file:///mnt", "file"), ("s3://mnt", "s3"), ("gs://mnt/.", "gs")):
            uri = files.join(folder, f"a#1.tar#{name}")
            assert uris.tar_and_member(uri) == (files.join(folder, "a#1.tar"), name)
            assert uris.parts(uri) == (scheme, f"{uris.parts(files.join(folder, 'a#1.tar'))[1]}#{name}")
            assert uris.parts(files.absolute(uri)) == uris.parts(uri)
    assert uris.tar_and_member("a.tar#b.tar#c") == ("a.tar#b.tar", "c")
    for uri in ("a.tar", "a.tar/b#c", "file:///a.tar%23b", "a.tgz#b"):
        assert uris.tar_and_member(uri) == (uri, None)
    for uri in ("http://a/b.tar#c", "s3://a:b@c/d.tar#e", "a\0.tar#b", "a.tar#b\0", "a.tar#\udcff"):
        with pytest.raises(UserError):
            uris.parts(uri)
    for path in ("x.tar#../a.jpg", "deep/x.tar#./a.jpg"):
        assert photos.manifest_paths([f"/mnt/{path}", f"file:///mnt/{path}"], "/mnt") == [path, f"file:///mnt/{path}"]


def test_roots():
    assert files.parent("file:///a.csv") == "file:///" and files.join("file:///", "b c") == "file:///b%20c"
    assert files.parent("/a.csv") == "/" and files.join("/", "b c") == "/b c"
    assert photos.manifest_paths(["file:///b%20c"], "file:///") == ["b c"] and photos.manifest_paths(["/b"], "/") == [
        "b"
    ]
    assert uris.parts("//mnt/a") == uris.parts("/mnt/a") == ("", "/mnt/a")
    assert uris.parts("file:////mnt//a/../b/") == ("file", "/mnt/b")


def test_on_a_cluster_a_file_uri_is_shared_and_a_path_is_not(monkeypatch):
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}])
    monkeypatch.setattr(cluster, "_copied_folders", lambda: ("/nowhere/",))
    rows = manifest.checked("file:///mnt/ü/m.csv", pa.table({"image_id": ["a"], "path": ["x y.jpg"]}))
    cluster.require_shared(rows.paths)
    with pytest.raises(UserError, match="on the disk of one machine"):
        cluster.require_shared(["/mnt/ü/x y.jpg"])


# Names that dim does not read, each with a part of the message.
REFUSED = {
    "abfs://account@evil.example/a.jpg": "unknown scheme 'abfs'",
    "abfss://container@account.dfs.core.windows.net/a.jpg": "unknown scheme 'abfss'",
    "hdfs://evil.example:8020/a.jpg": "unknown scheme 'hdfs'",
    "viafs://a/b.jpg": "unknown scheme 'viafs'",
    "https://evil.example/a.jpg": "unknown scheme 'https'",
    "http://169.254.169.254/latest": "unknown scheme 'http'",
    "s3a://bucket/a.jpg": "unknown scheme 's3a'",
    "S3://bucket/a.jpg": "unknown scheme 'S3'",
    " s3://bucket/a.jpg": "unknown scheme ' s3'",
    "FILE:///a.jpg": "unknown scheme 'FILE'",
    "s3:/bucket/a.jpg": "must begin with s3://",
    "GS:bucket/a.jpg": "must begin with gs://",
    "file:/a.jpg": "must begin with file:///",
    "file:a.jpg": "must begin with file:///",
    "file://evil.example/a.jpg": "names the host 'evil.example'",
    "file://localhost/a.jpg": "names the host 'localhost'",
    "file://photos/a.jpg": "names the host 'photos'",
    "file://user@host/a.jpg": "names the host",
    "s3://user@bucket/a.jpg": "has credentials in it",
    "gs://user:hush@bucket/a.jpg": "has credentials in it",
    "file://user:hush@host/a.jpg": "has credentials in it",
    "https://user:hush@evil.example/a.jpg": "has credentials in it",
    "s3://bucket:9000/a.jpg": "'bucket:9000' is not a bucket",
    "s3://evil.example#/a.jpg": "'evil.example#' is not a bucket",
    "s3://evil.example?x/a.jpg": "is not a bucket",
    "s3://b%2Fc/a.jpg": "is not a bucket",
    "s3:///a.jpg": "'' is not a bucket",
    "s3://bucket//a.jpg": "its key has an empty part, //; copy it to a key without",
    "gs://bucket/a//b.jpg": "its key has an empty part",
    "gs:///a.jpg": "'' is not a bucket; write gs://BUCKET/KEY",
    "gs://": "'' is not a bucket",
    "gs://bucket:80/a.jpg": "is not a bucket",
    "s3://bucket/a.jpg?endpoint_override=evil.example": "has parameters",
    "s3://bucket/a.jpg?scheme=http&region=x": "has parameters",
    "C:\\photos\\a.jpg": "is a Windows path",
    "d:/photos/a.jpg": "is a Windows path",
    "file:///C:/photos/a.jpg": "is a Windows path",
    "\\\\server\\share\\a.jpg": "is a Windows path",
    "file:///a%00.jpg": "has a NUL",
    "file:///a%FF.jpg": "is not UTF-8; rename it",
}


@pytest.fixture
def alone(monkeypatch):
    """Opening a storage fails the test."""

    def asked(*arguments, **named):
        raise AssertionError(f"asked for {arguments}")

    for name in ("_s3", "_google"):
        monkeypatch.setattr(storage, name, asked)
    storage._opened.cache_clear()


def refused(call, uri, match):
    with pytest.raises(UserError, match=match) as error:
        call(uri)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("uri", REFUSED)
def test_what_names_no_place_is_refused_by_name_and_nobody_is_asked(uri, alone, tmp_path, write_manifest):
    said = re.escape(REFUSED[uri])
    for call in (uris.parts, files.locate, files.exists, files.read_bytes, files.absolute, files.names):
        assert "hush" not in refused(call, uri, said)
    table = write_manifest(image_id=["a", "b", "c"], path=["a.jpg", uri, uri])
    row = r"photos\.csv': row 2 \(image_id 'b'\): "
    assert "hush" not in refused(manifest.read, table, f"{row}.*{said}.*; 2 such rows")
    for inputs in ({"manifest": uri}, {"descriptors": uri}):  # of a folder that somebody else made
        files.write_json(f"{tmp_path}/run.json", {"job": "extract", "inputs": inputs})
        assert search.of_folder(str(tmp_path), ["a"]) == search.NOT_KNOWN


def test_the_inputs_of_a_folder_that_somebody_else_made_are_asked_of_nobody(alone, write_descriptors):
    folders = {}
    for kind in ("model", "whitening"):
        inputs = {kind: "abfs://account@evil.example/a"}
        folders[kind] = write_descriptors(["a"], [[1.0, 0.0]], name=kind, inputs=inputs, whitening="0" * 64)
    refused(lambda folder: descriptor_sets.whitenings_of(folder, None), folders["model"], "unknown scheme 'abfs'")
    (step,) = descriptor_sets.whitenings_of(folders["whitening"], None)
    assert step["learned_on"] is None


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            ["s3", "gs", "file", "abfs", "a", ":", "//", "/", "\\", "%", "00", "2B", "ff", "\0", "?", "#", "@"]
        )
        | st.text(max_size=3)
    ).map("".join)
)
@example("file:///a%00b")
@example("s3://a@b/c")
def test_what_a_table_takes_for_sound_is_never_refused(name):
    if pc.match_substring_regex(pa.array([name]), uris.SOUND)[0].as_py():
        uris.parts(name)


def test_buckets_with_dots_are_buckets(monkeypatch):
    monkeypatch.setattr(storage, "_opened", lambda _: pafs.LocalFileSystem())
    for uri in ("gs://photos.example.com/a.jpg", "s3://my_old.Bucket-1/a?b#c%20.jpg", "s3://bucket"):
        assert files.locate(uri)[1] == uri.partition("://")[2]


def test_arrow_s_own_reading_of_uris_is_never_asked():
    for path in [*REPOSITORY.glob("dim/**/*.py"), *REPOSITORY.glob("jobs/*.py"), *REPOSITORY.glob("cluster/**/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not names & {"from_uri", "_resolve_filesystem_and_path", "FSSpecHandler", "SubTreeFileSystem"}, path


def test_a_path_that_is_no_text_is_named_with_its_row(tmp_path):
    columns = {"image_id": ["a", "b", "c"], "path": [b"a.jpg", b"b\xff.jpg", b"\xfe"]}
    tables.write(f"{tmp_path}/m.parquet", pa.table(columns))
    with pytest.raises(UserError, match=r"column 'path' must be text: .* in row 2, b'b\\xff.jpg'; 2 such rows"):
        manifest.read(f"{tmp_path}/m.parquet")
    columns["path"] = ["a.jpg", "b\0.jpg", "c\0"]
    tables.write(f"{tmp_path}/m.parquet", pa.table(columns))
    with pytest.raises(UserError, match=r"row 2 has a NUL in its path; 2 such rows"):
        manifest.read(f"{tmp_path}/m.parquet")


def test_backslashes_of_windows_are_told_where_nothing_is_found(tmp_path, write_manifest):
    rows = manifest.read(write_manifest(image_id=["a"], path=["photos\\a.jpg"]))
    with pytest.raises(UserError, match=r"and use / where Windows uses \\"):
        identity.fingerprint_photos(rows)
    (tmp_path / "photos\\a.jpg").touch()  # a name like any other, here
    assert identity.fingerprint_photos(rows).present.tolist() == [True]
