"""A night: refresh the collections, measure, compare with the last accepted night, and record, once for each date."""

import dataclasses
import datetime
import hashlib
import json
import logging
from typing import Any

from dim import checksum, cluster, files, leftovers, output, tables
from dim.errors import GateNotMet, JobFailed, UserError
from dim.evaluate import baseline as baselines
from dim.evaluate import comparison
from dim.evaluate.comparison import Comparison
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import measure
from dim.extract import identity
from dim.model import spec
from dim.nightly import collection, gate
from dim.nightly.collection import Collection
from dim.nightly.config import Measurement, NightlyConfig
from dim.nightly.history import ACCEPTED, REFUSED, History, Row

log = logging.getLogger(__name__)

NIGHT, METRICS = "night.json", "metrics.json"
LATEST = "9999-12-31"
_SETTINGS = ("scales", "scales_mean", "scaled_decode", "precision", "factory")  # and the network's, in its spec
_GATES = ("name", "min_map", "max_drop", "significance")


def nightly(config: NightlyConfig) -> dict[str, Any]:
    """Runs the night that `config` describes, or returns what it came to if it was run before.

    Raises GateNotMet, once all is written, where the night is refused: the baseline stays as it was.
    """
    date = _date(config.date)
    model = _model(config.model)
    inputs = {"model": model} | {f"manifest of {known.name}": known.manifest for known in config.evaluations}
    made_of = _made_of(config, model)
    with output.opened(config.out, "nightly", config, inputs) as out:
        past = History(config.out)
        # What the nights leave isn't sealed: it grows, and a person may mend the history.
        record = files.join(config.out, f"nights/{date}/{NIGHT}")
        leftovers.sweep(files.parent(record))
        if files.exists(record):
            log.info("the night %s has been run", date)
            night: dict[str, Any] = files.read_json(record)
            _warn_of_others(night, made_of)
        else:
            if past.last and date < past.last:
                raise UserError(
                    f"--date {date} is before {past.last}, the last night of {config.out!r}; use a later one"
                )
            with cluster.connected():
                night = _run(config, date, model, past) | {"made_of": made_of}
            if changed := _differing(made_of, _made_of(config, model)):
                raise JobFailed(f"{' and '.join(changed)} changed while the night ran; run the same command again")
        if config.accept:
            night["accepted"] = True
        _record(config, night, past, record)
        out.finish(night)
    if not night["accepted"]:
        raise GateNotMet("; ".join(night["unmet"]), night)
    return night


def _date(wanted: str | None) -> str:
    if wanted is None:
        return datetime.datetime.now(datetime.UTC).date().isoformat()
    try:
        return datetime.date.fromisoformat(wanted).isoformat()
    except ValueError as error:
        raise UserError(f"--date {wanted!r} is no date such as 2030-01-31") from error


def _model(name: str) -> str:
    """`name`, or the model of the training run in the folder of that name."""
    record = output.record_of(name)
    if record is None or record["job"] != "train":
        return name
    trained = files.join(name, "model")
    if not files.exists(files.join(trained, spec.SPEC_FILE)):
        raise UserError(f"the training run in {name!r} has not finished; finish it, or name another model")
    return trained


def _made_of(config: NightlyConfig, model: str) -> dict[str, str]:
    """A sha256 of each thing that a night is made of, by what it is called."""
    source = config.source(model)
    known: dict[str, Any] = {"the model": [source.fingerprint(), dataclasses.asdict(source.spec)]}
    known["the settings"] = {name: getattr(config, name) for name in _SETTINGS}
    known |= {f"the evaluation {asked.name!r}": dataclasses.asdict(asked) for asked in config.evaluations}
    read = (uri for asked in config.evaluations for uri in (asked.manifest, asked.ground_truth))
    known |= {repr(uri): _content(uri) for uri in (*read, config.whitening) if uri}
    return {name: _digest(value) for name, value in known.items()}


def _content(uri: str) -> str:
    try:
        return checksum.of_file(uri)
    except FileNotFoundError as error:
        raise UserError(f"no file {uri!r}") from error
    except OSError as error:
        raise UserError(f"cannot read {uri!r} ({files.reason(error)}); name another file") from error


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _warn_of_others(night: dict[str, Any], made_of: dict[str, str]) -> None:
    if changed := _differing(night.get("made_of", {}), made_of):
        log.warning(
            "%s changed since the night %s, whose result stands; measure what is there now with a later --date",
            " and ".join(changed),
            night["date"],
        )


