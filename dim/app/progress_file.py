"""The file progress.json in the output folder of a running job: the stage, the units done, and the time left.

Another terminal can read it at any time (`cat runs/out/progress.json`). A thread of the job writes it every `SECONDS`,
and the job deletes it when it ends. If a file's time `updated` is older than a minute, its job was killed, or can't
reach the folder. The file is not called result.json, because a folder with a result.json counts as finished.
"""

import contextlib
import datetime
import logging
import threading
from collections.abc import Iterator
from typing import Any

from dim.errors import JobFailed
from dim.io import files

NAME = "progress.json"
SECONDS = 10.0  # between two writes, and before the first, so that a short job writes no file
_DETAILS = ("stage", "epoch", "done", "total", "unit", "errors", "rate", "seconds_left")


class _Latest(logging.Handler):
    """Keeps the details of the latest record of progress, from this process or from a worker."""

    def __init__(self) -> None:
        super().__init__()
        self.details: dict[str, Any] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the details of `record` if it is one of `dim.app.progress`."""
        if hasattr(record, "finished"):
            self.details = {name: getattr(record, name) for name in _DETAILS if hasattr(record, name)}


@contextlib.contextmanager
def kept(folder: str, job: str) -> Iterator[None]:
    """Keeps the progress.json of `folder` up to date within the block, and deletes it at the end.

    A write that fails is left out: it must not end the job.
    """
    uri, latest, ended = files.join(folder, NAME), _Latest(), threading.Event()
    about = {"job": job, "status": "running", "started": _now()}

    def write() -> None:
        while not ended.wait(SECONDS):
            with contextlib.suppress(OSError, JobFailed):  # a full disk, a store that is away, a lost lease
                files.write_json(uri, about | {"updated": _now()} | latest.details)

    files.delete(uri)  # a killed job may have left one
    thread = threading.Thread(target=write, name="progress", daemon=True)
    logging.getLogger().addHandler(latest)
    thread.start()
    try:
        yield
    finally:
        logging.getLogger().removeHandler(latest)
        ended.set()
        thread.join()
        with contextlib.suppress(OSError, JobFailed):
            files.delete(uri)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
