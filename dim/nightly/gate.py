"""Is the night good enough? Its mAP against a bound, and its network's against the baseline's, on the same photos."""

from collections.abc import Iterator, Mapping, Sequence

from dim.nightly.config import Measurement
from dim.nightly.figure import Figure


def unmet(asked: Sequence[Measurement], figures: Mapping[str, Figure]) -> list[str]:
    """Each gate of the evaluations `asked` that the night's `figures`, by name, don't meet, in words."""
    changes = {known.name: figures[known.name].change for known in asked if known.significance}
    others = {name: change for name, change in changes.items() if change and figures[name].standing}
    adjusted = holm({name: change.p_fall for name, change in others.items()})
    tests = f" over {len(adjusted)} evaluations" if len(adjusted) > 1 else ""
    return [text for known in asked for text in _unmet(known, figures[known.name], adjusted.get(known.name), tests)]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values of several tests, raised so that one false alarm among them all is as rare as one test's would be.

    The smallest of m is multiplied by m, the next by m − 1 and so on, none below the one before it (Holm, A Simple
    Sequentially Rejective Multiple Test Procedure, 1979).
    """
    adjusted: dict[str, float] = {}
    least = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = adjusted[name] = max(least, min(1.0, (len(p_values) - rank) * p_values[name]))
    return adjusted


def _unmet(asked: Measurement, figure: Figure, p_fall: float | None, tests: str) -> Iterator[str]:
    if asked.min_map is not None and figure.map < asked.min_map:
        yield f"{asked.name}: mAP {figure.map:.4f} is below min-map {asked.min_map}"
    if figure.baseline is None:
        return
    change = figure.change
    if figure.against is None or change is None:
        reason = figure.fault or "no query could be read by both"
        if asked.refuses_falls:
            yield f"{asked.name}: {figure.unmeasured(reason)}; look at the report, then use --accept"
        return
    fall = (
        f"mAP fell by {-change.difference:.4f} from that of the network of {figure.baseline}, both measured on "
        f"tonight's {len(figure.against.judged)} queries"
    )
    if asked.max_drop is not None and -change.difference > asked.max_drop:
        yield f"{asked.name}: {fall}, which is more than max-drop {asked.max_drop}"
    if change.difference < 0 and p_fall is not None and p_fall < asked.significance:
        yield (
            f"{asked.name}: {fall}, more than chance explains (one-sided p{tests} {p_fall:.4f} < significance "
            f"{asked.significance}; {change.told()})"
        )
