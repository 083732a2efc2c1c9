"""The ways in which a job ends that are not bugs, and how their messages quote a value."""

import reprlib
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


class UserError(Exception):
    """Wrong usage or input: one line that says what was received, where, and what to do (exit status 2)."""


class JobFailed(Exception):
    """The job cannot go on, for a reason that the message tells (exit status 1)."""


class GateNotMet(Exception):
    """A quality gate was not met (exit status 3). `result` is still printed as the job's last line."""

    def __init__(self, message: str, result: dict[str, object]) -> None:
        super().__init__(message)
        self.result = result


def quoted(value: Any) -> str:
    """The repr of `value` as a message shows it: some 100 characters, however much it unfolds to."""
    text = _SHORT.repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
