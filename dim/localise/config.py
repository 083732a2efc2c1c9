"""The flag --rerank: METHOD or METHOD:N."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from dim.errors import UserError, quoted

Method = Literal["localise", "geometry"]

FIRST, MOST = 100, 10_000  # photos at the head of a list that are ranked again: by default, and at most
_FORM = re.compile(r"([a-z]+)(?::(\d{1,6}))?", re.ASCII)


@dataclass(frozen=True)
class Rerank:
    """A re-ranking of the `first` photos of each list by `method`."""

    method: Method
    first: int = FIRST

    def __str__(self) -> str:
        """In words, for pages and logs."""
        return f"the first {self.first} ranked again by {self.method}; a frame shows where a photo has the query"


def parsed(text: str) -> Rerank:
    """Reads the value of --rerank. Raises UserError if it has another form or names no method."""
    found, known = _FORM.fullmatch(text), get_args(Method)
    if found is None or found[1] not in known:
        raise UserError(
            f"--rerank must be {' or '.join(known)}, perhaps with a number of photos, such as {known[0]}:200, "
            f"not {quoted(text)}"
        )
    first = int(found[2] or FIRST)
    if not 1 <= first <= MOST:
        raise UserError(f"--rerank {text}: the number of photos must be from 1 to {MOST}, not {first}")
    return Rerank(found[1], first)  # type: ignore[arg-type]
