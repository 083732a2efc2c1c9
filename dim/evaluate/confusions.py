"""Which labels are taken for which: the nearest photo of a query has another label than the query."""

from collections.abc import Sequence
from dataclasses import dataclass

from dim.evaluate.evaluation import Judged


@dataclass(frozen=True)
class Confusion:
    """The queries of `label` whose nearest photo is wrong and has the label `taken_for`; `of` is how many it has."""

    label: str
    taken_for: str
    queries: list[Judged]
    of: int


def confusions(judged: Sequence[Judged]) -> list[Confusion]:
    """All pairs of labels that are confused, most often first, ties by label. Junk is left out of the lists."""
    pairs: dict[tuple[str, str], list[Judged]] = {}
    counts: dict[str, int] = {}
    for query in judged:
        if query.label is None or not query.n_positives:
            continue
        counts[query.label] = counts.get(query.label, 0) + 1
        nearest = next((hit for hit in query.hits if hit.verdict != "junk"), None)
        if nearest and nearest.verdict == "wrong" and nearest.label is not None:
            pairs.setdefault((query.label, nearest.label), []).append(query)
    found = [Confusion(*pair, queries, counts[pair[0]]) for pair, queries in pairs.items()]
    return sorted(found, key=lambda pair: (-len(pair.queries), pair.label, pair.taken_for))
