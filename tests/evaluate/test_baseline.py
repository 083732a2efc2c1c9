"""An evaluation compared with a baseline, on the queries that both have."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from dim.errors import GateNotMet, UserError
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.nightly.config import Measurement

IDS = [f"p{number:02d}" for number in range(24)]
LABELS = [f"l{number % 6}" for number in range(24)]
GOOD = np.eye(6)[[number % 6 for number in range(24)]] + 0.3 * np.random.default_rng(0).standard_normal((24, 6))
BAD = np.random.default_rng(1).standard_normal((24, 6))


@pytest.fixture
def run(write_manifest, write_descriptors, tmp_path):
    """Evaluates the rows `rows`, by default all, into the folder `name`; `against` is the folder of another."""

    def run(name, vectors=GOOD, *, rows=range(24), against=None, labels=LABELS, **changes):
        rows = list(rows)
        manifest = write_manifest(f"{name}.csv", image_id=[IDS[r] for r in rows], label=[labels[r] for r in rows])
        folder = write_descriptors([IDS[r] for r in rows], vectors[rows], name=f"{name}-d")
        baseline = f"{tmp_path}/{against}/metrics.json" if against else None
        out = str(tmp_path / name)
        return evaluate(
            EvaluateConfig(
                manifest=manifest, descriptors=(folder,), out=out, baseline=baseline, report=False, **changes
            )
        )

    return run


def aps(tmp_path, name):
    return {row["query_id"]: row["ap"] for row in pq.read_table(tmp_path / name / "per_query.parquet").to_pylist()}


def test_a_baseline_without_a_common_query_is_refused_and_nothing_is_written(run, tmp_path):
    run("before", rows=range(12))
    with pytest.raises(
        UserError, match=r"before/metrics.json' and '.*after.csv' have no query in common; name"
    ) as error:
        run("after", rows=range(12, 24), against="before")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "after").exists()


def test_queries_that_are_measured_in_one_run_only_are_not_common(run, tmp_path):
    run("before", labels=[*LABELS[:12], *IDS[12:]])  # the last twelve have no positive
    with pytest.raises(UserError, match="have no query in common"):
        run("after", labels=[*IDS[:12], *LABELS[12:]], against="before")
    assert not (tmp_path / "after").exists()


def test_the_gate_is_on_the_queries_of_both(run, tmp_path, caplog):
    run("before", rows=range(18))
    # On the common twelve to eighteen mAP falls; six easy queries are new and would hide it.
    vectors = np.concatenate([BAD[:18], 9 * np.eye(6)[:1].repeat(6, axis=0)])
    labels = [*LABELS[:18], *["new"] * 6]
    with pytest.raises(GateNotMet, match=r"mAP is 0\.\d{4} lower on the 18 queries in common with .*--max-drop 0\.0$"):
        run("after", vectors, labels=labels, against="before")
    before, after = aps(tmp_path, "before"), aps(tmp_path, "after")
    fall = np.mean([before[name] - after[name] for name in before])
    found = run("again", vectors, labels=labels, against="before", max_drop=fall + 1e-9)
    assert found["against_baseline"]["difference"] == pytest.approx(-fall)
    with pytest.raises(GateNotMet):
        run("once more", vectors, labels=labels, against="before", max_drop=fall - 1e-9)
    assert "before/metrics.json is another evaluation: n_queries 18, not 24; n_database 18, not 24; " in caplog.text
    told = "mAP is compared on the queries in common. AP depends on the photos searched, whatever the "
    assert told in caplog.text


def test_a_rise_on_the_common_queries_passes_although_new_ones_are_hard(run):
    before = run("before", BAD, rows=range(12))
    vectors = np.concatenate([GOOD[:12], BAD[12:]])
    labels = [*LABELS[:12], *(f"m{number % 6}" for number in range(12))]
    found = run("after", vectors, labels=labels, against="before")
    assert found["against_baseline"]["difference"] > 0
    assert before["n_queries"] == 12


def test_a_metrics_file_alone_is_compared_as_a_whole_and_what_differs_is_said(run, tmp_path, caplog):
    run("before", rows=range(18))
    (tmp_path / "before" / "per_query.parquet").unlink()
    with pytest.raises(GateNotMet, match=r"mAP 0\.\d{4} is 0\.\d{4} below the 0\.\d{4} of .*before/metrics.json"):
        run("after", BAD, against="before")
    assert "n_queries 18, not 24; n_database 18, not 24; mAP is compared on all its queries" in caplog.text
    caplog.clear()
    run("same", rows=range(18), against="before")
    assert "another evaluation" not in caplog.text


def test_a_run_over_its_own_baseline_is_held_against_what_was_there(run):
    run("here")
    with pytest.raises(GateNotMet, match="lower on the 24 queries in common"):
        run("here", BAD, against="here")


@pytest.mark.parametrize("value", [-0.1, 1.0, 7.0, math.nan, math.inf])
def test_a_drop_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=r"--max-drop must be at least 0 and below 1, not"):
        EvaluateConfig(manifest="m", out="o", baseline="b", max_drop=value)


@pytest.mark.parametrize("name", ["min_map", "max_drop", "significance"])
@pytest.mark.parametrize("value", [-0.1, 1.01, 5, 50, math.inf, math.nan])
def test_a_gate_of_the_night_that_is_none_is_refused(name, value):
    flag = name.replace("_", "-")
    with pytest.raises(UserError, match=rf"^{flag} of 'shelf' must be from 0 to 1, not {value}$"):
        Measurement(name="shelf", manifest="m", **{name: value})
