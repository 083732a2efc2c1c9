"""Object stores: reads and writes, and requests that fail, are slow or are never answered."""

import os
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from dim.errors import UserError
from dim.io import files, local_copies, storage, tables, uris


@pytest.fixture
def bucket(s3, request):
    return s3.bucket(request.node.originalname.replace("_", "-")[:60])


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_what_is_written_to_a_store_is_read(scheme, request):
    bucket = request.getfixturevalue(scheme).bucket("written-is-read")
    uri = files.join(bucket, "50 % off/ü?.json")
    assert not files.exists(uri) and files.names(f"{bucket}/50 % off") == []
    files.make_folder(f"{bucket}/50 % off")
    files.write_json(uri, {"a": 1})
    assert files.exists(uri) and files.read_json(uri) == {"a": 1}
    assert files.is_folder(f"{bucket}/50 % off") and files.names(f"{bucket}/50 % off") == ["ü?.json"]
    found, missing = files.infos([uri, f"{bucket}/none"])
    assert found.size > 0 and found.mtime_ns > 0 and missing.type == pafs.FileType.NotFound
    tables.write(f"{bucket}/t.parquet", pa.table({"x": [1, 2]}))
    assert tables.read(f"{bucket}/t.parquet")["x"].to_pylist() == [1, 2]
    with local_copies.path_to_write(f"{bucket}/large") as path, open(path, "wb") as file:
        file.write(os.urandom(1 << 20) * 12)  # in parts
    with local_copies.path_to_read(f"{bucket}/large") as path:
        assert Path(path).stat().st_size == 12 << 20
    files.delete(uri)
    files.delete(uri)
    assert not files.exists(uri)
    with pytest.raises(UserError, match="no file"):
        files.read_json(uri)


def test_a_large_file_is_read_by_a_request_or_two(s3, bucket):
    files.write_bytes(f"{bucket}/large", bytes(20 << 20))
    s3.faults()
    assert files.read_bytes(f"{bucket}/large") == bytes(20 << 20)
    assert 0 < s3.faults()["requests"] <= 2
    with local_copies.path_to_read(f"{bucket}/large") as path:
        assert Path(path).stat().st_size == 20 << 20
    assert 0 < s3.faults()["requests"] <= 4


def test_nothing_is_lost_where_a_third_of_the_requests_fails(s3, bucket):
    sizes = [10, *range(1000, 1049)]  # the first is shorter than the body of a store's error
    s3.faults(failing=0.3, seed=1)
    for number in range(50):
        files.write_bytes(f"{bucket}/{number}", b"x" * sizes[number])
    assert len(files.names(bucket)) == 50
    assert [info.size for info in files.infos([f"{bucket}/{number}" for number in range(50)])] == sizes
    assert [len(files.read_bytes(f"{bucket}/{number}")) for number in range(50)] == sizes
    counts = s3.faults()
    assert all(counts[kind] > 5 for kind in ("InternalError", "SlowDown", "cut"))


def test_many_questions_are_asked_at_a_time(s3, bucket):
    uris = [f"{bucket}/{number}" for number in range(200)]
    assert not any(storage.parallel_map(lambda uri: files.write_bytes(uri, b"x"), uris))
    s3.faults(latency=0.1)
    assert [info.size for info in files.infos([*uris, f"{bucket}/none"])] == [1] * 200 + [None]
    counts = s3.faults(latency=0.1)
    assert counts["most"] >= 32 and counts["requests"] <= 202
    files.delete_all(uris[:40])
    assert s3.faults()["most"] >= 32 and sorted(files.names(bucket)) == sorted(map(str, range(40, 200)))


def test_an_own_disk_is_asked_for_many_at_a_time_also_where_it_knows_no_such_name(tmp_path, monkeypatch):
    asked = []
    info = files.info
    monkeypatch.setattr(files, "info", lambda uri: asked.append(uri) or info(uri))
    uris = [str(tmp_path / str(number)) for number in range(1000)]
    for uri in uris[::2]:
        Path(uri).write_bytes(b"x")
    assert [found.size for found in files.infos(uris)] == [1, None] * 500
    assert asked == []
    sizes = [found.size for found in files.infos([*uris, str(tmp_path / ("x" * 300))])]
    assert sizes == [1, None] * 500 + [None]


def test_parallel_map_keeps_the_order_and_runs_no_further_ahead_than_it_may():
    running, most, begun, lock = 0, 0, [], threading.Lock()

    def square(number):
        nonlocal running, most
        with lock:
            running += 1
            begun.append(number)
            most = max(most, running)
        time.sleep(0.002 * (number % 3))
        with lock:
            running -= 1
        return number**2

    for used, found in enumerate(storage.parallel_map(square, iter(range(50)), 4)):
        assert found == used**2 and max(begun) <= used + 4
    assert 1 < most <= 4 and sorted(begun) == list(range(50))
    assert list(storage.parallel_map(square, [])) == []


