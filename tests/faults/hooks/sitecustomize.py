"""Makes every Python process of a job under test decode slowly, die of marked photos, hang, and dawdle over its writes.

Python imports it by itself where this folder stands in PYTHONPATH.
"""

import os
import signal
import time

from PIL import Image

MARK, HANGS = b"dies by ", b"hangs for ever"

_open, _fsync = Image.open, os.fsync


def _slow_or_deadly_open(file, *args, **options):
    time.sleep(float(os.environ.get("DIM_TEST_DECODE_SECONDS", "0")))
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


Image.open, os.fsync = _slow_or_deadly_open, _slow_fsync
