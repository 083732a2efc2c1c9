"""The methods that `--expansion` can name. `check` checks a sequence of methods, and `apply` applies it to a search."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from dim.app import progress
from dim.errors import UserError
from dim.localise.config import parsed
from dim.search.config import Expansion
from dim.search.reranking import alpha_qe, aqe, dba, diffusion, k_reciprocal
from dim.search.retrieval import Retrieval

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

MOST_NEIGHBOURS = 100_000


@dataclass(frozen=True)
class Method:
    """A function of `reranking` and its default `neighbours`. If the function replaces scores, no method may follow."""

    apply: Callable[[Retrieval, int], Retrieval]
    neighbours: int
    replaces_scores: bool = False


METHODS: dict[Expansion, Method] = {
    "aqe": Method(aqe, 10),
    "alpha-qe": Method(alpha_qe, 50),
    "dba": Method(dba, 50),
    "k-reciprocal": Method(k_reciprocal, 20, replaces_scores=True),
    "diffusion": Method(diffusion, 50, replaces_scores=True),
}


def check(names: Sequence[Expansion], neighbours: int | None, rerank: str | None = None) -> None:
    """Raises UserError if the flags after a search don't fit each other.

    That is, if `names` are in a wrong order, if `neighbours` is out of range or given without names, or if `rerank` is
    malformed or follows a method that replaces the scores.
    """
    if rerank:
        parsed(rerank)
    for name in names if rerank else names[:-1]:
        if METHODS[name].replaces_scores:
            raise UserError(f"--expansion {name} replaces the scores, so it must be the last, and without --rerank")
    if neighbours is not None and not 1 <= neighbours <= MOST_NEIGHBOURS:
        raise UserError(f"--neighbours must be from 1 to {MOST_NEIGHBOURS}, not {neighbours}")
    if neighbours is not None and not names:
        raise UserError("--neighbours goes with --expansion only")


@dataclass
class AppliedMethod:
    """A method that was applied, and the time that it takes. `seconds` grows until the last list is re-ranked."""

    method: Expansion
    neighbours: int
    seconds: float = 0.0

    def as_json(self) -> dict[str, str | int | float]:
        """The entry of this method in the job's result."""
        return {"method": self.method, "neighbours": self.neighbours, "seconds": round(self.seconds, 3)}

    def timed(self, function: Callable[P, T]) -> Callable[P, T]:
        """Wraps `function` so that each call adds its time to `seconds`."""

        def measured(*arguments: P.args, **named: P.kwargs) -> T:
            started = time.perf_counter()
            result = function(*arguments, **named)
            self.seconds += time.perf_counter() - started
            return result

        return measured


def apply(
    search: Retrieval, names: Sequence[Expansion], neighbours: int | None
) -> tuple[Retrieval, list[AppliedMethod]]:
    """Applies the methods `names` to `search` in order. Returns the changed search and the applied methods.

    Each method uses `neighbours` neighbours, or the method's own default number if `neighbours` is None.
    """
    steps = []
    for name in names:
        method = METHODS[name]
        step = AppliedMethod(name, neighbours or method.neighbours)
        with progress.step(f"applying {name}"):
            search = step.timed(method.apply)(search, step.neighbours)
        if search.rescore:
            search = replace(search, rescore=step.timed(search.rescore))
        log.info("%s with %d neighbours: %.1f s", name, step.neighbours, step.seconds)
        steps.append(step)
    return search, steps
