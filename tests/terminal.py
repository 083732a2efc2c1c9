"""What a job writes on a terminal's stderr."""

import re

_TOLD = re.compile(r"\d\d:\d\d:\d\d ")  # at the head of a line of what the job does and how far it is


def messages(stderr: str) -> list[str]:
    """Returns the lines of `stderr` without those of progress, of which a slow machine has more."""
    return [line for line in stderr.splitlines() if not _TOLD.match(line)]