def test_parallel_map_raises_the_first_error_and_begins_no_more():
    begun = []

    def failing(number):
        begun.append(number)
        if number in (5, 6):
            time.sleep(0.2 * (6 - number))  # later items fail first
            raise OSError(f"no {number}")
        return number

    results = storage.parallel_map(failing, range(1000), 4)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(OSError, match="no 5"):
        next(results)
    assert max(begun) < 16


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no such bucket")])
def test_what_nobody_waits_for_any_more_is_not_tried_again(monkeypatch, error):
    monkeypatch.setattr(storage, "FIRST_WAIT", 600.0)
    tried, others = [], threading.Barrier(4)

    @storage.retried
    def throttled(number):
        others.wait()
        tried.append(number)
        raise error if number == 0 else OSError("SLOW_DOWN")

    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        list(storage.parallel_map(throttled, range(100), 4))
    assert sorted(tried) == [0, 1, 2, 3]


def test_results_that_are_taken_before_they_are_there_are_tried_again(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.01)
    tried = Counter()

    @storage.retried
    def throttled(number):
        tried[number] += 1
        if tried[number] < 3:
            raise OSError("SLOW_DOWN")
        return number

    assert [result.result() for result in list(storage.parallel_futures(throttled, range(10), 4))] == list(range(10))
    assert set(tried.values()) == {3}


@pytest.fixture
def impatient(monkeypatch):
    """Gives up a silent connection after a second, and retries for a short time only."""
    for name, value in {"SILENT_SECONDS": 1.0, "RETRIES": 1, "TRIES": 2}.items():
        monkeypatch.setattr(storage, name, value)
    storage._opened.cache_clear()
    yield
    storage._opened.cache_clear()


def test_a_stuck_request_is_made_again(s3, bucket, impatient, monkeypatch):
    monkeypatch.setattr(storage, "TRIES", 20)
    monkeypatch.setattr(storage, "FIRST_WAIT", 1e-6)
    files.write_bytes(f"{bucket}/a", b"whole")
    s3.faults(stuck=0.5, seed=3)
    for _ in range(4):
        assert files.read_bytes(f"{bucket}/a") == b"whole"
    assert s3.faults()["stuck"] > 0


@pytest.mark.slow
def test_a_store_that_never_answers_is_given_up(s3, bucket, impatient):
    files.write_bytes(f"{bucket}/a", b"whole")
    s3.faults(stuck=1)
    with pytest.raises(OSError, match="Timeout was reached"):
        files.read_bytes(f"{bucket}/a")
    assert s3.faults()["stuck"] == 4


def test_google_s_storage_is_asked_again_until_it_answers(gs):
    gs.stop()
    later = threading.Timer(2.0, gs.start)
    later.start()
    assert not files.exists("gs://nowhere/a.csv")
    later.join()


def test_a_wrong_key_for_google_s_storage_is_said_at_once(gs, tmp_path, monkeypatch):
    storage._opened.cache_clear()
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(
        UserError, match=r"no credentials for 'gs://bucket' \(Cannot open .*none.json\); set GOOGLE_APPL"
    ):
        files.read_bytes("gs://bucket/a.csv")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:hush@bucket/a.csv",
        "s3://AKIA:hu/hush+@bucket/a.csv",
        "abfs://account:hush@container/a.csv",
        "s3://bucket/a.csv?access_key=AKIA&secret_key=hush",
        "s3://AKIA:7/hush@bucket/a.csv",
        "s3://AKIA:hu'sh-hush@bucket/a.csv",
        "gs://hush@bucket/a.csv",
        "s3://bucket/a.csv?X-Amz-Signature=hush",
        "s3://bucket/a.csv?Secret%5FKey=hush",
        "abfss://container@account/a.csv?client_secret=hush",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(UserError, match="has credentials in it") as error:
        files.read_bytes(uri)
    assert "hush" not in str(error.value) and "AKIA" not in str(error.value)


def test_what_looks_like_credentials_and_is_none():
    for uri in ("s3://bucket/a:b@c.jpg", "hdfs://host:8020/x@y", "abfs://container@account.dfs/x", "mail me@a.b: x"):
        assert uris.redacted(uri) == uri


@pytest.mark.parametrize("uri", ["fsspec+file:///a", "mock://a", "s3fs://a/b"])
def test_other_storages_are_refused(uri):
    with pytest.raises(UserError, match="unknown scheme"):
        files.read_bytes(uri)


def test_parameters_in_a_uri_are_refused_with_what_to_set():
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL"):
        files.locate("s3://bucket/a?endpoint_override=localhost:9000")
