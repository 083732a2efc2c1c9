"""Resuming computes exactly the rows that no intact shard holds, whatever an interrupted run left in the folder."""

import os
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.data import manifest as manifests
from dim.extract import resume, shard_log, store
from dim.extract.embedding import NetworkEmbedding
from dim.extract.plan import Plan, default_shard_rows
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
    name = store.shard_name(table["image_id"], table["content"])
    return folder / f"{name}.parquet", store.write_shard(str(folder), name, table)


def plan_of(contents, shard_rows=3, part=(1, 1)):
    """The photos 0, 1, …, with these contents."""
    ids = [f"image {number}" for number in range(len(contents))]
    manifest = manifests.checked("photos.csv", pa.table({"image_id": ids, "path": ids}))
    return Plan(manifest, pa.chunked_array([contents[:2], contents[2:]], pa.string()), shard_rows, part)


def pending(folder, plan, known=None, retry=False):
    """Cleans the store; what it found, the rows that are left, and the log."""
    found = resume.found(str(folder), EMBEDDING, plan, known or {}, retry)
    log = resume.cleaned(str(folder), found)
    assert shard_log.read(str(folder)) == log.facts
    return found, np.flatnonzero(~found.done).tolist(), log.facts


def held(folder):
    tables = [pq.read_table(folder / f"{name}.parquet") for name in store.shards(str(folder))]
    return [(row["image_id"], row["content"], row["status"]) for table in tables for row in table.to_pylist()]


def facts_of(folder):
    """The facts of the shards that are in the folder, from their files."""
    return {
        name: store.facts_of(store.read_shard(str(folder), name), (folder / f"{name}.parquet").read_bytes())
        for name in store.shards(str(folder))
    }


SHARDS = st.lists(
    st.tuples(
        st.lists(
            st.tuples(st.integers(0, ROWS + 1), st.integers(0, 1), st.booleans()),
            min_size=1,
            unique_by=lambda row: row[0],
        ),
        st.sampled_from(["logged", "logged", "unlogged", "cut", "old", "old and cut", "old and of another"]),
    )
)


@settings(deadline=None, max_examples=60)
@given(shards=SHARDS, retry=st.booleans(), shard_rows=st.integers(1, 9))
def test_what_is_left_and_what_is_kept_are_all_rows_once(tmp_path_factory, shards, retry, shard_rows):
    folder = tmp_path_factory.mktemp("store")
    states, known = {}, {}
    for rows, state in shards:
        path, facts = write(folder, rows)
        states[path] = state, facts
    for path, (state, facts) in states.items():
        if state in ("logged", "cut"):
            known[path.stem] = facts
        if "old" in state:
            old = facts if "another" not in state else facts | {"sha256": "0"}
            files.write_json(str(path.with_suffix(".json")), old)
        if "cut" in state:
            path.write_bytes(path.read_bytes()[:-1])
    (folder / "part-0.parquet.7.tmp").write_bytes(b"PAR1")
    sound = [path for path, (state, _) in states.items() if not {"cut", "another"} & {*state.split()}]
    good = [
        (row["image_id"], row["content"], row["status"]) for path in sound for row in pq.read_table(path).to_pylist()
    ]

    # The photos 0 to 7 are asked for, each in version 1.
    plan = plan_of(["version 1"] * ROWS, shard_rows)
    found, left, facts = pending(folder, plan, known, retry)
    kept = held(folder)
    assert set(kept) <= set(good) and facts == facts_of(folder)
    ids = plan.manifest.image_ids
    assert sorted([*ids[left], *(image_id for image_id, _, _ in kept)]) == sorted(ids)
    assert all(content == "version 1" for _, content, _ in kept)
    expected = {image_id for image_id, *_ in good_rows(good, retry)}
    assert {image_id for image_id, _, _ in kept} == expected
    # A photo that was computed once without an error stays so.
    best = {image_id: min(status == store.ERROR for *_, status in same) for image_id, same in by_id(good).items()}
    assert {image_id: status == store.ERROR for image_id, _, status in kept}.items() <= best.items()
    assert found.errors == sum(status == store.ERROR for *_, status in kept)
    assert found.dropped == sum(image_id not in ids or content != "version 1" for image_id, content, _ in good)
    # A second look finds the same, and nothing half-written is left.
    again, still_left, facts_again = pending(folder, plan, facts, retry)
    assert (still_left, facts_again, again.dropped, again.changed) == (left, facts, 0, {})
    log = {shard_log.NAME} if facts else set()
    assert {path.name for path in folder.iterdir()} == {f"{name}.parquet" for name in facts} | log


def by_id(rows):
    found = {}
    for row in rows:
        if row[1] == "version 1":
            found.setdefault(row[0], []).append(row)
    return found


def good_rows(good, retry):
    for image_id, content, status in good:
        asked_for = int(image_id.split()[1]) < ROWS and content == "version 1"
        if asked_for and (status == store.OK or not retry):
            yield image_id, content, status


