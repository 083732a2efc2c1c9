"""Decoding in a process of its own gives what decoding here gives, and survives what kills it."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dim.data import isolated
from dim.data.decode import DecodeError, decode

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
    for content in (b"", b"<html>", photo[:700]):
        with pytest.raises(DecodeError) as here:
            decode(content, 32, "squash")
        with pytest.raises(DecodeError) as there:
            isolated.decode(content, 32, "squash")
        assert str(there.value) == str(here.value)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL"])
def test_a_photo_that_kills_is_an_error(monkeypatch, photo, name):
    monkeypatch.syspath_prepend(HOOKS)
    deadly = photo + b"dies by " + name.encode()
    with pytest.raises(DecodeError, match=rf"its decoding killed the process \({name}, 3 times of 3\)"):
        isolated.decode(deadly, 32, "squash")


def test_a_photo_that_takes_for_ever_is_an_error(monkeypatch, photo):
    monkeypatch.syspath_prepend(HOOKS)
    monkeypatch.setenv("DIM_TEST_DECODE_SECONDS", "600")
    monkeypatch.setattr(isolated, "SECONDS", 3.0)
    with pytest.raises(DecodeError, match="took longer than 3 s"):
        isolated.decode(photo, 32, "squash")


def test_here_it_ends_the_process(photo):
    program = """if True:
        import sys, time
        from dim.data import isolated
        isolated.SECONDS = 0.5
        isolated.needed = lambda *_, **__: 0
        isolated.decode_here = lambda content, **_: time.sleep(len(content))
        isolated.watched(b"")  # in time
        isolated.watched(bytes(600))
    """
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=False)
    assert child.returncode == 1 and b"Timeout" in child.stderr


def test_a_process_that_cannot_start_is_no_fault_of_the_photo(monkeypatch, photo):
    monkeypatch.setattr(isolated, "__name__", "dim.data.none")
    with pytest.raises(RuntimeError, match="No module named dim"):
        isolated.decode(photo, 32, "squash")
