"""Is the night good enough? Its mAP against a bound, and against the last accepted night's, query by query."""

from collections.abc import Iterator

from dim.evaluate.comparison import Comparison
from dim.nightly.config import Measurement


def unmet(gates: Measurement, found: float, comparison: Comparison | None) -> Iterator[str]:
    """Each of `gates` that a mAP of `found`, and its comparison with the baseline, doesn't meet, in words."""
    if gates.min_map is not None and found < gates.min_map:
        yield f"{gates.name}: mAP {found:.4f} is below min-map {gates.min_map}"
    if comparison is None:
        return
    change = comparison.change
    if change is None:
        yield f"{gates.name}: no query in common with the baseline, {comparison.before}; look, then use --accept"
        return
    fall = f"mAP fell by {-change.difference:.4f} on the {len(comparison.judged)} queries of {comparison.before}"
    if gates.max_drop is not None and -change.difference > gates.max_drop:
        yield f"{gates.name}: {fall}, which is more than max-drop {gates.max_drop}"
    if change.difference < 0 and change.p_value < gates.significance:
        yield (
            f"{gates.name}: {fall}, which is no chance (p {change.p_value:.4f} < significance {gates.significance}; "
            f"95 % interval {change.low:.4f} to {change.high:.4f})"
        )
