"""The cache of frozen activations: what is kept comes back, whole or not at all, within its limit."""

import contextlib
import gc
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dim.train.trunk_cache import TrunkCache

ACTIVATIONS = np.arange(600, dtype=np.float16).reshape(10, 10, 6)


def test_what_is_kept_comes_back_in_another_process_too(tmp_path):
    TrunkCache(str(tmp_path), "trunk", 10**6).put("ab12", ACTIVATIONS)
    np.testing.assert_array_equal(TrunkCache(str(tmp_path), "trunk", 10**6).get("ab12"), ACTIVATIONS)
    assert TrunkCache(str(tmp_path), "another trunk", 10**6).get("ab12") is None
    assert TrunkCache(str(tmp_path), "trunk", 10**6).get("cd34") is None


def test_what_exceeds_the_limit_is_not_kept(tmp_path):
    cache = TrunkCache(str(tmp_path), "trunk", 2 * ACTIVATIONS.nbytes)
    for key in ("aa1", "bb2", "cc3"):
        cache.put(key, ACTIVATIONS)
    assert [cache.get(key) is not None for key in ("aa1", "bb2", "cc3")] == [True, True, False]


def test_trunks_used_longest_ago_make_room(tmp_path):
    for trunk in ("old", "new"):
        TrunkCache(str(tmp_path), trunk, 10**6).put("aa1", ACTIVATIONS)
    TrunkCache(str(tmp_path), "current", int(1.5 * ACTIVATIONS.nbytes))
    kept = [TrunkCache(str(tmp_path), trunk, 10**6).get("aa1") is not None for trunk in ("old", "new")]
    assert kept == [False, True]


def test_a_file_cut_short_counts_as_missing(tmp_path):
    cache = TrunkCache(str(tmp_path), "trunk", 10**6)
    cache.put("aa1", ACTIVATIONS)
    (path,) = tmp_path.rglob("*.arrow")
    path.write_bytes(path.read_bytes()[:700])
    assert cache.get("aa1") is None
    cache.put("aa1", ACTIVATIONS)
    np.testing.assert_array_equal(cache.get("aa1"), ACTIVATIONS)


def test_a_trunk_that_another_run_removed_is_begun_anew(tmp_path):
    cache = TrunkCache(str(tmp_path), "trunk", 10**6)
    cache.put("aa1", ACTIVATIONS)
    TrunkCache(str(tmp_path), "another run's", 0)
    assert cache.get("aa1") is None
    cache.put("aa1", ACTIVATIONS)
    np.testing.assert_array_equal(cache.get("aa1"), ACTIVATIONS)


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
    cache = TrunkCache(str(tmp_path), "trunk", 10**6)
    cache.put("aa1", ACTIVATIONS)

    def read(depth):  # threads differ in how deep they have called
        return read(depth - 1) if depth else cache.get("aa1")

    with threads_in_turns(), ThreadPoolExecutor(8) as threads:
        found = list(threads.map(read, [number % 17 for number in range(2000)]))
    assert all(np.array_equal(one, ACTIVATIONS) for one in found)
