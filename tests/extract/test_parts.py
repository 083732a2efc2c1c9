"""Several drivers make one store (`--part I/N`): whatever their number, order and deaths, each row is there once."""

import contextlib
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from dim.app import cluster, output_folder
from dim.errors import InUse, JobFailed, UserError
from dim.extract import own_process, parts, store
from dim.extract.config import ExtractConfig
from dim.extract.job import extract
from dim.io import files, lease


class Died(BaseException):
    """What ends a driver as a kill would: nothing is written after it."""


class Hooks(list):
    """Functions that are called before each photo; `bad_ids` are the photos that can't be read."""


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Ray and the network are stood in for; a photo's descriptor follows from its content."""

    def embedded(rows, _, dtype, __):
        for row in rows.to_pylist():
            before(row["image_id"])
            bad = row["image_id"] in bad_ids
            vector = None if bad else np.frombuffer(bytes.fromhex(row["content"][:8]), np.uint8).tolist()
            known = {"descriptor": vector, "status": "error" if bad else "ok", "error": "broken" if bad else None}
            table = pa.Table.from_pylist([row | known], schema=store.schema(4, dtype))
            yield table.append_column("shard", pa.array([row["shard"]])).append_column("several", pa.array([False]))

    def before(image_id):
        for hook in list(hooks):
            hook(image_id)

    hooks, bad_ids = Hooks(), {"bad 1", "bad 2"}
    hooks.bad_ids = bad_ids
    monkeypatch.setattr(cluster, "connected", contextlib.nullcontext)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(own_process, "run", embedded)
    return hooks


@pytest.fixture
def twenty(photos):
    for number in range(18):
        photos.add(f"{number:02d}.png", b"photo")
    return photos.add("bad 1.png", b"no photo").add("bad 2.png", b"no photo")


def assert_whole(folder, rows, result, photos, computed):
    assert result.items() >= {"images": 20, "ok": 18, "errors": 2, "computed": computed, "dropped": 0}.items()
    assert "parts_left" not in result and files.read_json(f"{folder}/result.json") == result
    assert sorted(rows()) == sorted(photos.columns["image_id"])
    sealed = output_folder.verified_seal(str(folder))
    assert sealed.keys() == {f"{name}.parquet" for name in store.shards(str(folder))}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_in_turn_make_what_one_driver_makes(twenty, run, rows, tmp_path, count):
    run(twenty, out="alone")
    for number in range(count, 0, -1):
        result = run(twenty, part=f"{number}/{count}")
        if number > 1:
            assert result["parts_left"] == number - 1 and not (tmp_path / "out" / "run.json").exists()
    assert_whole(tmp_path / "out", rows, result, twenty, 20)
    assert rows() == rows("alone")
    assert sorted(path.parent for path in tmp_path.rglob("shards.json")) == [tmp_path / "alone", tmp_path / "out"]
    # Once it is finished, there is nothing to do, for a part or for the whole.
    assert run(twenty, part=f"1/{count}").items() >= {"images": 20, "errors": 2}.items()
    assert run(twenty)["computed"] == 0


def test_parts_at_the_same_time(twenty, run, rows, tmp_path, no_ray):
    start = threading.Barrier(4)
    begun = threading.local()

    def together(_):
        if not getattr(begun, "done", False):
            begun.done = True
            start.wait(60)

    no_ray.append(together)
    with ThreadPoolExecutor(4) as drivers:
        results = list(drivers.map(lambda number: run(twenty, part=f"{number}/4"), range(1, 5)))
    last = [result for result in results if "parts_left" not in result]
    assert len(last) >= 1
    assert_whole(tmp_path / "out", rows, files.read_json(str(tmp_path / "out" / "result.json")), twenty, 20)


def test_a_killed_part_is_resumed(twenty, run, rows, no_ray, monkeypatch):
    run(twenty, part="1/2", shard_rows=2)
    seen = []

    def die(image_id):
        seen.append(image_id)
        if len(seen) == 5:
            raise Died

    no_ray.append(die)
    with monkeypatch.context() as killed, pytest.raises(Died):
        killed.setattr(output_folder.Output, "record_error", lambda *_: None)
        run(twenty, part="2/2", shard_rows=2)
    no_ray.clear()
    assert run(twenty, part="1/2", shard_rows=2)["parts_left"] == 1
    result = run(twenty, part="2/2", shard_rows=2)
    # The parts' last runs computed nothing and the six photos that the death left.
    assert_whole(twenty.folder.parent / "out", rows, result, twenty, 6)


def test_another_number_of_parts_or_none_goes_on(twenty, run, rows, tmp_path):
    run(twenty, part="1/2")
    assert run(twenty, part="2/3")["computed"] == 4  # of the rows of the 2nd and the 5th shard, the 5th is there
    assert run(twenty)["computed"] == 4
    assert sorted(rows()) == sorted(twenty.columns["image_id"])


def test_a_part_of_other_rows_does_not_finish_the_store(twenty, run, rows, tmp_path):
    run(twenty, part="1/2", split="train")
    twenty.add("new.png", b"photo", split="val")
    assert run(twenty, part="2/2")["parts_left"] == 1
    # A part that was done before the manifest grew is left, too.
    assert run(twenty, part="1/2").items() >= {"images": 21, "errors": 2}.items()
    for number in range(8):
        twenty.add(f"more {number}.png", b"photo")
    assert run(twenty, part="1/2")["parts_left"] == 1
    assert run(twenty, part="2/2").items() >= {"images": 29, "ok": 27}.items()
    assert len(rows()) == 29