@settings(deadline=None, max_examples=25)
@given(done=st.lists(st.booleans(), min_size=1, max_size=12), shard_rows=st.integers(1, 5), parts=st.integers(1, 4))
def test_the_rows_that_are_left_fill_shards(done, shard_rows, parts):
    left = ~np.array(done)
    ids, sizes, names = Counter(), [], set()
    for part in range(1, parts + 1):
        plan = plan_of([f"version {number}" for number in range(len(done))], shard_rows, (part, parts))
        rows = plan.rows_of(plan.asked & left)
        counts = Counter(rows["shard"].to_pylist())
        for name in counts:
            own = rows.filter(pa.compute.equal(rows["shard"], name))
            assert store.shard_name(own["image_id"], own["content"]) == name
            assert all(
                (row["content"], row["path"])
                == (f"version {row['image_id'].split()[1]}", plan.manifest.paths[int(row["image_id"].split()[1])])
                for row in own.to_pylist()
            )
        ids += Counter(rows["image_id"].to_pylist())
        sizes += counts.values()
        names |= counts.keys()
        whole = {name for name, own in plan.own.items() if left[own].all()}
        assert whole <= counts.keys() and len(counts) <= len(whole) + -(-(rows.num_rows) // shard_rows)
    assert ids == Counter(f"image {number}" for number in np.flatnonzero(left))
    assert max(sizes, default=0) <= shard_rows and len(names) == len(sizes)


@pytest.mark.parametrize(
    ("photos", "rows"), [(1, 1024), (10**6, 1024), (2_100_000, 2048), (10**7, 8192), (10**8, 65536), (10**9, 65536)]
)
def test_the_rows_of_a_shard_follow_from_the_number_of_photos(photos, rows):
    assert default_shard_rows(photos) == rows


@pytest.mark.usefixtures("in_threads")
def test_a_finished_store_costs_a_listing_and_a_look_at_one_shard(tmp_path, monkeypatch):
    plan = plan_of(["version 1"] * ROWS)
    table = pa.table({"image_id": plan.manifest.ids, "number": range(ROWS)})
    for rows in plan.names.values():
        write(tmp_path, [(number, 1, number != 4) for number in table["number"][rows].to_pylist()])
    known = facts_of(tmp_path)
    assert known.keys() == plan.names.keys()
    read = []
    real = store.read_shard
    looked = []

    def seen(folder, name, columns=None, *given, **named):
        (looked if columns == ["status"] else read).append(name)
        return real(folder, name, columns, *given, **named)

    monkeypatch.setattr(store, "read_shard", seen)
    assert pending(tmp_path, plan, known)[1] == [] and not read
    assert len(looked) == 1
    # Only the shard with an error is read to try it again, and only the shard that the log lacks to enter it.
    first, second, _ = plan.names
    assert not resume.found(str(tmp_path), EMBEDDING, plan, known, True).done[4] and read == [second]
    del known[first], read[:]
    assert pending(tmp_path, plan, known)[1:] == ([], facts_of(tmp_path)) and read[:1] == [first]
    # One more photo at the end has the last shard read.
    known = facts_of(tmp_path)
    del read[:]
    longer = plan_of(["version 1"] * (ROWS + 1))
    assert resume.found(str(tmp_path), EMBEDDING, longer, known, False).done.sum() == ROWS
    assert read == [*plan.names][2:]


@pytest.mark.parametrize("gone", range(3))
def test_a_death_between_the_new_shard_and_the_old_leaves_no_row_twice(tmp_path, gone):
    rows = [(number, int(number != gone), True) for number in range(3)]
    write(tmp_path, rows)
    write(tmp_path, [row for row in rows if row[1]])
    assert pending(tmp_path, plan_of(["version 1"] * 3))[1] == [gone]
    assert sorted(held(tmp_path)) == [(f"image {n}", "version 1", "ok") for n in range(3) if n != gone]


def test_shards_in_a_store_are_looked_at_several_at_a_time(s3):
    folder = s3.bucket("shards-at-a-time")
    plan = plan_of([f"version {number}" for number in range(2 * store.AT_ONCE)], 1)
    rows = plan.rows_of(plan.asked)
    for row in rows.to_pylist():
        values = {
            "descriptor": [[1, 0]],
            "status": [store.OK],
            "image_id": [row["image_id"]],
            "content": [row["content"]],
        }
        table = pa.table({**{name: [None] for name in SCHEMA.names}, **values}, schema=SCHEMA)
        store.write_shard(folder, row["shard"], table)
    files.write_json(f"{folder}/run.json", {"job": "extract", "embedding": EMBEDDING.as_json()})

    def most(call):
        s3.faults(latency=0.05)
        call()
        return s3.faults()["most"]

    def left(*numbers):
        assert pending(folder, plan)[1] == list(numbers)

    assert most(left) >= 8
    assert most(lambda: list(store.read_shards(folder, ["image_id", "descriptor"]))) >= 8
    assert most(lambda: list(descriptor_folder.read(folder))) >= 4
    assert most(lambda: files.copy_folder(folder, f"{folder}/copy")) >= 8
    gone = [number for number in range(len(rows)) if number % 2]
    plan = plan_of([f"version {number if number % 2 else 'new'}" for number in range(len(rows))], 1)
    assert most(lambda: left(*(set(range(len(rows))) - set(gone)))) >= 8
    assert len(store.shards(folder)) == len(rows) / 2
