"""What can be done after a search, by name."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from dim.errors import UserError
from dim.search.config import Expansion
from dim.search.database import Retrieval
from dim.search.reranking import alpha_qe, aqe, dba, diffusion, k_reciprocal

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

MOST_NEIGHBOURS = 100_000


@dataclass(frozen=True)
class Method:
    """`apply` changes the queries or the database, or sets how scores are changed, by `neighbours` neighbours."""

    apply: Callable[[Retrieval, int], Retrieval]
    neighbours: int
    ranks: bool = False  # replaces the scores, so that nothing can follow


METHODS: dict[Expansion, Method] = {
    "aqe": Method(aqe, 10),
    "alpha-qe": Method(alpha_qe, 50),
    "dba": Method(dba, 50),
    "k-reciprocal": Method(k_reciprocal, 20, ranks=True),
    "diffusion": Method(diffusion, 50, ranks=True),
}


def check(names: Sequence[Expansion], neighbours: int | None) -> None:
    """Raises UserError unless the methods can follow each other."""
    for name in names[:-1]:
        if METHODS[name].ranks:
            raise UserError(f"--expansion {name} replaces the scores, so it must be the last")
    if neighbours is not None and (not 1 <= neighbours <= MOST_NEIGHBOURS or not names):
        raise UserError(
            f"--neighbours {neighbours}: it is at least 1, at most {MOST_NEIGHBOURS}, and goes with --expansion"
        )


@dataclass
class AppliedMethod:
    """A method at work; `seconds` grow while its scores are used."""

    method: Expansion
    neighbours: int
    seconds: float = 0.0

    def as_json(self) -> dict[str, str | int | float]:
        """What the result says of it."""
        return {"method": self.method, "neighbours": self.neighbours, "seconds": round(self.seconds, 3)}

    def timed(self, function: Callable[P, T]) -> Callable[P, T]:
        """`function`, its time added to `seconds`."""

        def measured(*arguments: P.args, **named: P.kwargs) -> T:
            started = time.perf_counter()
            result = function(*arguments, **named)
            self.seconds += time.perf_counter() - started
            return result

        return measured


def apply(
    search: Retrieval, names: Sequence[Expansion], neighbours: int | None
) -> tuple[Retrieval, list[AppliedMethod]]:
    """`search` after the methods `names`, one on the other, and these."""
    steps = []
    for name in names:
        method = METHODS[name]
        step = AppliedMethod(name, neighbours or method.neighbours)
        search = step.timed(method.apply)(search, step.neighbours)
        if search.rescore:
            search = replace(search, rescore=step.timed(search.rescore))
        log.info("%s with %d neighbours: %.1f s", name, step.neighbours, step.seconds)
        steps.append(step)
    return search, steps
