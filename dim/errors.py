"""Errors that end a job although dim has no bug, and helpers that keep error messages short."""

import re
import reprlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """The flags or the input are wrong (exit status 2). The message is one line: the wrong value, and what to do."""


class InUse(UserError):
    """Another process writes the output folder."""


class JobFailed(Exception):
    """The job can't go on, for the reason in the message (exit status 1)."""


class GateNotMet(Exception):
    """A quality gate was not met (exit status 3). `result` is still printed as the last line of the job."""

    def __init__(self, message: str, result: dict[str, object]) -> None:
        super().__init__(message)
        self.result = result


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def quoted(value: Any) -> str:
    """The repr of `value`, cut to about 100 characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"


_MOST_KINDS = 5  # kinds of reasons that one message lists
# Quotations, addresses of objects, and numbers. Reasons that differ only in such parts are of the same kind.
_VARYING = re.compile(r"""b?'[^']*'|b?"[^"]*"|<[^>]*>|\d[\d,.]*""")


def count_reasons(reasons: Iterable[str]) -> str:
    """Counts `reasons` by kind, most frequent first: "7 × no such file, 2 × the file is empty"."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for reason in reasons:
        kinds[_VARYING.sub("…", reason)].append(reason)
    ordered = sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[0]))
    counts = [f"{len(same):,} × {kind if len(set(same)) > 1 else same[0]}" for kind, same in ordered[:_MOST_KINDS]]
    if rest := sum(len(same) for _, same in ordered[_MOST_KINDS:]):
        counts.append(f"{rest:,} × other reasons")
    return ", ".join(counts)
