"""Descriptors made elsewhere: each form of file gives the same store, and what is wrong with a row is told."""

import io
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dim.data.config import ImportConfig
from dim.data.import_job import import_benchmark
from dim.errors import UserError
from dim.export.config import ExportConfig
from dim.export.job import export
from dim.extract import finished_shards, identity, import_embeddings, store, vector_files, vector_ids
from dim.extract.embedding import NamedEmbedding
from dim.io import files, lease
from dim.search import descriptor_folder
from dim.search.config import SearchConfig
from dim.search.job import search

ROWS, DIMENSION = 50, 8
IDS = [f'fotos/ü, "{number}".jpg' for number in np.random.default_rng(0).permutation(ROWS)]
VECTORS = np.random.default_rng(1).standard_normal((ROWS, DIMENSION)).astype(np.float32)
UNIT = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of seven rows and pieces of two blocks, so that 50 rows are several shards of several units."""
    monkeypatch.setattr(vector_files, "_MOST_ROWS", 7)
    monkeypatch.setattr(vector_files, "_BLOCKS", 2)
    monkeypatch.setattr(vector_ids, "_COMPARED", 3)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # the work is done in this process


@pytest.fixture
def imported(tmp_path):
    def run(source, out="out", name="dinov2", **options):
        return import_embeddings.import_embeddings(
            ImportConfig("embeddings", str(tmp_path / source), files.join(str(tmp_path), out), name=name, **options)
        )

    return run


@pytest.fixture
def lines(tmp_path):
    def write(ids=IDS, name="ids.txt", end="\n"):
        (tmp_path / name).write_bytes("".join(f"{image_id}{end}" for image_id in ids).encode())
        return str(tmp_path / name)

    return write


def content(folder):
    """The rows of a finished store, by id, as the readers give them."""
    rows = descriptor_folder.read(str(folder), hashed=True)
    return dict(zip(rows.ids.to_pylist(), np.concatenate(list(rows)), strict=True))


def check(folder, vectors=UNIT):
    found = content(folder)
    assert sorted(found) == sorted(IDS)
    np.testing.assert_array_equal(np.stack([found[image_id] for image_id in IDS]), vectors)


def lists(vectors, value_type=None):
    return pa.array(list(map(list, vectors)), pa.list_(value_type or pa.float32()))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_array_and_its_ids(imported, lines, tmp_path, dtype, end):
    np.save(tmp_path / "a.npy", UNIT.astype(dtype))
    result = imported("a.npy", ids=lines(end=end))
    assert result == {
        "layout": "embeddings", "name": "dinov2", "dimension": DIMENSION, "images": ROWS, "store": dtype, "shards": 8,
    }  # fmt: skip
    check(tmp_path / "out", UNIT.astype(dtype).astype(np.float32))
    assert identity.of_folder(str(tmp_path / "out")) == NamedEmbedding("dinov2", DIMENSION)
    shard = pq.read_table(sorted((tmp_path / "out").glob("*.parquet"))[0])
    assert shard.schema.equals(store.schema(DIMENSION, dtype))
    assert shard["status"].unique().to_pylist() == ["ok"] and shard["content"].null_count == len(shard)


def test_several_arrays_in_the_order_of_their_names(imported, lines, tmp_path):
    (tmp_path / "a").mkdir()
    for number, part in enumerate(np.array_split(UNIT, 3)):
        np.save(tmp_path / "a" / f"part_{number}.npy", part)
    imported("a", ids=lines())
    check(tmp_path / "out")


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.large_list(pa.float16()), pa.list_(pa.float32(), DIMENSION)]
)
@pytest.mark.parametrize("names", [("image_id", "embedding"), ("id", "v"), ("image_path", "clip"), ("Key", "vec")])
def test_tables(imported, tmp_path, kind, names):
    (tmp_path / "a").mkdir()
    dtype = np.float16 if kind.value_type == pa.float16() else np.float32
    for number, rows in enumerate(np.array_split(np.arange(ROWS), 3)):
        columns = {names[0]: [IDS[row] for row in rows], names[1]: pa.array(list(UNIT[rows].astype(dtype)), kind)}
        pq.write_table(
            pa.table(columns | {"other": rows.astype(float)}), tmp_path / "a" / f"{number}.parquet", row_group_size=11
        )
    imported("a", id_column="Key" if names[0] == "Key" else None)
    check(tmp_path / "out", UNIT.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("kind", ["autofaiss", "clip-retrieval", "npy"])
def test_what_export_writes_comes_back(imported, write_descriptors, tmp_path, kind):
    export(ExportConfig(descriptors=write_descriptors(IDS, UNIT, raw=True), out=str(tmp_path / "e"), format=kind))
    imported("e", ids=str(tmp_path / "e" / "names.txt") if kind == "npy" else None)
    check(tmp_path / "out")


def test_normalised_on_request(imported, lines, tmp_path):
    np.save(tmp_path / "a.npy", VECTORS * np.float32(1e30))  # the squares of these don't fit in float32
    imported("a.npy", ids=lines(), normalise=True)
    found = content(tmp_path / "out")
    np.testing.assert_allclose(np.stack([found[image_id] for image_id in IDS]), UNIT, atol=1e-6)


def test_the_same_command_again_after_a_kill_writes_only_what_is_missing(imported, lines, tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", UNIT)
    imported("a.npy", out="whole", ids=lines())
    written = []

    def dying(folder, name, table, write=store.write_shard):
        if len(written) >= 3:  # two threads write
            files.write_bytes(files.join(folder, f"{name}.parquet.1.tmp"), b"half")
            raise KeyboardInterrupt
        write(folder, name, table)
        written.append(name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "write_shard", dying)
        imported("a.npy", ids=lines())
    with pytest.raises(UserError, match="was never finished"):
        content(tmp_path / "out")
    before = {name: (tmp_path / "out" / f"{name}.parquet").stat().st_mtime_ns for name in written}
    assert 3 <= len(before) < 8
    imported("a.npy", ids=lines())
    check(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert {name: (tmp_path / "out" / f"{name}.parquet").stat().st_mtime_ns for name in written} == before
    assert [shard.name for shard in finished_shards.belonging(str(tmp_path / "out"))] == [
        shard.name for shard in finished_shards.belonging(str(tmp_path / "whole"))
    ]


def test_a_changed_input_takes_the_place_of_the_one_before(imported, lines, tmp_path):
    np.save(tmp_path / "a.npy", UNIT)
    imported("a.npy", ids=lines())
    np.save(tmp_path / "a.npy", UNIT[:20])
    assert imported("a.npy", ids=lines(IDS[:20]))["images"] == 20
    assert sorted(content(tmp_path / "out")) == sorted(IDS[:20])


def broken(row, values):
    vectors = UNIT.copy()
    vectors[row] = values
    return vectors


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (broken(30, np.nan), r"a.npy': row 31 \(id .*\) has NaN or infinity in it; leave it out"),
        (broken([30, 40], [[np.inf], [0]]), r"row 31 \(id .*\) has NaN or infinity"),
        (broken(49, 0), r"row 50 \(id .*\) holds only zeros, so it has no direction"),
        (broken(7, 0.5), r"row 8 \(id .*\) has the norm 1.41421, not 1; give --normalise"),
        (UNIT[:-1], r"ids.txt' has 50 ids, and .*a.npy' 49 rows; each row needs one id"),
        (UNIT.astype(np.float64), r"has values of <f8; dim reads float16 and float32: convert them"),
        (UNIT.astype(">f4"), "has values of >f4"),
        ((UNIT * 100).astype(np.int8), r"has values of \|i1"),
        (UNIT[:, 0], r"has the shape \(50,\); save one row a descriptor"),
        (np.asfortranarray(UNIT), r"has the shape \(50, 8\), by columns"),
        (np.zeros((0, 8), np.float32), "holds no row"),
        (np.array([{}] * ROWS, dtype=object), r"has values of \|O"),
    ],
)
def test_a_wrong_array_is_refused_by_row(imported, lines, tmp_path, vectors, message):
    np.save(tmp_path / "a.npy", vectors)
    with pytest.raises(UserError, match=message):
        imported("a.npy", ids=lines())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([*IDS[:-1], IDS[3]], r"rows 4 and 50 have the same id 'fotos/"),
        ([*IDS[:9], "", *IDS[10:]], "ids.txt': row 10 has no id"),
        ([*IDS[:9], "  ", *IDS[10:]], "row 10 has no id"),
        ([*IDS, ""], "has 51 ids"),
        ([], "cannot read the ids in .*Empty"),
    ],
)
def test_wrong_ids_are_refused_by_row(imported, lines, tmp_path, ids, message):
    np.save(tmp_path / "a.npy", UNIT)
    with pytest.raises(UserError, match=message):
        imported("a.npy", ids=lines(ids))
    assert not (tmp_path / "out").exists()


def table_of(**columns):
    return pa.table({"id": IDS, "embedding": lists(UNIT)} | columns)


ROWS_OF = UNIT.tolist()


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (table_of(embedding=lists([*ROWS_OF[:-1], ROWS_OF[0][:3]])), {}, "row 50 has 3 values, not 8"),
        (table_of(embedding=pa.array([*ROWS_OF[:-1], None], pa.list_(pa.float32()))), {}, "row 50 has no vector"),
        (table_of(embedding=lists([[None] * 8, *ROWS_OF[1:]])), {}, "row 1 has an empty value"),
        (
            table_of(embedding=lists(ROWS_OF, pa.float64())),
            {},
            "column 'embedding' is list<.*double>; dim reads float16",
        ),
        (table_of(id=[*IDS[:-1], None]), {}, "row 50 has no id"),
        (table_of(again=lists(ROWS_OF)), {}, "no single column of vectors; name it by --vector-column"),
        (table_of(), {"vector_column": "vector"}, "no single column of vectors"),
        (table_of(), {"id_column": "key"}, "no column 'key' of ids; name it by --id-column"),
        (table_of().drop_columns("embedding"), {}, "no single column of vectors"),
        (table_of().rename_columns(["which", "embedding"]), {}, "no column 'image_id' of ids"),
        (table_of(), {"ids": "ids.txt"}, "--ids 'ids.txt' is for .npy files alone"),
    ],
)
def test_a_wrong_table_is_refused_by_row(imported, tmp_path, table, options, message):
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        imported("a.parquet", **options)
    assert not (tmp_path / "out").exists()


def test_wrong_files_and_flags_are_refused(imported, lines, tmp_path):
    np.save(tmp_path / "a.npy", UNIT)
    (tmp_path / "both").mkdir()
    np.save(tmp_path / "both" / "a.npy", UNIT)
    np.save(tmp_path / "both" / "b.npy", UNIT[:, :4])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-5])
    (tmp_path / "text.npy").write_text("text")
    (tmp_path / "text.parquet").write_text("text")
    (tmp_path / "none").mkdir()
    for source, options, message in (
        ("nowhere.npy", {}, "no file or folder"),
        ("none", {}, "holds neither an .npy nor a .parquet file"),
        ("both", {"ids": lines()}, "has 4 values a row of float32, and .*a.npy' 8 of float32"),
        ("a.npy", {}, "which have no ids; give --ids FILE"),
        ("a.npy", {"ids": "nowhere.txt"}, "no file 'nowhere.txt'; --ids is a text file"),
        ("a.npy", {"ids": lines(), "vector_column": "v"}, "--vector-column 'v' is for Parquet files"),
        ("a.npy", {"ids": lines(), "name": None}, "needs --name NAME"),
        ("cut.npy", {"ids": lines()}, "is cut off: 5 bytes are missing"),
        ("text.npy", {"ids": lines()}, "is not an .npy file"),
        ("text.parquet", {}, "cannot read .*text.parquet"),
    ):
        with pytest.raises(UserError, match=message):
            imported(source, **options)
    pq.write_table(table_of(), tmp_path / "both" / "c.parquet")
    with pytest.raises(UserError, match="holds both"):
        imported("both", ids=lines())
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"--name is for import\.py embeddings, not for 'cub'"):
        ImportConfig("cub", "source", "out", name="dinov2")


def test_descriptors_of_two_names_never_meet(imported, lines, tmp_path):
    np.save(tmp_path / "a.npy", UNIT)
    imported("a.npy", ids=lines())
    imported("a.npy", out="other", name="clip", ids=lines())
    with pytest.raises(
        UserError, match="different embeddings: name 'dinov2' ≠ 'clip'; name descriptors of one network"
    ):
        imported("a.npy", name="clip", ids=lines())
    config = SearchConfig(index=str(tmp_path / "out"), queries=str(tmp_path / "other"), out=str(tmp_path / "found"))
    with pytest.raises(UserError, match="name 'dinov2' ≠ 'clip'"):
        search(config)
    check(tmp_path / "out")


def test_they_meet_no_descriptors_of_extract(imported, lines, write_descriptors, tmp_path):
    np.save(tmp_path / "a.npy", UNIT)
    imported("a.npy", ids=lines())
    extracted = write_descriptors(IDS, UNIT)
    with pytest.raises(UserError, match="network 'dinov2' ≠ 'vgg16-gem@block5_conv3'; name descriptors of one network"):
        search(SearchConfig(index=str(tmp_path / "out"), queries=extracted, out=str(tmp_path / "found")))
    with pytest.raises(UserError, match="holds descriptors made elsewhere, by 'dinov2'"):
        identity.network_of(str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"holds the output of extract.py"):
        imported("a.npy", out="descriptors", ids=lines())


def test_a_benchmark_and_descriptors_are_not_imported_into_one_folder(imported, lines, demo, tmp_path):
    (tmp_path / "set").mkdir()
    for number, photo in enumerate(sorted(demo.glob("*/*.jpg"))[:4]):
        shutil.copy(photo, tmp_path / "set" / f"ukbench{number:05d}.jpg")
    np.save(tmp_path / "a.npy", UNIT)
    imported("a.npy", ids=lines())
    with pytest.raises(UserError, match=r"holds descriptors that import\.py imported; choose another --out"):
        import_benchmark(ImportConfig("ukbench", str(tmp_path / "set"), str(tmp_path / "out")))
    import_benchmark(ImportConfig("ukbench", str(tmp_path / "set"), str(tmp_path / "benchmark")))
    with pytest.raises(UserError, match=r"holds a benchmark that import\.py imported; choose another --out"):
        imported("a.npy", out="benchmark", ids=lines())
    check(tmp_path / "out")


class AsRay(pickle.Pickler):
    """Ray sends the rows of a slice of a table, but the whole array of a slice of an array."""

    def reducer_override(self, value):
        if not isinstance(value, pa.Table):
            return NotImplemented
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as stream:
            stream.write_table(value)
        return bytes, (sink.getvalue().to_pybytes(),)


def test_a_task_is_sent_its_own_ids_only(imported, lines, tmp_path, monkeypatch):
    ids = [f"{number:0200d}" for number in range(ROWS)]
    units = []

    def spread(work, given, shared, **_):
        units.extend(given)
        return ((position, work(unit, *shared)) for position, unit in enumerate(given))

    monkeypatch.setattr(import_embeddings, "spread", spread)
    np.save(tmp_path / "a.npy", UNIT)
    imported("a.npy", ids=lines(ids))
    assert len(units) == 2 * 4
    sent = [io.BytesIO() for _ in units]
    for unit, file in zip(units, sent, strict=True):
        AsRay(file).dump(unit)
    assert max(file.tell() for file in sent) < 14 * 200 + 2500 < ROWS * 200


def test_tasks_write_only_while_the_lease_is_held(imported, lines, tmp_path, s3, monkeypatch):
    bucket, checked = s3.bucket("imported"), []
    monkeypatch.setattr(lease.Claim, "require", lambda claim: checked.append(claim.folder))
    np.save(tmp_path / "a.npy", UNIT)
    imported("a.npy", out=bucket, ids=lines())
    assert len(checked) >= 8 and {*checked} == {bucket}  # each thread may check the writes of all
