"""The writer writes all shards in the background, rows sorted by id, and raises a failure."""

import threading
import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.extract import shard_log, store
from dim.extract.embedding import NetworkEmbedding
from dim.extract.shard_log import ShardLog
from dim.extract.writer import AHEAD, Writer, write_all

EMBEDDING = NetworkEmbedding("vgg16", "block5_conv3", "gem", "0", "caffe", 224, "squash", (1.0,), None, None, "float32")


def writing(folder):
    return Writer(str(folder), EMBEDDING, ShardLog(str(folder), {}))


def rows(*ids):
    schema = store.schema(2)
    return pa.Table.from_pylist([{"image_id": i, "descriptor": [1, 0], "status": "ok"} for i in ids], schema=schema)


def test_all_shards_are_there_when_the_block_ends(tmp_path):
    with writing(tmp_path) as writer:
        for number in range(3 * AHEAD):
            writer.write(f"part-{number:02d}", rows("b", "a"))
    assert len(store.shards(str(tmp_path))) == 3 * AHEAD
    assert store.read_shard(str(tmp_path), "part-00")["image_id"].to_pylist() == ["a", "b"]


def test_what_was_computed_is_written_though_the_block_ends_in_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), writing(tmp_path) as writer:
        writer.write("part-00", rows("a"))
        raise KeyboardInterrupt
    assert store.shards(str(tmp_path)) == ["part-00"] and list(shard_log.read(str(tmp_path))) == ["part-00"]


def test_nothing_waits_for_the_disk_until_the_queue_is_full(tmp_path, monkeypatch):
    disk = threading.Event()
    monkeypatch.setattr(store, "write_shard", lambda *_: disk.wait() and {})
    with writing(tmp_path) as writer:
        for number in range(AHEAD):
            writer.write(f"part-{number}", rows("a"))
        one_more = threading.Thread(target=writer.write, args=("part-more", rows("a")))
        one_more.start()
        one_more.join(0.2)
        assert one_more.is_alive()
        disk.set()
        one_more.join()


def test_a_disk_that_fails_is_said_by_the_next_call_and_nothing_more_is_written(tmp_path, monkeypatch):
    tried = []

    def full(_, name, __):
        tried.append(name)
        raise OSError("no space left")

    monkeypatch.setattr(store, "write_shard", full)
    with pytest.raises(OSError, match="no space left"), writing(tmp_path) as writer:
        for number in range(3 * AHEAD):
            writer.write(f"part-{number:02d}", rows("a"))
    assert tried == ["part-00"]
    with pytest.raises(OSError, match="no space left"), writing(tmp_path) as writer:
        writer.write("part-last", rows("a"))


def batches_of(*ids):
    """The store's rows of the photos, of which each shard has those of one letter."""
    table = rows(*ids)
    return table.append_column("shard", pa.array([f"part-{image_id[0]}" for image_id in ids], pa.string()))


PLAN = batches_of("b1", "b2", "b0", "a1", "c1", "c0").select(["image_id", "shard"])


@settings(max_examples=30, deadline=None)
@given(st.permutations(PLAN["image_id"].to_pylist()), st.integers(1, 6))
def test_shards_are_whole_in_whatever_order_their_rows_come(tmp_path_factory, ids, size):
    folder = tmp_path_factory.mktemp("store")
    batches = [batches_of(*ids[start : start + size]) for start in range(0, len(ids), size)]
    with writing(folder) as writer:
        write_all(batches, PLAN, writer, "here")
    found = {name: store.read_shard(str(folder), name)["image_id"].to_pylist() for name in store.shards(str(folder))}
    assert found == {"part-a": ["a1"], "part-b": ["b0", "b1", "b2"], "part-c": ["c0", "c1"]}
    for name, facts in shard_log.read(str(folder)).items():
        assert facts == store.facts_of(store.read_shard(str(folder), name), (folder / f"{name}.parquet").read_bytes())


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (("b1", "b2", "a1", "c1", "c0"), "the 6 asked for: 3 lost, such as 'b0'"),
        (("b1", "b2", "b1", "a1", "c1", "c0"), "the 3 asked for: 1 lost, such as 'b0'; 1 more than once, such as 'b1'"),
        (("a1", "a1"), "the 1 asked for: 1 more than once, such as 'a1'"),
        (("a2",), "the 1 asked for: 1 lost, such as 'a1'; 1 never asked for, such as 'a2'"),
    ],
)
def test_rows_that_are_not_those_of_the_plan_are_named(tmp_path, ids, said):
    with pytest.raises(RuntimeError, match=f"^the rows of here are not {said}$"), writing(tmp_path) as writer:
        write_all([batches_of(*ids)], PLAN, writer, "here")


def test_the_log_is_written_every_few_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_log, "SECONDS", 0.0)
    with writing(tmp_path) as writer:
        writer.write("part-00", rows("a"))
        while "part-00" not in shard_log.read(str(tmp_path)):
            time.sleep(0.01)
