"""One evaluation of a night, and whether it meets its gates.

The *baseline* is the last accepted night. The mAP that it recorded can't be compared with tonight's: photos were added
since, and among more photos each query is harder to answer. So the baseline's network, of which a copy is kept, is run
on the new and changed photos, too, and both networks are measured on tonight's photos, labels and ground truth. If both
nights have the same network, only photos, labels or ground truth can have changed mAP. In this case, min-map is the
only gate that applies.

An evaluation measures each network at most once per night.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dim.app import output_folder
from dim.errors import UserError
from dim.evaluate import comparison
from dim.evaluate.comparison import METRICS, PER_QUERY, Comparison
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import measure
from dim.evaluate.significance import MeanDifference, smallest_p
from dim.io import files, local_copies, seal, tables
from dim.nightly import kept_collections
from dim.nightly.config import Measurement, NightlyConfig
from dim.nightly.history import NightlyHistory, number
from dim.nightly.kept_collections import Collection

log = logging.getLogger(__name__)

NIGHT, BASELINE = "night.json", "baseline"
_GATES = ("name", "min_map", "max_drop", "significance")


@dataclass(frozen=True)
class NightlyResult:
    """The result of one evaluation of a night."""

    map: float  # of tonight's network
    collection: Collection
    key: str  # a sha256 of everything that the result depends on
    baseline: str | None = None  # the date of the last accepted night, None if there is none
    baseline_collection: Collection | None = None  # made by the baseline's network, if it isn't tonight's
    comparison: Comparison | None = None  # with the baseline's network; None if that network wasn't measured
    baseline_error: str | None = None  # why the baseline's network couldn't be measured
    note: str | None = None  # what a reader must know to interpret the figures

    @property
    def change(self) -> MeanDifference | None:
        """The change of mAP from the baseline's network to tonight's."""
        return self.comparison.change if self.comparison else None

    def not_comparable(self, reason: str) -> str:
        """A message that the baseline's network can't be measured on tonight's photos. It includes the `reason`."""
        return (
            f"the network of {self.baseline}, the last accepted night, can't be measured on tonight's photos ({reason})"
        )

    def as_json(self) -> dict[str, Any]:
        """The result as written to night.json."""
        document: dict[str, Any] = {"map": self.map, "key": self.key, "note": self.note, "baseline": self.baseline}
        document |= {"embedding": self.collection.embedding.id, "collection": self.collection.folder}
        document |= self.collection.counts
        if self.baseline_collection:
            document["baseline_collection"] = self.baseline_collection.folder
        if self.comparison:
            document["queries"] = len(self.comparison.judged)
        return document | (dataclasses.asdict(self.change) if self.change else {})


def measure_evaluation(
    config: NightlyConfig, date: str, asked: Measurement, collection: Collection, past: NightlyHistory,
    *, extracted: dict[tuple[str, str], Collection],
) -> NightlyResult:  # fmt: skip
    """Measures tonight's network and the baseline's, and writes both evaluations to the folder of the night `date`.

    `asked` is the evaluation. `collection` holds tonight's descriptors of the evaluation's photos.
    `extracted` caches what baselines' networks have extracted tonight. A key is the folder of the baseline's collection
    and a manifest. This function adds to it.
    """
    row = past.baseline(asked.name, date)
    other, error = None, None
    if row and row["embedding"] != collection.embedding.id:
        stored = kept_collections.current_folder(config.out, str(row["collection"]))
        try:
            network = kept_collections.load_network(stored, config)
        except UserError as reason:
            error = str(reason)
        else:
            log.info("%s: the network of %s measures tonight's photos, too", asked.name, row["date"])
            if (stored, asked.manifest) not in extracted:
                network = replace(network, manifest=asked.manifest)
                extracted[stored, asked.manifest] = kept_collections.extract(config.out, network)
            other = extracted[stored, asked.manifest]
    folder, key = files.join(config.out, f"nights/{date}/{asked.name}"), _key(asked, collection, other)
    baseline_folder = files.join(folder, BASELINE)
    if not _copy_unchanged(config.out, past.before(date), asked.name, key, folder):
        if other:
            _evaluate(asked, other, baseline_folder, config.memory, report=False)
        _evaluate(
            asked, collection, folder, config.memory, baseline=files.join(baseline_folder, METRICS) if other else None
        )
    value = files.read_json(files.join(folder, METRICS))["map"]
    if row is None:
        return NightlyResult(value, collection, key)
    compared = None if error else _compare(row["date"], baseline_folder if other else folder, date, folder)
    result = NightlyResult(value, collection, key, row["date"], other, compared, error)
    note = _note(asked, result, row)
    if note:
        log.info("%s: %s", asked.name, note)
    return replace(result, note=note)


