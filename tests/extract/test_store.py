"""The store: only intact shards count, and readers name what is wrong with the others."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dim.data import manifest as manifests
from dim.errors import UserError
from dim.extract import descriptors, store
from dim.extract.embedding import NetworkEmbedding
from dim.io import files
from dim.search import descriptor_folder

EMBEDDING = NetworkEmbedding("vgg16", "block5_conv3", "gem", "0", "caffe", 224, "squash", (1.0,), None, None, "float32")


def table_of(vectors, kind="float32"):
    """image_id → vector, None for an error row."""
    size = len(next(vector for vector in vectors.values() if vector is not None))
    columns = {
        "image_id": list(vectors),
        "descriptor": pa.array(list(vectors.values()), store.schema(size, kind).field("descriptor").type),
        "status": ["error" if vector is None else "ok" for vector in vectors.values()],
        "error": ["broken" if vector is None else None for vector in vectors.values()],
        **{name: pa.nulls(len(vectors), kind) for name, kind in (("width", pa.int32()), ("height", pa.int32()))},
        "content": [f"c{name}" for name in vectors],
    }
    return pa.table(columns, schema=store.schema(size, kind))


@pytest.fixture
def folder(tmp_path):
    files.write_json(str(tmp_path / "run.json"), {"job": "extract", "embedding": EMBEDDING.as_json()})
    store.write_shard(str(tmp_path), "part-b", table_of({"3": [0.0, 1.0], "1": None}))
    store.write_shard(str(tmp_path), "part-a", table_of({"2": [1.0, 0.0], "0": [0.5, 0.5]}))
    return str(tmp_path)


def manifest_of(*ids):
    return manifests.checked("photos.csv", pa.table({"image_id": ids, "path": ids}))


def test_a_shards_name_is_its_rows():
    def name(*rows):
        listed = "\n".join(f"{image_id}\t{content}" for image_id, content in rows)
        expected = f"part-{hashlib.sha256(listed.encode()).hexdigest()[:16]}"
        for chunks in ([rows], [rows[:1], rows[1:]]):
            ids, contents = (
                pa.chunked_array([[row[column] for row in chunk] for chunk in chunks], pa.string()) for column in (0, 1)
            )
            assert store.shard_name(ids, contents) == expected
        return expected

    a, b = ("a", "1"), ("ü", "2")
    assert len({name(a, b), name(b, a), name(a), name(a, ("ü", "3"))}) == 4
    assert name() == "part-e3b0c44298fc1c14"


def test_facts_say_what_is_in_the_shard(tmp_path):
    table = table_of({"3": [0.0, 1.0], "1": None, "2": [1.0, 0.0]})
    table = store.marked(table.append_column("several", pa.array([True, None, True])), EMBEDDING)
    facts = store.write_shard(str(tmp_path), "part-a", table)
    content = (tmp_path / "part-a.parquet").read_bytes()
    known = {"rows": 3, "errors": 1, "several_frames": 2}
    assert facts == known | {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert store.facts_of(store.read_shard(str(tmp_path), "part-a"), content) == facts


def test_only_shards_are_shards(folder, tmp_path):
    for name in ("part-c.json", "part-d.parquet.7.tmp", "ids.parquet"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "part-1-of-2").mkdir()
    assert store.shards(folder) == ["part-a", "part-b"]
    store.delete_shard(folder, "part-b")
    store.delete_shard(folder, "part-b")
    assert store.shards(folder) == ["part-a"]


def test_rows_come_in_the_manifests_order_without_errors(folder):
    found = descriptors.read(folder, manifest_of("0", "1", "2", "3"))
    assert found.embedding == EMBEDDING
    assert found.rows.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(found.vectors, np.array([[0.5, 0.5], [1, 0], [0, 1]], np.float32))
    assert descriptors.read(folder, manifest_of("3", "0")).vectors.tolist() == [[0, 1], [0.5, 0.5]]


def test_rows_that_are_missing_or_all_errors(folder):
    with pytest.raises(UserError, match=r"lacks 2 of the 3 images asked for, the first 'x'; run extract\.py"):
        descriptors.read(folder, manifest_of("0", "x", "y"))
    with pytest.raises(UserError, match="each of its 1 rows is an error"):
        descriptors.read(folder, manifest_of("1"))


def test_a_damaged_shard_is_named(folder, tmp_path):
    path = tmp_path / "part-a.parquet"
    whole = path.read_bytes()
    start = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    for damaged in (whole[:-20], whole[: start + 60] + b"\xff" + whole[start + 61 :]):
        path.write_bytes(damaged)
        said = r"part-a\.parquet' is damaged .*; delete it, and run the same extract\.py again"
        with pytest.raises(store.Damaged, match=said) as error:
            descriptors.read(folder, manifest_of("0"))
        assert "\n" not in str(error.value)


def refused_shard(folder, said):
    with pytest.raises(UserError, match=rf"part-a\.parquet' .*{said}.*; make this folder again") as error:
        store.read_shard(folder, "part-a", ["image_id", "descriptor", "status", "error"], EMBEDDING, 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["image_id", "status", "error", "descriptor"])
def test_a_shard_that_lacks_a_column_is_named(folder, tmp_path, name):
    path = tmp_path / "part-a.parquet"
    pq.write_table(pq.read_table(path).drop_columns([name]), path)
    refused_shard(folder, f"its column '{name}' is missing")


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("descriptor", pa.array(["a", "b"]), "'descriptor' is string"),
        ("descriptor", pa.array([[1.0, 0.0]] * 2), "'descriptor' is list"),
        ("descriptor", pa.array([["a"]] * 2, pa.list_(pa.string(), 1)), "'descriptor' is fixed_size_list<.*string"),
        ("descriptor", pa.nulls(2, pa.list_(pa.float32(), 2)), "'descriptor' is empty in a row that is not an error"),
        ("descriptor", pa.array([[1.0]] * 2, pa.list_(pa.float32(), 1)), "has 1 values a row, but 2 in"),
        ("status", pa.array([1, 1]), "'status' is int64"),
        ("status", pa.nulls(2, pa.string()), "'status' is empty in a row that is not an error"),
        ("image_id", pa.array([[1], [2]]), "'image_id' is list"),
        ("image_id", pa.array([b"a", b"b"]), "'image_id' is binary"),
    ],
)
def test_a_shard_whose_columns_are_of_another_kind_is_named(folder, tmp_path, name, values, said):
    path = tmp_path / "part-a.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(name), name, values), path)
    refused_shard(folder, said)


@pytest.mark.parametrize("mark", [b"{{{", b"[" * 100_000, b"\xff", b"5"])
def test_a_shard_whose_mark_is_no_embedding_is_named(folder, tmp_path, mark):
    path = tmp_path / "part-a.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({store.EMBEDDING: mark}), path)
    with pytest.raises(UserError, match=r"part-a\.parquet.* embedding .*; make this folder again"):
        descriptors.read(folder, manifest_of("0"))


def test_shards_of_two_dimensions_are_refused(folder):
    store.write_shard(folder, "part-c", table_of({"4": [1.0, 0.0, 0.0]}))
    said = r"part-c\.parquet' .* has 3 values a row, but 2 in the other shards; make this folder again"
    with pytest.raises(UserError, match=said):
        descriptors.read(folder, manifest_of("0", "3", "4"))
    with pytest.raises(UserError, match=said):
        list(descriptor_folder.read(folder))


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_vectors_of_any_slice(kind):
    table = table_of({str(row): [row, row / 3] for row in range(10)}, kind)
    expected = np.array([[row, row / 3] for row in range(10)], kind).astype(np.float32)
    for column in (
        table["descriptor"],
        pa.chunked_array([table["descriptor"].chunk(0)[:4], table["descriptor"][4:].chunk(0)]),
    ):
        np.testing.assert_array_equal(store.vectors(column), expected)
    np.testing.assert_array_equal(store.vectors(table["descriptor"][3:6]), expected[3:6])
    np.testing.assert_array_equal(store.vectors(table["descriptor"].filter(pa.array([True, False] * 5))), expected[::2])
    assert store.vectors(table["descriptor"][:0]).shape == (0, 2)


def test_an_index_is_no_store_and_statistics_that_say_nothing_refuse_nothing(folder, tmp_path):
    (tmp_path / "part-a.json").write_text('{"rows": "two", "bytes": null, "sha256": 5}')
    assert descriptors.read(folder, manifest_of("0", "3")).rows.tolist() == [0, 1]
    sealed = {"ids.parquet": {"bytes": 4}}
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "ids.parquet").write_bytes(b"PAR1")
    record = {"job": "index", "embedding": EMBEDDING.as_json(), "files": sealed}
    files.write_json(f"{folder}/index/run.json", record)
    with pytest.raises(UserError, match=r"index' holds no descriptors; make them with extract\.py"):
        descriptor_folder.read(f"{folder}/index")


def test_the_ids_of_a_manifest_are_looked_up_as_often_for_any_number_of_shards(tmp_path, monkeypatch):
    """A look-up in all ids of the manifest takes time in proportion to them, so one a shard would be quadratic."""
    ids = [f"{row:03d}" for row in range(40)]
    lookups = []
    for name in ("index_in", "is_in"):
        function = getattr(pc, name)

        def counted(values, of, *arguments, function=function, **named):
            lookups.append(len(of))
            return function(values, of, *arguments, **named)

        monkeypatch.setattr(pc, name, counted)
    found = {}
    for size in (40, 4):
        folder = tmp_path / str(size)
        files.make_folder(str(folder))
        files.write_json(str(folder / "run.json"), {"job": "extract", "embedding": EMBEDDING.as_json()})
        for start in range(0, len(ids), size):
            rows = {name: [float(name), 1.0] for name in ids[start : start + size]}
            store.write_shard(str(folder), f"part-{start:03d}", table_of(rows))
        lookups.clear()
        read = descriptor_folder.read(str(folder), None, manifest_of(*ids[::-1]))
        found[size] = lookups.count(len(ids))
        assert read.rows.tolist() == [*range(39, -1, -1)]
    assert found[40] == found[4] > 0
