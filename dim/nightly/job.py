"""The nightly job: updates the collections, measures, compares with the last accepted night, and records the night.

Start at `nightly`. Each date is run once. A second run for the same date returns the recorded result.
"""

import dataclasses
import datetime
import logging
from typing import Any

from dim.app import cluster, output_folder
from dim.errors import GateNotMet, JobFailed, UserError
from dim.extract import identity
from dim.io import files, local_copies, seal
from dim.model import spec
from dim.nightly import history, kept_collections, measurement
from dim.nightly.config import NightlyConfig
from dim.nightly.history import ACCEPTED, REFUSED, NightlyHistory, NightRow
from dim.nightly.measurement import NIGHT, digest
from dim.report import nightly as nightly_report

log = logging.getLogger(__name__)

_SETTINGS = ("scales", "scales_mean", "scaled_decode", "precision", "factory")  # settings that a network's spec lacks


def nightly(config: NightlyConfig) -> dict[str, Any]:
    """Runs a night, or reads its record if the date was run before. Returns the contents of night.json.

    Raises:
        UserError: the settings or the inputs are wrong.
        JobFailed: an input changed while the night ran.
        GateNotMet: the night is refused. All results have been written. The baseline remains the same night as before.
    """
    date = _date(config.date)
    model = _model(config.model)
    inputs = {"model": model} | {f"manifest of {known.name}": known.manifest for known in config.evaluations}
    made_of = _made_of(config, model)
    with output_folder.opened(config.out, "nightly", config, inputs) as out:
        past = NightlyHistory(config.out)
        # The seal doesn't cover the nights' files: each night adds some, and a person may correct the history.
        record = files.join(config.out, f"nights/{date}/{NIGHT}")
        local_copies.sweep(files.parent(record))
        if files.exists(record):
            log.info("the night %s was run before", date)
            night: dict[str, Any] = files.read_json(record)
            _warn_of_changes(night, made_of)
        else:
            past.require_next(date)
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
    today = datetime.datetime.now(datetime.UTC).date()
    if wanted is None:
        return today.isoformat()
    try:
        date = datetime.date.fromisoformat(wanted)
    except ValueError as error:
        raise UserError(f"--date {wanted!r} is not a date such as {today}; write YYYY-MM-DD") from error
    if date > (latest := history.latest(today)):
        raise UserError(
            f"--date {wanted} is in the future (today is {today} in UTC), and no earlier date could follow it; use "
            f"{latest} at the latest"
        )
    return date.isoformat()


def _model(name: str) -> str:
    """The model `name`, or the model of the training run in the folder `name`."""
    record = output_folder.record_of(name)
    if record is None or record["job"] != "train":
        return name
    trained = files.join(name, "model")
    if not files.exists(files.join(trained, spec.SPEC_FILE)):
        raise UserError(f"the training run in {name!r} has not finished; finish it, or name another model")
    return trained


def _made_of(config: NightlyConfig, model: str) -> dict[str, str]:
    """Maps each input of a night to a sha256. The keys name the inputs as messages do."""
    source = config.source(model)
    inputs: dict[str, Any] = {"the model": [source.fingerprint(), dataclasses.asdict(source.spec)]}
    inputs["the settings"] = {name: getattr(config, name) for name in _SETTINGS}
    inputs |= {f"the evaluation {asked.name!r}": dataclasses.asdict(asked) for asked in config.evaluations}
    read = (uri for asked in config.evaluations for uri in (asked.manifest, asked.ground_truth))
    inputs |= {repr(uri): _content(uri) for uri in (*read, config.whitening) if uri}
    return {name: digest(value) for name, value in inputs.items()}


def _content(uri: str) -> str:
    try:
        return seal.sha256_of_file(uri)
    except FileNotFoundError as error:
        raise UserError(f"no file {uri!r}") from error
    except OSError as error:
        raise UserError(f"cannot read {uri!r} ({files.reason(error)}); name another file") from error


def _differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _warn_of_changes(night: dict[str, Any], made_of: dict[str, str]) -> None:
    if changed := _differing(night.get("made_of", {}), made_of):
        log.warning(
            "%s changed since the night %s was run. Its result stays as it was; use a later --date to measure again",
            " and ".join(changed),
            night["date"],
        )


def _run(config: NightlyConfig, date: str, model: str, past: NightlyHistory) -> dict[str, Any]:
    """Runs a new night. Returns the contents of night.json, but for `made_of`."""
    manifests = dict.fromkeys(known.manifest for known in config.evaluations)
    collections = {manifest: kept_collections.refresh(config, model, manifest) for manifest in manifests}
    first, *others = collections.values()
    for other in others:  # a training run may have replaced its model after the first extraction
        identity.require_equal(first.embedding, model, other.embedding, f"{model}, as it is now")
    extracted: dict[tuple[str, str], kept_collections.Collection] = {}
    results = {
        asked.name: measurement.measure_evaluation(
            config, date, asked, collections[asked.manifest], past, extracted=extracted
        )
        for asked in config.evaluations
    }
    unmet = measurement.unmet_gates(config.evaluations, results)
    counts = {
        name: sum(found.counts[name] for found in collections.values()) for name in ("images", "computed", "errors")
    }
    return {
        "date": date,
        "model": model,
        "accepted": not unmet,
        "unmet": unmet,
        "previous": past.before(date),
        **counts,
        "evaluations": {name: found.as_json() for name, found in results.items()},
    }


def _record(config: NightlyConfig, night: dict[str, Any], past: NightlyHistory, uri: str) -> None:
    """Writes the history, then the record, which completes the night. Deletes collections no longer needed."""
    status = ACCEPTED if night["accepted"] else REFUSED
    columns = {field.name for field in dataclasses.fields(NightRow)}
    rows = []
    for name, result in night["evaluations"].items():
        cells = {key: value for key, value in result.items() if key in columns}
        reason = "; ".join(text for text in night["unmet"] if text.startswith(f"{name}: ")) or None
        rows.append(NightRow(night["date"], name, status, **cells, model=night["model"], reason=reason))
    past.put(night["date"], rows)
    nightly_report.write(config.out, past.rows)
    history.write_metrics_file(config.out, past.rows)
    log.info("look at %s for all nights", files.join(config.out, nightly_report.FILE))
    files.write_json(uri, night)
    results = night["evaluations"].values()
    needed = [result[key] for result in results for key in ("collection", "baseline_collection") if key in result]
    latest = datetime.date.max.isoformat()
    baselines = (past.baseline(name, latest) for name in {str(row["evaluation"]) for row in past.rows})
    needed += [str(row["collection"]) for row in baselines if row]
    kept_collections.delete_others(
        config.out, {kept_collections.current_folder(config.out, folder) for folder in needed}
    )
