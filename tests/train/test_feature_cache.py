"""The cache of frozen activations: what is kept comes back, whole or not at all, within its limit."""

import contextlib
import errno
import gc
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dim.errors import JobFailed
from dim.train import feature_cache
from dim.train.feature_cache import FeatureCache

ACTIVATIONS = np.arange(600, dtype=np.float16).reshape(10, 10, 6)
FILE = pa.ipc.get_tensor_size(pa.Tensor.from_numpy(ACTIVATIONS))  # bytes


def size(folder):
    """The bytes that all trunks take."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*.*") if path.is_file())


def test_what_is_kept_comes_back_in_another_process_too(tmp_path):
    FeatureCache(str(tmp_path), "trunk", 10**6).put("ab12", ACTIVATIONS)
    np.testing.assert_array_equal(FeatureCache(str(tmp_path), "trunk", 10**6).get("ab12"), ACTIVATIONS)
    assert FeatureCache(str(tmp_path), "another trunk", 10**6).get("ab12") is None
    assert FeatureCache(str(tmp_path), "trunk", 10**6).get("cd34") is None


def test_what_exceeds_the_limit_is_not_kept(tmp_path):
    cache = FeatureCache(str(tmp_path), "trunk", 2 * FILE)
    for key in ("aa1", "bb2", "cc3"):
        cache.put(key, ACTIVATIONS)
    assert [cache.get(key) is not None for key in ("aa1", "bb2", "cc3")] == [True, True, False]
    assert [cache.holds(key) for key in ("aa1", "bb2", "cc3")] == [True, True, False] and cache.is_full()


def test_trunks_used_longest_ago_make_room(tmp_path):
    for trunk in ("old", "new"):
        FeatureCache(str(tmp_path), trunk, 10**6).put("aa1", ACTIVATIONS)
    FeatureCache(str(tmp_path), "current", int(1.5 * FILE))
    kept = [FeatureCache(str(tmp_path), trunk, 10**6).get("aa1") is not None for trunk in ("old", "new")]
    assert kept == [False, True]


def test_a_trunk_that_no_run_uses_makes_room_for_what_a_run_keeps(tmp_path):
    FeatureCache(str(tmp_path), "old", 2 * FILE).put("aa1", ACTIVATIONS)
    current = FeatureCache(str(tmp_path), "current", 2 * FILE)
    for key in ("aa1", "bb2", "cc3"):
        current.put(key, ACTIVATIONS)
    assert [current.holds(key) for key in ("aa1", "bb2", "cc3")] == [True, True, False]
    assert not FeatureCache(str(tmp_path), "old", 2 * FILE).holds("aa1")


def test_two_workers_of_a_node_share_its_limit_and_lose_nothing_that_has_room(tmp_path):
    before = FeatureCache(str(tmp_path), "of an earlier run", 6 * FILE)
    for key in ("aa1", "bb2", "cc3"):
        before.put(key, ACTIVATIONS)
    del before
    one, other = (FeatureCache(str(tmp_path), "trunk", 6 * FILE) for _ in range(2))
    one.put("aa1", ACTIVATIONS)
    other.put("bb2", ACTIVATIONS)
    assert all(FeatureCache(str(tmp_path), "of an earlier run", 6 * FILE).holds(key) for key in ("aa1", "bb2", "cc3"))
    assert one.holds("bb2") and other.holds("aa1")
    for key in ("cc3", "dd4", "ee5", "ff6"):
        one.put(key, ACTIVATIONS)
        other.put(f"{key}a", ACTIVATIONS)
    assert size(tmp_path) == 6 * FILE  # of the trunk alone: the other made room


def test_what_another_run_uses_is_not_deleted(tmp_path):
    running = FeatureCache(str(tmp_path), "running", 2 * FILE)
    running.put("aa1", ACTIVATIONS)
    small = FeatureCache(str(tmp_path), "small", FILE)
    small.put("aa1", ACTIVATIONS)
    assert running.holds("aa1") and not small.holds("aa1")


def test_what_is_put_twice_or_was_cut_short_counts_once(tmp_path):
    cache = FeatureCache(str(tmp_path), "trunk", 2 * FILE)
    for _ in range(5):
        cache.put("aa1", ACTIVATIONS)
    cache.put("bb2", ACTIVATIONS)
    assert cache.holds("bb2")


def test_what_a_dead_process_meant_to_keep_takes_no_room(tmp_path):
    cache = FeatureCache(str(tmp_path), "trunk", FILE)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    (count,) = tmp_path.rglob("bytes")
    (folder,) = (path for path in count.parent.iterdir() if path.is_dir())
    (folder / f"aa1.{process.pid}.tmp").write_bytes(b"half")
    count.write_bytes(b"%-32d" % FILE)
    cache = FeatureCache(str(tmp_path), "trunk", FILE)
    cache.put("aa1", ACTIVATIONS)
    assert cache.holds("aa1") and not list(tmp_path.rglob("*.tmp"))


class Processes(RuleBasedStateMachine):
    """Caches of several processes in one folder, opened, filled and closed in any order."""

    LIMIT = 5 * FILE

    def __init__(self):
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.open, self.kept = {}, set()

    @rule(process=st.integers(0, 3), trunk=st.sampled_from("abc"))
    def opens(self, process, trunk):
        self.open.pop(process, None)
        self.open[process] = (trunk, FeatureCache(self.folder, trunk, self.LIMIT))

    @rule(process=st.integers(0, 3), key=st.sampled_from(["aa1", "bb2", "cc3", "dd4"]))
    def puts(self, process, key):
        if process in self.open:
            trunk, cache = self.open[process]
            fits, before = size(self.folder) + FILE <= self.LIMIT, set(Path(self.folder).rglob("*.arrow"))
            cache.put(key, ACTIVATIONS)
            if fits:
                assert cache.holds(key) and before <= set(Path(self.folder).rglob("*.arrow"))
                self.kept.add((trunk, key))
            elif cache.holds(key):  # others' may have gone for it, none of a trunk in use
                used = {trunk for trunk, _ in self.open.values()}
                self.kept = {pair for pair in self.kept if pair[0] in used} | {(trunk, key)}

    @rule(process=st.integers(0, 3))
    def ends(self, process):
        self.open.pop(process, None)

    @invariant()
    def within_the_limit_and_nothing_lost(self):
        assert size(self.folder) <= self.LIMIT
        for trunk, cache in self.open.values():
            assert all(cache.holds(key) for of, key in self.kept if of == trunk)

    def teardown(self):
        self.open.clear()
        shutil.rmtree(self.folder)


TestProcesses = Processes.TestCase
TestProcesses.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_a_file_cut_short_counts_as_missing(tmp_path):
    cache = FeatureCache(str(tmp_path), "trunk", 10**6)
    cache.put("aa1", ACTIVATIONS)
    (path,) = tmp_path.rglob("*.arrow")
    path.write_bytes(path.read_bytes()[:700])
    assert cache.get("aa1") is None
    cache.put("aa1", ACTIVATIONS)
    np.testing.assert_array_equal(cache.get("aa1"), ACTIVATIONS)


@pytest.mark.parametrize("removed", ["trunk/*", "trunk"])
def test_a_trunk_that_someone_removed_is_begun_anew(tmp_path, removed):
    cache = FeatureCache(str(tmp_path), "trunk", 10**6)
    cache.put("aa1", ACTIVATIONS)
    shutil.rmtree(next(path for path in tmp_path.rglob(removed) if path.is_dir()))
    assert cache.get("aa1") is None
    cache.put("aa1", ACTIVATIONS)
    np.testing.assert_array_equal(cache.get("aa1"), ACTIVATIONS)


def test_a_disk_without_room_for_the_count_costs_time_only(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = FeatureCache(str(tmp_path), "trunk", 10**6)
    cache.put("aa1", ACTIVATIONS)
    monkeypatch.setattr(feature_cache.os, "pwrite", full)
    cache.put("bb2", ACTIVATIONS)
    assert cache.is_full() and cache.holds("aa1") and not cache.holds("bb2")
    with pytest.raises(JobFailed, match=r"cannot write '.*trunk.*No space left on device\); make room"):
        FeatureCache(str(tmp_path), "another trunk", 10**6)


@contextlib.contextmanager
def threads_in_turns():
    """The interpreter changes threads wherever it can, in the midst of C code too: at every collection of garbage."""
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(5)
    gc.callbacks.append(between := lambda *_: sum(range(3)))
    try:
        yield
    finally:
        gc.callbacks.remove(between)
        gc.set_threshold(*threshold)
        sys.setswitchinterval(interval)


def test_threads_read_beside_each_other(tmp_path):
    cache = FeatureCache(str(tmp_path), "trunk", 10**6)
    cache.put("aa1", ACTIVATIONS)

    def read(depth):  # threads differ in how deep they have called
        return read(depth - 1) if depth else cache.get("aa1")

    with threads_in_turns(), ThreadPoolExecutor(8) as threads:
        found = list(threads.map(read, [number % 17 for number in range(2000)]))
    assert all(np.array_equal(one, ACTIVATIONS) for one in found)
