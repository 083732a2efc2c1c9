"""Log records as a person reads them, or, where the environment has DIM_LOG=json, as a machine does."""

import datetime
import json
import logging
import os
import platform
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from dim.app import environment
from dim.io import uris

# What a record may say beside its message.
DETAILS = ("node", "worker", "shard", "stage", "epoch", "done", "total", "errors")

_MESSAGE = 2000  # letters of it, at most: a value that is quoted may be as long as the file that it stands in


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:
        return traced(super().formatException(ei))


class JsonFormatter(_Formatter):
    """One JSON object a line: time, level, job, submission (Ray's id of it, if it was submitted), node and message,
    and those of `DETAILS` that the record has.
    """

    def __init__(self, job: str) -> None:
        super().__init__()
        self._job = {"job": job} | ({"submission": known} if (known := environment.submission_id()) else {})

    def format(self, record: logging.LogRecord) -> str:
        """`record` as one line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        said: dict[str, Any] = {"time": time.isoformat(timespec="milliseconds"), "level": record.levelname}
        said |= self._job | {"node": platform.node(), "message": plain(record.getMessage())}
        said |= {name: getattr(record, name) for name in DETAILS if hasattr(record, name)}
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


class PlainFormatter(_Formatter):
    """Text for a terminal, whatever the names of files and labels hold."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        return plain(super().formatMessage(record))


def plain(text: str) -> str:
    """`text` as one line that can't steer a terminal or pass for another, without the credentials of URIs."""
    # Control characters, and those that turn the direction of writing.
    marks = "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
    return re.sub(marks, lambda found: found[0].encode("unicode_escape").decode(), uris.redacted(text))


def message(text: str) -> str:
    """`text` as `plain`, and not longer than a message may be."""
    said = plain(text)
    return said if len(said) <= _MESSAGE else said[: _MESSAGE - 1] + "…"


def traced(text: str) -> str:
    """The lines of a traceback, each of them `plain`."""
    return "\n".join(map(plain, text.splitlines()))


def wants_json() -> bool:
    """Whether a machine reads the log."""
    return os.environ.get("DIM_LOG") == "json"


def job() -> str:
    """The name of the job that this process runs."""
    return Path(sys.argv[0]).stem


def say(level: int, text: str, bug: Exception | None = None) -> None:
    """Writes to stderr, as DIM_LOG says, how the job ends: `text`; to a person, for a `bug`, its traceback instead."""
    said = message(text)
    if wants_json():
        about = (type(bug), bug, bug.__traceback__) if bug else None
        said = JsonFormatter(job()).format(logging.LogRecord("dim", level, "", 0, said, None, about))
    elif bug:
        said = traced("".join(traceback.format_exception(bug)))
    print(said, file=sys.stderr, flush=True)


def set_up(handler: logging.Handler, job: str) -> None:
    """Makes `handler` write the records of `job` as DIM_LOG says."""
    if wants_json():
        handler.setFormatter(JsonFormatter(job))
        return
    handler.setFormatter(PlainFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(lambda record: not hasattr(record, "shard"))  # one a shard is too much for a person
