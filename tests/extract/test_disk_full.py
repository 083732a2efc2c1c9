"""A full disk: one line says so, no file is half-written, and the same command resumes once there is room."""

import pytest

from dim.errors import JobFailed
from dim.extract import store
from dim.io import files, local_copies


def test_a_file_is_whole_or_what_it_was(disk, fill):
    files.write_bytes(f"{disk}/a", b"before")
    filler = fill(disk, 8192)
    for write in (files.write_bytes, _large):
        with pytest.raises(
            JobFailed, match=r"cannot write .*No space left on device.*make room and run the same command"
        ):
            write(f"{disk}/a", bytes(100_000))
        assert files.names(str(disk)) == ["a", "filler"] and files.read_bytes(f"{disk}/a") == b"before"
    filler.unlink()
    files.write_bytes(f"{disk}/a", bytes(100_000))


def _large(uri, content):
    with local_copies.path_to_write(uri) as path, open(path, "wb") as file:
        file.write(content)


def test_extract_goes_on_once_there_is_room(disk, fill, ten, run, stand_in):
    filler = fill(disk, 20_000)  # run.json, the lock, and a shard or two
    with pytest.raises(JobFailed, match=r"No space left on device.*make room and run the same command again"):
        run(ten, out="disk/out", shard_rows=1)
    out = disk / "out"
    assert not list(out.glob("*.tmp")) and not (out / "result.json").exists()
    finished = store.shards(str(out))
    assert 0 < len(finished) < 10 and all(len(store.read_shard(str(out), name)) == 1 for name in finished)
    filler.unlink()
    result = run(ten, out="disk/out", shard_rows=1)
    assert (result["ok"], result["computed"]) == (10, 10 - len(finished))
