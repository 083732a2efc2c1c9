"""One evaluation of a night: tonight's network and that of the last accepted night, measured on the same photos.

The mAP that was recorded then tells nothing of the network: it is of other photos, fewer as a rule, among which each
query is found more easily. So the baseline's network, which is kept with its collection, extracts what is new since,
and both are measured on tonight's photos, labels and ground truth. Where the network is the baseline's, nothing is to
be compared: that mAP moved can be due to photos and labels alone, and no gate on a fall refuses that; min-map does.

What a night costs: photos that are new or changed are extracted once, and once more by the baseline's network where
tonight's is another; a network that is new extracts all photos in its first night. Each network is measured once.

Is the night good enough? Its mAP against a bound, and its network's against the baseline's, on the same photos.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dim.app import output
from dim.errors import UserError
from dim.evaluate import comparison
from dim.evaluate import comparison as baselines
from dim.evaluate.comparison import METRICS, PER_QUERY, Comparison
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import measure
from dim.evaluate.significance import Interval, least_p
from dim.io import files, local_files, seal, tables
from dim.nightly import state
from dim.nightly.config import Measurement, NightlyConfig
from dim.nightly.history import NightlyHistory, number
from dim.nightly.state import Collection

log = logging.getLogger(__name__)

NIGHT, BASELINE = "night.json", "baseline"
_GATES = ("name", "min_map", "max_drop", "significance")


@dataclass(frozen=True)
class Figure:
    """What an evaluation came to: its mAP, and tonight's network `against` that of the last accepted night, `baseline`,
    None in a first night and where `fault` says why that can't be measured any more.
    """

    map: float
    found: Collection
    key: str
    baseline: str | None = None
    standing: Collection | None = None  # the baseline's, where its network is another
    against: Comparison | None = None
    fault: str | None = None
    note: str | None = None

    @property
    def change(self) -> Interval | None:
        """The change of mAP from the baseline's network to tonight's."""
        return self.against.change if self.against else None

    def unmeasured(self, reason: str) -> str:
        """That the baseline's network is not compared, in words."""
        return (
            f"the network of {self.baseline}, the last accepted night, can't be measured on tonight's photos ({reason})"
        )

    def as_json(self) -> dict[str, Any]:
        """The figure as it stands in night.json."""
        known: dict[str, Any] = {"map": self.map, "key": self.key, "note": self.note, "baseline": self.baseline}
        known |= {"embedding": self.found.embedding.id, "collection": self.found.folder, **self.found.counts}
        if self.standing:
            known["baseline_collection"] = self.standing.folder
        if self.against:
            known["queries"] = len(self.against.judged)
        return known | (dataclasses.asdict(self.change) if self.change else {})


def measured(
    config: NightlyConfig,
    date: str,
    asked: Measurement,
    found: Collection,
    past: NightlyHistory,
    *,
    extracted: dict[tuple[str, str], Collection],
) -> Figure:
    """Measures what is `asked` of the collection `found`, and the baseline's network, into the folder of the night.

    `extracted` takes in what baselines' networks made in this night, by the folder of each and the manifest.
    """
    row = past.baseline(asked.name, date)
    standing, fault = None, None
    if row and row["embedding"] != found.embedding.id:
        kept = state.placed(config.out, str(row["collection"]))
        try:
            known = state.kept(kept, config)
        except UserError as error:
            fault = str(error)
        else:
            log.info("%s: the network of %s measures tonight's photos, too", asked.name, row["date"])
            if (kept, asked.manifest) not in extracted:
                made = state.extracted(config.out, replace(known, manifest=asked.manifest))
                extracted[kept, asked.manifest] = made
            standing = extracted[kept, asked.manifest]
    folder, key = files.join(config.out, f"nights/{date}/{asked.name}"), _key(asked, found, standing)
    beside = files.join(folder, BASELINE)
    if not _carried(config.out, past.before(date), asked.name, key, folder):
        if standing:
            _evaluate(asked, standing, beside, report=False)
        _evaluate(asked, found, folder, baseline=files.join(beside, METRICS) if standing else None)
    value = files.read_json(files.join(folder, METRICS))["map"]
    if row is None:
        return Figure(value, found, key)
    against = None if fault else _compared(row["date"], beside if standing else folder, date, folder)
    figure = Figure(value, found, key, row["date"], standing, against, fault)
    note = _note(asked, figure, row)
    if note:
        log.info("%s: %s", asked.name, note)
    return replace(figure, note=note)


