"""Many reasons in one line: how often each kind occurs."""

import re
from collections import defaultdict
from collections.abc import Iterable

_MOST = 5
# What differs between two reasons of one kind: numbers, what is quoted, addresses of objects.
_VARYING = re.compile(r"""b?'[^']*'|b?"[^"]*"|<[^>]*>|\d[\d,.]*""")


def summed(reasons: Iterable[str]) -> str:
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