def test_a_photo_that_changed_between_the_parts_is_dropped(twenty, run, rows):
    run(twenty, part="1/2")
    (twenty.folder / "00.png").write_bytes(b"another photo")
    twenty.remove("01")
    run(twenty, part="2/2")
    assert run(twenty, part="1/2").items() >= {"images": 19, "dropped": 2}.items()
    assert len(rows()) == 19


@pytest.mark.parametrize("trial", [*itertools.product([set(), {"bad 1"}, {"bad 1", "bad 2"}], [(1, 2), (2, 1), (1,)])])
def test_errors_are_tried_again_by_the_part_that_has_them(twenty, run, rows, no_ray, trial):
    healed, retrying = trial
    twenty.columns["image_id"][:2], twenty.columns["path"][:2] = ["bad 3", "bad 4"], ["00.png", "01.png"]
    twenty.save()
    no_ray.bad_ids |= {"bad 3", "bad 4"}
    for number in (1, 2):
        run(twenty, part=f"{number}/2")
    no_ray.bad_ids -= healed
    tried = []
    no_ray.append(tried.append)
    for number in retrying:
        result = run(twenty, part=f"{number}/2", retry_failed=True)
    good = healed & {*tried}
    assert result.items() >= {"images": 20, "ok": 16 + len(good), "errors": 4 - len(good)}.items()
    assert {image_id for image_id, row in rows().items() if row["status"] == "error"} == no_ray.bad_ids | healed - good
    assert {*tried} <= {"bad 1", "bad 2", "bad 3", "bad 4"}
    assert len(tried) == 4 or retrying == (1,)


def test_a_part_and_the_whole_exclude_each_other(twenty, run, tmp_path, no_ray):
    out = str(tmp_path / "out")
    refused = []

    def others(_):
        if not refused:
            for options in ({}, {"part": "1/2"}):
                with pytest.raises(InUse, match=r"part-1-of-2' is being written by .*; wait for it or stop it"):
                    run(twenty, **options)
                refused.append(options)

    no_ray.append(others)
    assert run(twenty, part="1/2")["parts_left"] == 1 and len(refused) == 2
    refused.clear()

    def a_part(_):
        if not refused:
            with pytest.raises(InUse, match=r"out' is being written by .*; wait for it or stop it"):
                run(twenty, part="2/2")
            refused.append("2/2")

    no_ray[:] = [a_part]
    assert run(twenty)["images"] == 20 and refused
    assert parts.records(out).keys() == {f"{out}/part-1-of-2"}


def test_parts_of_another_embedding_or_manifest_are_refused(twenty, run, tmp_path):
    run(twenty, part="1/2")
    with pytest.raises(UserError, match=r"part-1-of-2' and 'vgg16-gem' were made by different .*: image_size 32 ≠ 64"):
        run(twenty, part="2/2", image_size=64)
    with pytest.raises(UserError, match="stores float32, not float16"):
        run(twenty, part="2/2", store="float16")


@pytest.mark.parametrize("part", [None, "1/2"])
def test_shards_of_another_embedding_are_refused_without_a_run_json(twenty, run, rows, tmp_path, part):
    run(twenty, part=part)
    for path in tmp_path.glob("out/**/run.json"):
        path.unlink()
    kept = rows()
    with pytest.raises(UserError, match="different embeddings: image_size 32 ≠ 64"):
        run(twenty, part=part, image_size=64)
    assert rows() == kept
    assert run(twenty, part=part)["computed"] == 0


def test_parts_in_an_object_store_write_only_under_their_lease(twenty, s3, no_ray):
    bucket = s3.bucket("parts")

    def extracted(part):
        network = {"model": "vgg16-gem", "weights": "random", "precision": "float32", "image_size": 32}
        return extract(ExtractConfig(manifest=twenty.manifest, out=bucket, shard_rows=2, part=part, **network))

    assert extracted("1/2")["parts_left"] == 1
    (own,) = files.folders(bucket)
    assert own == "part-1-of-2" and len(store.shards(bucket)) == 5

    def lose(image_id):
        if image_id == "06":
            files.delete_all(claim.own for claim in lease.claims())

    no_ray.append(lose)
    with pytest.raises(
        JobFailed, match=r"could not renew its lease on 's3://.*' in time, and another may write it now"
    ):
        extracted("2/2")
    assert len(store.shards(bucket)) == 6
    no_ray.clear()
    assert extracted("2/2").items() >= {"images": 20, "ok": 18, "errors": 2, "computed": 18}.items()
    assert output_folder.verified_seal(bucket).keys() == {f"{name}.parquet" for name in store.shards(bucket)}
    assert not [name for name in files.names(bucket) if name.startswith(".")]


@pytest.mark.parametrize("part", ["", "0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2", "１/２"])
def test_what_is_no_part_is_refused(part):
    with pytest.raises(UserError, match=r"--part must be I/N with I from 1 to N, such as 1/4, not "):
        ExtractConfig(manifest="a.csv", model="vgg16-gem", out="out", part=part)
