import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dim.extract import plain_pages, store

DIMENSION = 7


def table(rows, kind, dimension=DIMENSION, nulls=False):
    values = np.random.default_rng(0).standard_normal((rows, dimension)).astype(kind)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dimension)
    if nulls:
        column = pa.array([*column.to_pylist()[:-1], None], column.type)
    found = pa.table({
        "image_id": [f"image {row}" for row in range(rows)],
        "descriptor": column,
        "status": [store.OK] * rows,
    })  # fmt: skip
    return found, values.astype(np.float32)


def written(rows_table, **options):
    file = io.BytesIO()
    given = {"compression": "none", "use_dictionary": False, "write_page_checksum": True} | options
    pq.write_table(rows_table, file, **given)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["float16", "float32"])
@pytest.mark.parametrize("rows", [0, 1, 2, 1000])
def test_a_shard_as_the_store_writes_it(tmp_path, kind, rows):
    found, values = table(rows, kind)
    schema = store.schema(DIMENSION, kind)
    empty = {name: pa.nulls(rows, schema.field(name).type) for name in schema.names if name not in found.column_names}
    whole = pa.table({**{name: found[name] for name in found.column_names}, **empty}).select(schema.names).cast(schema)
    store.write_shard(str(tmp_path), "part-0", whole)
    read = plain_pages.read((tmp_path / "part-0.parquet").read_bytes(), DIMENSION)
    if rows:
        assert read.dtype == np.float32
        assert np.array_equal(read, values)
    else:
        assert read is None or read.shape == (0, DIMENSION)


@pytest.mark.parametrize("kind", ["float16", "float32"])
@pytest.mark.parametrize("options", [{"row_group_size": 300}, {"data_page_size": 64}, {"data_page_size": 2**24}])
def test_any_pages_and_row_groups(kind, options):
    found, values = table(1000, kind)
    assert np.array_equal(plain_pages.read(written(found, **options), DIMENSION), values)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd"},
        {"compression": "snappy"},
        {"use_dictionary": True},
        {"data_page_version": "2.0"},
        {"write_page_checksum": False},
        {"write_statistics": False},
        {"column_encoding": {"descriptor.list.element": "BYTE_STREAM_SPLIT"}},
    ],
)
@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_other_files_are_left_to_the_reader(options, kind):
    assert plain_pages.read(written(table(100, kind)[0], **options), DIMENSION) is None


def test_other_columns_are_left_to_the_reader():
    assert plain_pages.read(written(table(10, "float32", nulls=True)[0]), DIMENSION) is None
    assert plain_pages.read(written(table(10, "float64")[0]), DIMENSION) is None
    assert plain_pages.read(written(table(10, "float32")[0]), DIMENSION + 1) is None
    assert plain_pages.read(written(table(10, "float32")[0].drop_columns("descriptor")), DIMENSION) is None
    assert plain_pages.read(b"no table", DIMENSION) is None
    assert plain_pages.read(b"", DIMENSION) is None


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_damage_gives_the_right_values_or_none(kind):
    found, values = table(8, kind)
    content = written(found, row_group_size=5)
    for at in range(len(content)):
        for damage in (1, 0x80):
            damaged = bytearray(content)
            damaged[at] ^= damage
            read = plain_pages.read(bytes(damaged), DIMENSION)
            assert read is None or np.array_equal(read, values)
    for length in range(0, len(content), 13):
        assert plain_pages.read(content[:length], DIMENSION) is None
