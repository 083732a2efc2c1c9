"""The format of log records: text for people or, if the environment has DIM_LOG=json, one JSON object per line."""

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

# The attributes that a record may have besides its message.
DETAILS = ("node", "worker", "shard", "stage", "epoch", "done", "total", "unit", "errors", "rate", "seconds_left")

_MESSAGE_CHARACTERS = 2000  # limit of a message, which may quote a value as long as a whole file


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:
        return plain_lines(super().formatException(ei))


class JsonFormatter(_Formatter):
    """Formats a record as one line of JSON.

    The keys are time, level, job, submission (Ray's id of a submitted job), node and message. If the record has an
    exception or some of the `DETAILS`, they are keys, too.
    """

    def __init__(self, job: str) -> None:
        super().__init__()
        self._job = {"job": job} | ({"submission": known} if (known := environment.submission_id()) else {})

    def format(self, record: logging.LogRecord) -> str:
        """`record` as one line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields: dict[str, Any] = {"time": time.isoformat(timespec="milliseconds"), "level": record.levelname}
        fields |= self._job | {"node": platform.node(), "message": plain(record.getMessage())}
        fields |= {name: getattr(record, name) for name in DETAILS if hasattr(record, name)}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


class PlainFormatter(_Formatter):
    """Formats a record as text that is safe on a terminal even if names and labels in it have control characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """`record` as one line."""
        return plain(super().formatMessage(record))


def plain(text: str) -> str:
    """Puts `text` on one line, escapes characters that control a terminal, and removes the credentials of URIs."""
    # Control characters, line separators, and characters that set the direction of text.
    marks = "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
    return re.sub(marks, lambda found: found[0].encode("unicode_escape").decode(), uris.redacted(text))


def message(text: str) -> str:
    """`plain(text)`, cut to the length that a message may have."""
    line = plain(text)
    return line if len(line) <= _MESSAGE_CHARACTERS else line[: _MESSAGE_CHARACTERS - 1] + "…"


def plain_lines(text: str) -> str:
    """Applies `plain` to each line of `text`, such as a traceback."""
    return "\n".join(map(plain, text.splitlines()))


def wants_json() -> bool:
    """Whether the log is JSON, for a machine."""
    return os.environ.get("DIM_LOG") == "json"


def job() -> str:
    """The name of the job that this process runs."""
    return Path(sys.argv[0]).stem.removeprefix("dim ")  # jobs/train.py, or dim train


def say(level: int, text: str, bug: Exception | None = None) -> None:
    """Writes `text`, the last line of a job, to stderr in the format of DIM_LOG.

    If a `bug` ended the job, a JSON line also has its traceback. In the text format, the traceback replaces `text`.
    """
    said = message(text)
    if wants_json():
        about = (type(bug), bug, bug.__traceback__) if bug else None
        said = JsonFormatter(job()).format(logging.LogRecord("dim", level, "", 0, said, None, about))
    elif bug:
        said = plain_lines("".join(traceback.format_exception(bug)))
    print(said, file=sys.stderr, flush=True)


def set_up(handler: logging.Handler, job: str) -> None:
    """Makes `handler` write the records of `job` in the format of DIM_LOG."""
    if wants_json():
        handler.setFormatter(JsonFormatter(job))
        return
    handler.setFormatter(PlainFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(lambda record: not hasattr(record, "shard"))  # people need no line for each shard
