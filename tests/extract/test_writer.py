"""The writer writes all shards in the background, rows sorted by id, and raises a failure."""

import threading

import pyarrow as pa
import pytest

from dim.extract import store
from dim.extract.embedding import NetworkEmbedding
from dim.extract.resume import AHEAD, Writer

EMBEDDING = NetworkEmbedding("vgg16", "block5_conv3", "gem", "0", "caffe", 224, "squash", (1.0,), None, None, "float32")


def rows(*ids):
    schema = store.schema(2)
    return pa.Table.from_pylist([{"image_id": i, "descriptor": [1, 0], "status": "ok"} for i in ids], schema=schema)


def test_all_shards_are_there_when_the_block_ends(tmp_path):
    with Writer(str(tmp_path), EMBEDDING) as writer:
        for number in range(3 * AHEAD):
            writer.write(f"part-{number:02d}", rows("b", "a"))
    assert len(store.shards(str(tmp_path))) == 3 * AHEAD
    assert store.read_shard(str(tmp_path), "part-00")["image_id"].to_pylist() == ["a", "b"]


def test_what_was_computed_is_written_though_the_block_ends_in_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), Writer(str(tmp_path), EMBEDDING) as writer:
        writer.write("part-00", rows("a"))
        raise KeyboardInterrupt
    assert store.shards(str(tmp_path)) == ["part-00"]


def test_nothing_waits_for_the_disk_until_the_queue_is_full(tmp_path, monkeypatch):
    disk = threading.Event()
    monkeypatch.setattr(store, "write_shard", lambda *_: disk.wait())
    with Writer(str(tmp_path), EMBEDDING) as writer:
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
    with pytest.raises(OSError, match="no space left"), Writer(str(tmp_path), EMBEDDING) as writer:
        for number in range(3 * AHEAD):
            writer.write(f"part-{number:02d}", rows("a"))
    assert tried == ["part-00"]
    with pytest.raises(OSError, match="no space left"), Writer(str(tmp_path), EMBEDDING) as writer:
        writer.write("part-last", rows("a"))