def _run(config: NightlyConfig, date: str, model: str, past: History) -> dict[str, Any]:
    """The record of a new night."""
    manifests = dict.fromkeys(known.manifest for known in config.evaluations)
    collections = {manifest: collection.refreshed(config, model, manifest) for manifest in manifests}
    first, *others = collections.values()
    for other in others:  # a training run may have written its model anew since
        identity.require_equal(first.embedding, model, other.embedding, f"{model}, as it is now")
    unmet: list[str] = []
    figures = {}
    for measurement in config.evaluations:
        found = collections[measurement.manifest]
        folder, key = files.join(config.out, f"nights/{date}/{measurement.name}"), _key(measurement, found)
        baseline = _baseline(config.out, past, measurement.name, date)
        if not _carried(config.out, past.last, measurement.name, key, folder):
            _evaluate(measurement, found, folder, baseline and baseline[1])
        value = files.read_json(files.join(folder, METRICS))["map"]
        against = _compared(date, folder, baseline) if baseline else None
        unmet += gate.unmet(measurement, value, against)
        figures[measurement.name] = _figure(value, against, found) | {"key": key}
    counts = {
        name: sum(found.counts[name] for found in collections.values()) for name in ("images", "computed", "errors")
    }
    return {
        "date": date,
        "model": model,
        "accepted": not unmet,
        "unmet": unmet,
        "previous": past.last,
        **counts,
        "evaluations": figures,
    }


def _key(measurement: Measurement, found: Collection) -> str:
    """A sha256 of all that an evaluation depends on."""
    asked = {name: value for name, value in dataclasses.asdict(measurement).items() if name not in _GATES}
    contents = [checksum.of_file(uri) for uri in (measurement.manifest, measurement.ground_truth) if uri]
    return _digest([found.embedding.id, found.rows, asked, contents])


def _carried(out: str, last: str | None, name: str, key: str, folder: str) -> bool:
    """Whether the night `last` measured the same, whose evaluation then stands in `folder`, too."""
    record = files.join(out, f"nights/{last}/{NIGHT}")
    if last is None or not files.exists(record):
        return False
    if files.read_json(record)["evaluations"].get(name, {}).get("key") != key:
        return False
    log.info("%s: nothing has changed since %s", name, last)
    leftovers.sweep(folder)
    files.copy_folder(files.join(out, f"nights/{last}/{name}"), folder)
    return True


def _baseline(out: str, past: History, name: str, date: str) -> tuple[str, str] | None:
    """The last accepted night before `date` and the folder of its evaluation `name`; None where there is none."""
    row = past.baseline(name, date)
    return (row["date"], files.join(out, f"nights/{row['date']}/{name}")) if row else None


def _evaluate(measurement: Measurement, found: Collection, folder: str, baseline: str | None) -> None:
    """Evaluates into `folder`; the report compares with the evaluation in the folder `baseline`."""
    asked = {name: value for name, value in vars(measurement).items() if name not in _GATES}
    beside = files.join(baseline, METRICS) if baseline else None
    config = EvaluateConfig(descriptors=(found.descriptors,), out=folder, baseline=beside, **asked)
    measure(config, baselines.read(beside, config.protocol) if beside else None)  # the gates are held elsewhere


def _compared(date: str, folder: str, baseline: tuple[str, str]) -> Comparison:
    """The evaluation of the night `date` in `folder` against that of `baseline`, a night and its folder."""
    for where in (baseline[1], folder):
        output.whole(where)
    per_query = (tables.read(files.join(where, comparison.PER_QUERY)) for where in (baseline[1], folder))
    return comparison.compared(baseline[0], next(per_query), date, next(per_query))


def _figure(value: float, against: Comparison | None, found: Collection) -> dict[str, Any]:
    figure: dict[str, Any] = {"map": value, "embedding": found.embedding.id, "collection": found.folder, **found.counts}
    if against is not None:
        figure |= {"baseline": against.before, "queries": len(against.judged)}
        figure |= dataclasses.asdict(against.change) if against.change else {}
    return figure


def _record(config: NightlyConfig, night: dict[str, Any], past: History, uri: str) -> None:
    """Writes the history and, last, the record that ends the night; then lets go of what no night needs."""
    status = ACCEPTED if night["accepted"] else REFUSED
    columns = {field.name for field in dataclasses.fields(Row)}
    rows = []
    for name, figure in night["evaluations"].items():
        known = {key: value for key, value in figure.items() if key in columns}
        reason = "; ".join(text for text in night["unmet"] if text.startswith(f"{name}: ")) or None
        rows.append(Row(night["date"], name, status, **known, model=night["model"], reason=reason))
    past.put(night["date"], rows)
    files.write_json(uri, night)
    kept = {figure["collection"] for figure in night["evaluations"].values()}
    standing = (past.baseline(measurement.name, LATEST) for measurement in config.evaluations)
    kept |= {str(row["collection"]) for row in standing if row}
    for measurement in config.evaluations:
        collection.forget_others(config.out, measurement.manifest, kept)
