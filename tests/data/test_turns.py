"""Photos that take much memory wait for their turn, among all threads and processes; the others don't."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dim.data import footprint
from dim.data.footprint import SMALL, turn


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DIM_SCRATCH", str(tmp_path))


def at_once(needed, most, count=6):
    """How many of `count` threads, each with a photo, have their turn at one time."""
    lock, inside, seen = threading.Lock(), [], []

    def decoding(number):
        with turn(needed, most):
            with lock:
                inside.append(number)
                seen.append(len(inside))
            time.sleep(0.05)
            with lock:
                inside.remove(number)

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(decoding, range(count)))
    assert len(seen) == count
    return max(seen)


@pytest.mark.parametrize(("memory", "cores", "expected"), [(64, 8, 4), (64, 2, 2), (4, 8, 1)])
def test_as_many_as_half_the_memory_and_the_cores_allow(monkeypatch, memory, cores, expected):
    monkeypatch.setattr(footprint, "memory", lambda: memory * SMALL)
    monkeypatch.setattr(footprint.os, "cpu_count", lambda: cores)
    assert at_once(SMALL + 1, 8 * SMALL) <= expected


def test_small_photos_wait_for_nobody(monkeypatch):
    monkeypatch.setattr(footprint, "memory", lambda: 1)
    with turn(SMALL + 1, 8 * SMALL):
        for _ in range(3):
            with turn(SMALL, 8 * SMALL):
                pass


def test_other_processes_count_until_they_die(monkeypatch):
    monkeypatch.setattr(footprint, "memory", lambda: 1)
    program = f"""if True:
        import time
        from dim.data import footprint
        footprint.memory = lambda: 1
        with footprint.turn({SMALL + 1}, 1):
            print("mine", flush=True)
            time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(at_once, SMALL + 1, 1, 1)
            time.sleep(0.3)
            assert not waiting.done()
            other.send_signal(signal.SIGKILL)
            assert waiting.result(timeout=60) == 1


@pytest.mark.parametrize("text", ["1048576\n", "max\n"])
def test_a_container_has_less_memory_than_its_machine(tmp_path, monkeypatch, text):
    monkeypatch.setattr(footprint, "_LIMITS", (str(tmp_path / "none"),))
    machine = footprint.memory()
    assert machine > 2**28
    (tmp_path / "limit").write_text(text)
    monkeypatch.setattr(footprint, "_LIMITS", (str(tmp_path / "none"), str(tmp_path / "limit")))
    assert footprint.memory() == (machine if text == "max\n" else 2**20)
