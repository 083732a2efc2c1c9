"""Makes every Python process of a job under test decode slowly, die of marked photos, hang, take all memory, and dawdle
over its writes.

Python imports it by itself where this folder stands in PYTHONPATH.
"""

import io
import os
import signal
import time

from PIL import Image, ImageFile

MARK, HANGS, SWELLS = b"dies by ", b"hangs for ever", b"takes all memory"

_open, _load, _fsync = Image.open, ImageFile.ImageFile.load, os.fsync


def _slow_load(image):
    time.sleep(float(os.environ.get("DIM_TEST_DECODE_SECONDS", "0")))
    if isinstance(image.fp, io.BytesIO) and image.fp.getvalue().endswith(SWELLS):
        bytearray(2**44)  # more than any machine has
    return _load(image)


def _deadly_open(file, *args, **options):
    content = file.getvalue()
    if MARK in content:
        name = content.partition(MARK)[2].decode()
        os.kill(os.getpid(), getattr(signal, name))
    if content.endswith(HANGS):
        time.sleep(3600)
    return _open(file, *args, **options)


def _slow_fsync(descriptor):
    time.sleep(float(os.environ.get("DIM_TEST_WRITE_SECONDS", "0")))
    _fsync(descriptor)


Image.open, ImageFile.ImageFile.load, os.fsync = _deadly_open, _slow_load, _slow_fsync