def _note(asked: Measurement, figure: Figure, row: dict[str, Any]) -> str | None:
    """What one must know to read the figure."""
    if figure.fault:
        return None if asked.refuses_falls else figure.unmeasured(figure.fault)
    if figure.standing is None:
        before, photos = number(row, "map"), number(row, "images")
        if before is None or photos is None:
            return f"the network is that of {figure.baseline}"
        return (
            f"the network is that of {figure.baseline}: only photos or labels can have moved mAP, from {before:.4f} "
            f"({photos:,.0f} photos) to {figure.map:.4f} ({figure.found.counts['images']:,} photos)"
        )
    errors, before = (known.counts["errors"] for known in (figure.found, figure.standing))
    if errors != before:
        return (
            f"photos without a descriptor, which are never found: {errors:,} by tonight's network, {before:,} by that "
            f"of {figure.baseline}; a part of the change may be due to that"
        )
    if figure.change and 0 < asked.significance <= (least := least_p(figure.change.objects)):
        return (
            f"significance {asked.significance:g} can refuse no fall: {figure.change.objects} objects give no p-value "
            f"below {least:g}"
        )
    return None


def digest(value: Any) -> str:
    """A sha256 of `value`, which JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _key(asked: Measurement, found: Collection, standing: Collection | None) -> str:
    """A sha256 of all that an evaluation depends on."""
    how = {name: value for name, value in dataclasses.asdict(asked).items() if name not in _GATES}
    contents = [seal.sha256_of_file(uri) for uri in (asked.manifest, asked.ground_truth) if uri]
    made = [[known.embedding.id, known.rows] for known in (found, standing) if known]
    return digest([made, how, contents])


def _carried(out: str, last: str | None, name: str, key: str, folder: str) -> bool:
    """Whether the night `last` measured the same, whose evaluation then stands in `folder`, too."""
    record = files.join(out, f"nights/{last}/{NIGHT}")
    if last is None or not files.exists(record):
        return False
    if files.read_json(record)["evaluations"].get(name, {}).get("key") != key:
        return False
    log.info("%s: nothing has changed since %s", name, last)
    measured_then = files.join(out, f"nights/{last}/{name}")
    for where in ("", *({BASELINE} & {*files.folders(measured_then)})):
        local_files.sweep(files.join(folder, where))
        files.copy_folder(files.join(measured_then, where), files.join(folder, where))
    return True


def _evaluate(
    asked: Measurement, of: Collection, folder: str, *, baseline: str | None = None, report: bool = True
) -> None:
    """Evaluates `of` into `folder`, with a `report` if asked, which compares it with the `baseline`, its metrics."""
    how = {name: value for name, value in vars(asked).items() if name not in _GATES}
    config = EvaluateConfig(descriptors=(of.descriptors,), out=folder, baseline=baseline, report=report, **how)
    measure(config, baselines.read(baseline, config.protocol) if baseline else None)  # the gates are held elsewhere


def _compared(before: str, one: str, after: str, other: str) -> Comparison:
    """The night `after`, whose evaluation is in the folder `other`, against `before`, whose network's is in `one`."""
    for where in {one, other}:
        output.verified_seal(where)
    per_query = [tables.read(files.join(where, PER_QUERY)) for where in (one, other)]
    return comparison.compared(before, per_query[0], after, per_query[1])


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
