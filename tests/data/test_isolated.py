"""Decoding in a process of its own gives what decoding here gives, and survives what kills it."""

import io
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dim.data import isolated
from dim.data.decode import decode
from dim.data.limits import LIMITS, DecodeError, Limits

HOOKS = Path(__file__).parents[1] / "faults" / "hooks"


@pytest.fixture(scope="module")
def photo():
    file = io.BytesIO()
    Image.effect_noise((60, 40), 100).convert("RGB").save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def new_processes():
    """No test gets a process that another's environment has made."""
    isolated.end()
    yield
    isolated.end()


@pytest.mark.parametrize("arguments", [(32, "squash"), (50, "long-side", (5.0, 5.0, 45.0, 30.0))])
def test_the_same_as_here(photo, arguments):
    here, there = decode(photo, *arguments), isolated.decode(photo, *arguments)
    np.testing.assert_array_equal(there.pixels, here.pixels)
    assert (there.width, there.height) == (here.width, here.height) == (60, 40)


def test_the_same_error_as_here(photo):
    for content, limits in ((b"", LIMITS), (b"<html>", LIMITS), (photo[:700], LIMITS), (photo, Limits(pixels=2399))):
        with pytest.raises(DecodeError) as here:
            decode(content, 32, "squash", limits=limits)
        with pytest.raises(DecodeError) as there:
            isolated.decode(content, 32, "squash", limits=limits)
        assert str(there.value) == str(here.value)


def test_several_frames_are_told():
    file = io.BytesIO()
    frames = [Image.new("L", (40, 40), shade) for shade in (0, 255)]
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    assert isolated.decode(file.getvalue(), 32, "squash").several


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL"])
def test_a_photo_that_kills_is_an_error(monkeypatch, photo, name):
    monkeypatch.syspath_prepend(HOOKS)
    deadly = photo + b"dies by " + name.encode()
    with pytest.raises(DecodeError, match=rf"decoding killed the process \({name}, 3 of 3 attempts\)"):
        isolated.decode(deadly, 32, "squash")


def test_a_photo_that_takes_for_ever_is_an_error(monkeypatch, photo):
    monkeypatch.syspath_prepend(HOOKS)
    monkeypatch.setenv("DIM_TEST_DECODE_SECONDS", "600")
    monkeypatch.setattr(isolated, "SECONDS", 3.0)
    with pytest.raises(DecodeError, match="took longer than 3 s"):
        isolated.decode(photo, 32, "squash")


def test_more_memory_than_it_may_take_is_an_error(monkeypatch, photo):
    monkeypatch.syspath_prepend(HOOKS)
    with pytest.raises(DecodeError, match=r"decoding takes more than \d\.\d GiB of memory"):
        isolated.decode(photo + b"takes all memory", 32, "squash")


def test_the_limit_is_that_of_the_address_space(photo):
    limits = Limits(pixels=10**6, bytes=2**20)
    isolated.decode(photo, 32, "squash", limits=limits)
    [process] = isolated._idle
    soft, _ = resource.prlimit(process._process.pid, resource.RLIMIT_AS)
    assert soft == limits.memory + isolated.BESIDE


def test_a_process_is_kept_and_another_takes_its_place(photo):
    isolated.decode(photo, 32, "squash")
    [first] = isolated._idle
    isolated.decode(photo, 32, "squash")
    assert isolated._idle == [first]
    first._process.kill()
    first._process.wait()
    assert isolated.decode(photo, 32, "squash").width == 60
    assert first not in isolated._idle


def test_threads_decode_in_as_many_processes_as_there_are_cores(photo):
    photos = [(photo, 32 + number) for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda call: isolated.decode(*call, "squash").pixels.shape, photos))
    assert found == [(size, size, 3) for _, size in photos]
    assert 1 <= len(isolated._idle) <= os.cpu_count()


@pytest.mark.parametrize("hook", [b"dies by SIGKILL", b"hangs for ever"])
def test_a_header_that_kills_or_hangs_is_an_error(monkeypatch, photo, hook):
    monkeypatch.syspath_prepend(HOOKS)
    monkeypatch.setattr(isolated, "SECONDS", 1.0)
    isolated.check_header(photo)
    with pytest.raises(DecodeError, match=r"killed the process|took longer than 1 s"):
        isolated.check_header(photo + hook)


def test_here_it_ends_the_process(photo):
    program = """if True:
        import sys, time
        from dim.data import isolated
        isolated.SECONDS = 0.5
        class Slow:
            memory = 0
            def __init__(self, content, **_):
                self.decode = lambda: time.sleep(len(content))
        isolated.prepared = Slow
        isolated.decode_here(b"")  # in time
        isolated.decode_here(bytes(600))
    """
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=False)
    assert child.returncode == 1 and b"Timeout" in child.stderr


def test_a_process_that_cannot_start_is_no_fault_of_the_photo(monkeypatch, photo):
    monkeypatch.setattr(isolated, "__name__", "dim.data.none")
    with pytest.raises(RuntimeError, match="No module named dim"):
        isolated.decode(photo, 32, "squash")
