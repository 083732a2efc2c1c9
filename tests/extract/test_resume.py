"""Resuming computes exactly the rows that no intact shard holds, whatever an interrupted run left in the folder."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.extract import finished_shards, store
from dim.extract.embedding import NetworkEmbedding
from dim.extract.resume import pending
from dim.io import files
from dim.search import descriptor_folder

ROWS = 8
SCHEMA = store.schema(2)
EMBEDDING = NetworkEmbedding("vgg16", "block5_conv3", "gem", "0", "caffe", 224, "squash", (1.0,), None, None, "float32")


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def write(folder, rows):
    """A shard of (number, version of the photo, whether it could be read)."""
    table = pa.table(
        {
            "image_id": [f"image {number}" for number, _, _ in rows],
            "descriptor": pa.array([[number, 1] if ok else None for number, _, ok in rows], SCHEMA.field(1).type),
            "status": [store.OK if ok else store.ERROR for _, _, ok in rows],
            "error": [None if ok else "broken" for _, _, ok in rows],
            "width": pa.nulls(len(rows), pa.int32()),
            "height": pa.nulls(len(rows), pa.int32()),
            "content": [f"version {version}" for _, version, _ in rows],
        },
        schema=SCHEMA,
    )
    keys = zip(table["image_id"].to_pylist(), table["content"].to_pylist(), strict=True)
    name = store.shard_name(list(keys))
    store.write_shard(str(folder), name, table)
    return folder / f"{name}.parquet"


def held(folder):
    tables = [pq.read_table(folder / f"{name}.parquet") for name in store.shards(str(folder))]
    return [(row["image_id"], row["content"], row["status"]) for table in tables for row in table.to_pylist()]


SHARDS = st.lists(
    st.tuples(
        st.lists(
            st.tuples(st.integers(0, ROWS + 1), st.integers(0, 1), st.booleans()),
            min_size=1,
            unique_by=lambda row: row[0],
        ),
        st.sampled_from(["whole", "whole", "cut", "no statistics"]),
    )
)


@settings(deadline=None, max_examples=60)
@given(shards=SHARDS, retry=st.booleans())
def test_what_is_left_and_what_is_kept_are_all_rows_once(tmp_path_factory, shards, retry):
    folder = tmp_path_factory.mktemp("store")
    good = set()
    for rows, state in shards:
        path = write(folder, rows)
        if state == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        elif state == "no statistics":
            path.with_suffix(".json").unlink()
    for name in store.shards(str(folder)):
        if store.whole(str(folder), name):
            table = pq.read_table(folder / f"{name}.parquet")
            good |= {(row["image_id"], row["content"], row["status"]) for row in table.to_pylist()}

    # The photos 0 to 7 are asked for, each in version 1.
    ids = np.array([f"image {number}" for number in range(ROWS)], dtype=object)
    left = pending(str(folder), EMBEDDING, ids, ["version 1"] * ROWS, retry)
    kept = held(folder)
    assert set(kept) <= good
    assert sorted([*ids[left], *(image_id for image_id, _, _ in kept)]) == sorted(ids)
    assert all(content == "version 1" for _, content, _ in kept)
    expected = {number for number, *_ in good_rows(good, retry)}
    assert {image_id for image_id, _, _ in kept} == expected
    # A second look finds the same, and nothing half-written is left.
    assert pending(str(folder), EMBEDDING, ids, ["version 1"] * ROWS, retry).tolist() == left.tolist()
    assert sorted(path.stem for path in folder.glob("*.parquet")) == store.shards(str(folder))


def good_rows(good, retry):
    for image_id, content, status in good:
        asked_for = int(image_id.split()[1]) < ROWS and content == "version 1"
        if asked_for and (status == store.OK or not retry):
            yield image_id, content, status


@pytest.mark.parametrize("gone", range(3))
def test_a_death_between_the_new_shard_and_the_old_leaves_no_row_twice(tmp_path, gone):
    rows = [(number, int(number != gone), True) for number in range(3)]
    write(tmp_path, rows)
    write(tmp_path, [row for row in rows if row[1]])
    ids = np.array(["image 0", "image 1", "image 2"], dtype=object)
    assert pending(str(tmp_path), EMBEDDING, ids, ["version 1"] * 3, False).tolist() == [gone]
    assert sorted(held(tmp_path)) == [(f"image {n}", "version 1", "ok") for n in range(3) if n != gone]


def test_shards_in_a_store_are_looked_at_several_at_a_time(s3):
    folder = s3.bucket("shards-at-a-time")
    rows = [(f"image {number}", "version 0") for number in range(2 * store.AT_ONCE)]
    for row in rows:
        values = {"image_id": [row[0]], "descriptor": [[1, 0]], "status": [store.OK], "content": [row[1]]}
        table = pa.table({**{name: [None] for name in SCHEMA.names}, **values}, schema=SCHEMA)
        store.write_shard(folder, store.shard_name([row]), table)
    ids, contents = (list(column) for column in zip(*rows, strict=True))
    files.write_json(f"{folder}/run.json", {"job": "extract", "embedding": EMBEDDING.as_json()})

    def most(call):
        s3.faults(latency=0.05)
        call()
        return s3.faults()["most"]

    def left():
        assert pending(folder, EMBEDDING, np.array(ids), contents, retry_failed=False).tolist() == []

    assert most(left) >= 8
    assert most(lambda: finished_shards.sealed(folder, store.shards(folder))) >= 8
    assert most(lambda: list(store.read_shards(folder, ["image_id", "descriptor"]))) >= 8
    assert most(lambda: list(descriptor_folder.read(folder))) >= 4
    assert most(lambda: files.copy_folder(folder, f"{folder}/copy")) >= 8
    contents[::2] = ["version 1"] * len(contents[::2])
    assert most(lambda: pending(folder, EMBEDDING, np.array(ids), contents, retry_failed=False)) >= 8
    assert len(store.shards(folder)) == len(rows) / 2
