"""The ways in which a job ends that are not bugs, and how their messages quote a value.

Many reasons in one line: how often each kind occurs.
"""

import re
import reprlib
from collections import defaultdict
from collections.abc import Iterable
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


_MOST = 5
# What differs between two reasons of one kind: numbers, what is quoted, addresses of objects.
_VARYING = re.compile(r"""b?'[^']*'|b?"[^"]*"|<[^>]*>|\d[\d,.]*""")


def count_reasons(reasons: Iterable[str]) -> str:
    """`reasons` by kind, the most frequent first: "7 × no such file, 2 × the file is empty". Reasons that differ in
    numbers and in what they quote are of one kind.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for reason in reasons:
        kinds[_VARYING.sub("…", reason)].append(reason)
    ordered = sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[0]))
    told = [f"{len(same):,} × {kind if len(set(same)) > 1 else same[0]}" for kind, same in ordered[:_MOST]]
    if rest := sum(len(same) for _, same in ordered[_MOST:]):
        told.append(f"{rest:,} × other reasons")
    return ", ".join(told)
