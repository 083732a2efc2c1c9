"""The log of a store: the facts of its shards, so that a run which resumes need not read them.

The log is the file shards.json: by name, each shard's rows, errors, photos of several frames, bytes and sha256. The
driver writes it every few seconds and at its end. A shard that the log lacks, because the driver was killed, is read,
verified and entered by the next run. At the end of a run, the seal in run.json repeats what readers need.
"""

import time
from typing import Any

from dim.errors import UserError
from dim.io import files
from dim.io.seal import Facts

NAME = "shards.json"
SECONDS = 5.0  # between two writes of the log
_FACTS = {"rows": int, "errors": int, "several_frames": int, "bytes": int, "sha256": str}


class ShardLog:
    """The log in `folder`, which begins with the facts `known`."""

    def __init__(self, folder: str, known: dict[str, Facts]) -> None:
        self._folder, self.facts = folder, dict(known)
        self._changed, self._written = read(folder) != known, 0.0
        self.write()

    def add(self, name: str, facts: Facts) -> None:
        """Enters a shard, and writes the log if it was not written for some seconds."""
        self.facts[name] = facts
        self._changed = True
        if time.monotonic() - self._written > SECONDS:
            self.write()

    def write(self) -> None:
        """Writes the log if it has changed."""
        if self._changed:
            files.write_json(files.join(self._folder, NAME), dict(sorted(self.facts.items())))
            self._changed, self._written = False, time.monotonic()


def read(folder: str) -> dict[str, Facts]:
    """The facts in the log of `folder`; none if there is no log, or it is damaged."""
    try:
        found = files.read_json(files.join(folder, NAME))
    except UserError:
        return {}
    return {name: facts for name, facts in found.items() if _is_whole(facts)} if isinstance(found, dict) else {}


def _is_whole(facts: Any) -> bool:
    return isinstance(facts, dict) and all(isinstance(facts.get(fact), kind) for fact, kind in _FACTS.items())