def _note(asked: Measurement, result: NightlyResult, row: dict[str, Any]) -> str | None:
    """What a reader must know to interpret the figures. `row` is the baseline's row of the history."""
    if result.baseline_error:
        return None if asked.refuses_falls else result.not_comparable(result.baseline_error)
    if result.baseline_collection is None:
        before, photos = number(row, "map"), number(row, "images")
        if before is None or photos is None:
            return f"the network is that of {result.baseline}"
        return (
            f"the network is that of {result.baseline}: only photos or labels can have moved mAP, from {before:.4f} "
            f"({photos:,.0f} photos) to {result.map:.4f} ({result.collection.counts['images']:,} photos)"
        )
    errors, before = (known.counts["errors"] for known in (result.collection, result.baseline_collection))
    if errors != before:
        return (
            f"photos without a descriptor are never found: {errors:,} with tonight's network, {before:,} with the one "
            f"of {result.baseline}; part of the change may be due to that"
        )
    if result.change and 0 < asked.significance <= (least := smallest_p(result.change.objects)):
        return (
            f"significance {asked.significance:g} can refuse no fall: {result.change.objects} objects give no p-value "
            f"below {least:g}"
        )
    return None


def digest(value: Any) -> str:
    """A sha256 of a JSON value."""
    return seal.sha256(json.dumps(value, sort_keys=True).encode())


def _key(asked: Measurement, collection: Collection, other: Collection | None) -> str:
    """A sha256 of everything that a result depends on."""
    how = {name: value for name, value in dataclasses.asdict(asked).items() if name not in _GATES}
    contents = [seal.sha256_of_file(uri) for uri in (asked.manifest, asked.ground_truth) if uri]
    made = [[known.embedding.id, known.rows] for known in (collection, other) if known]
    return digest([made, how, contents])


def _copy_unchanged(out: str, last: str | None, name: str, key: str, folder: str) -> bool:
    """Copies the evaluation `name` of the night `last` to `folder` if it has the same `key`. Returns whether it did."""
    record = files.join(out, f"nights/{last}/{NIGHT}")
    if last is None or not files.exists(record):
        return False
    if files.read_json(record)["evaluations"].get(name, {}).get("key") != key:
        return False
    log.info("%s: nothing has changed since %s", name, last)
    before = files.join(out, f"nights/{last}/{name}")
    for subfolder in ("", *({BASELINE} & {*files.folders(before)})):
        local_copies.sweep(files.join(folder, subfolder))
        files.copy_folder(files.join(before, subfolder), files.join(folder, subfolder))
    return True


def _evaluate(
    asked: Measurement,
    collection: Collection,
    folder: str,
    memory: str | None,
    *,
    baseline: str | None = None,
    report: bool = True,
) -> None:
    """Evaluates a collection, writes the results to `folder`, and compares them with the metrics.json `baseline`."""
    how = {name: value for name, value in vars(asked).items() if name not in _GATES}
    config = EvaluateConfig(
        descriptors=(collection.descriptors,), out=folder, memory=memory, baseline=baseline, report=report, **how
    )
    measure(config, comparison.read_baseline(baseline, config.protocol) if baseline else None)


def _compare(before: str, one: str, after: str, other: str) -> Comparison:
    """Compares the evaluations in the folders `one` and `other`. `before` and `after` are their names in the result."""
    for folder in {one, other}:
        output_folder.verified_seal(folder)
    per_query = [tables.read(files.join(folder, PER_QUERY)) for folder in (one, other)]
    return comparison.compare(before, per_query[0], after, per_query[1])


def unmet_gates(asked: Sequence[Measurement], results: Mapping[str, NightlyResult]) -> list[str]:
    """One message for each gate that isn't met. `asked` are the evaluations; `results` has each result by name."""
    changes = {known.name: results[known.name].change for known in asked if known.significance}
    tested = {name: change for name, change in changes.items() if change and results[name].baseline_collection}
    adjusted = holm({name: change.p_fall for name, change in tested.items()})
    over = f" over {len(adjusted)} evaluations" if len(adjusted) > 1 else ""
    return [text for known in asked for text in _unmet(known, results[known.name], adjusted.get(known.name), over)]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusts the p-values of several tests so that a false alarm by any of them is as rare as with one test.

    The smallest of m p-values is multiplied by m, the second smallest by m − 1, and so on. A result that is smaller
    than the one before is replaced by the latter (Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979).
    """
    adjusted: dict[str, float] = {}
    least = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = adjusted[name] = max(least, min(1.0, (len(p_values) - rank) * p_values[name]))
    return adjusted


def _unmet(asked: Measurement, result: NightlyResult, p_fall: float | None, over: str) -> Iterator[str]:
    if asked.min_map is not None and result.map < asked.min_map:
        yield f"{asked.name}: mAP {result.map:.4f} is below min-map {asked.min_map}"
    if result.baseline is None:
        return
    change = result.change
    if result.comparison is None or change is None:
        reason = result.baseline_error or "no query could be read by both"
        if asked.refuses_falls:
            yield f"{asked.name}: {result.not_comparable(reason)}; look at the report, then use --accept"
        return
    fall = (
        f"mAP fell by {-change.difference:.4f} from the network of {result.baseline} to tonight's, both measured on "
        f"tonight's {len(result.comparison.judged)} queries"
    )
    if asked.max_drop is not None and -change.difference > asked.max_drop:
        yield f"{asked.name}: {fall}, which is more than max-drop {asked.max_drop}"
    if change.difference < 0 and p_fall is not None and p_fall < asked.significance:
        yield (
            f"{asked.name}: {fall}, more than chance explains (one-sided p{over} {p_fall:.4f} < significance "
            f"{asked.significance}; {change.interval_in_words()})"
        )
