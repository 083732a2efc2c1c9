"""Is the night good enough? Its mAP against a bound, and against the last accepted night's, query by query."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from dim import files
from dim.evaluate import bootstrap
from dim.evaluate.bootstrap import Interval
from dim.nightly.config import Measurement

RESAMPLES, SEED = 10_000, 0


@dataclass(frozen=True)
class Comparison:
    """The night against the night `baseline` on the queries that both have; `change` is of the mean AP, with its 95 %
    interval, and None where they have no query in common.
    """

    baseline: str
    queries: int
    change: Interval | None


def compare(baseline: str, before: str, after: str) -> Comparison:
    """Compares the queries of the evaluations in the folders `before`, the night `baseline`'s, and `after`."""
    tables = (files.read_table(files.join(folder, "per_query.parquet")) for folder in (before, after))
    one, other = (table.select(["query_id", "ap"]).filter(pc.is_valid(table["ap"])) for table in tables)
    both = one.join(other, "query_id", join_type="inner", right_suffix="_after").sort_by("query_id")
    if not both.num_rows:
        return Comparison(baseline, 0, None)
    aps = (np.asarray(both[name].to_numpy(), np.float64) for name in ("ap", "ap_after"))
    return Comparison(baseline, both.num_rows, bootstrap.paired(*aps, seed=SEED, resamples=RESAMPLES))


def unmet(gates: Measurement, found: float, comparison: Comparison | None) -> Iterator[str]:
    """Each gate of `gates` that a mAP of `found` doesn't meet, in words."""
    if gates.min_map is not None and found < gates.min_map:
        yield f"{gates.name}: mAP {found:.4f} is below min-map {gates.min_map}"
    if comparison is None:
        return
    change = comparison.change
    if change is None:
        yield f"{gates.name}: no query in common with the baseline of {comparison.baseline}; look, then use --accept"
        return
    fall = f"mAP fell by {-change.difference:.4f} on the {comparison.queries} queries of {comparison.baseline}"
    if gates.max_drop is not None and -change.difference > gates.max_drop:
        yield f"{gates.name}: {fall}, which is more than max-drop {gates.max_drop}"
    if change.difference < 0 and change.p_value < gates.significance:
        yield (
            f"{gates.name}: {fall}, which is no chance (p {change.p_value:.4f} < significance {gates.significance}; "
            f"95 % interval {change.low:.4f} to {change.high:.4f})"
        )
