"""Successive nights: only new photos are extracted, a worse network is refused, and each date is run once."""

import datetime
import re
import shutil

import pytest

from dim.errors import GateNotMet, JobFailed, UserError
from dim.io import files, tables
from dim.nightly import kept_collections, measurement
from dim.nightly.config import Measurement
from dim.nightly.history import NightlyHistory, NightRow

WORSE = "vgg16-mac"


def history(tmp_path):
    return tables.read(str(tmp_path / "nightly" / "history.csv")).to_pylist()


def statuses(tmp_path):
    return [(row["date"], row["status"]) for row in history(tmp_path)]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_new_photos_then_an_unchanged_night_then_a_worse_model(night, photos, embedded, tmp_path):
    first = night("2020-01-01")
    assert (first["accepted"], first["images"], first["computed"]) == (True, 48, 48)
    assert sorted(embedded()) == sorted(row["image_id"] for row in photos.rows)

    photos.add(12, 5)
    second = night("2020-01-02")
    assert (second["accepted"], second["images"], second["computed"]) == (True, 53, 5)
    assert sorted(embedded()) == [row["image_id"] for row in photos.rows[-5:]]
    figure = second["evaluations"]["shelf"]
    assert (figure["baseline"], figure["queries"]) == ("2020-01-01", 53)

    collection = tmp_path / "nightly" / "collections"
    before = {path: path.stat().st_mtime_ns for path in collection.rglob("knn.index")}
    third = night("2020-01-03")
    assert (third["accepted"], third["computed"], embedded()) == (True, 0, [])
    assert third["evaluations"]["shelf"]["difference"] == 0
    assert {path: path.stat().st_mtime_ns for path in collection.rglob("knn.index")} == before

    with pytest.raises(GateNotMet, match=r"shelf: mAP fell by 0\.\d+ .*, more than chance explains") as refused:
        night("2020-01-04", model=WORSE)
    assert refused.value.result["accepted"] is False
    back = night("2020-01-05")
    assert (back["accepted"], back["computed"], back["evaluations"]["shelf"]["baseline"]) == (True, 0, "2020-01-03")
    assert [status for _, status in statuses(tmp_path)] == ["accepted", "accepted", "accepted", "refused", "accepted"]
    # What the refused model made is let go of once the next night is done.
    assert len(list(collection.glob("*/*"))) == 1


def test_a_night_leaves_metrics_queries_and_report_and_an_index_that_search_reads(night, embedded, tmp_path):
    done = night("2020-01-01")
    folder = tmp_path / "nightly" / "nights" / "2020-01-01" / "shelf"
    assert files.read_json(str(folder / "metrics.json"))["map"] == done["evaluations"]["shelf"]["map"]
    assert (folder / "per_query.parquet").exists()
    assert (folder / "report.html").exists()
    (row,) = history(tmp_path)
    assert float(row["map"]) == done["evaluations"]["shelf"]["map"]
    assert files.read_json(f"{row['collection']}/index/run.json")["status"] == "done"


def test_the_same_date_twice_is_one_night(night, photos, embedded, tmp_path):
    once = night("2020-01-01")
    before = contents(tmp_path / "nightly" / "nights"), history(tmp_path)
    embedded()
    photos.add(20, 3)
    assert night("2020-01-01") == once
    assert (contents(tmp_path / "nightly" / "nights"), history(tmp_path)) == before
    assert embedded() == []


def test_what_changed_since_a_date_was_run_is_named(night, photos, embedded, tmp_path, caplog):
    once = night("2020-01-01")
    assert night("2020-01-01") == once and "changed since" not in caplog.text
    photos.add(20, 3)
    assert night("2020-01-01", model=WORSE, gates={"min_map": 0.1}) == once
    (line,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert line == (
        f"'{photos.manifest}' and the evaluation 'shelf' and the model changed since the night 2020-01-01 was "
        "run. Its result stays as it was; use a later --date to measure again"
    )


def test_a_table_that_changes_while_the_night_runs_makes_no_night(night, photos, embedded, tmp_path, monkeypatch):
    measure = measurement.measure
    monkeypatch.setattr(measurement, "measure", lambda *asked: (measure(*asked), photos.add(20, 3)))
    with pytest.raises(JobFailed, match=r"photos.csv' changed while the night ran; run the same command again$"):
        night("2020-01-01")
    assert not (tmp_path / "nightly" / "history.csv").exists()
    monkeypatch.setattr(measurement, "measure", measure)
    assert night("2020-01-01")["images"] == 51


def test_a_refused_date_stays_refused_until_a_person_accepts_it(night, embedded, tmp_path):
    night("2020-01-01")
    for _ in range(2):
        with pytest.raises(GateNotMet):
            night("2020-01-02", model=WORSE)
    assert night("2020-01-02", model=WORSE, accept=True)["accepted"]
    assert statuses(tmp_path) == [("2020-01-01", "accepted"), ("2020-01-02", "accepted")]
    assert history(tmp_path)[1]["reason"].startswith("shelf: mAP fell by")
    assert night("2020-01-03", model=WORSE)["evaluations"]["shelf"]["baseline"] == "2020-01-02"


@pytest.mark.slow
def test_after_missed_nights_what_was_added_since_counts_once_and_the_gap_shows(night, photos, embedded, tmp_path):
    night("2020-01-01")
    embedded()
    photos.add(20, 2)
    photos.add(21, 3)
    done = night("2020-01-04")
    assert done["computed"] == 5
    assert sorted(embedded()) == sorted(row["image_id"] for row in photos.rows[-5:])
    assert statuses(tmp_path) == [
        ("2020-01-01", "accepted"),
        ("2020-01-02", "missed"),
        ("2020-01-03", "missed"),
        ("2020-01-04", "accepted"),
    ]
    assert history(tmp_path)[1]["map"] is None
    assert night("2020-01-05")["computed"] == 0


@pytest.mark.slow
def test_a_night_that_died_before_its_end_is_run_again_against_the_same_baseline(night, embedded, tmp_path):
    night("2020-01-01")
    once = night("2020-01-02")
    (tmp_path / "nightly" / "nights" / "2020-01-02" / "night.json").unlink()
    again = night("2020-01-02")
    assert again["accepted"]
    assert again["evaluations"]["shelf"]["baseline"] == once["evaluations"]["shelf"]["baseline"] == "2020-01-01"
    assert statuses(tmp_path) == [("2020-01-01", "accepted"), ("2020-01-02", "accepted")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ({"min_map": 1.0, "significance": 0.0}, r"^shelf: mAP 0\.\d+ is below min-map 1\.0$"),
        ({"max_drop": 0.01, "significance": 0.0}, r"^shelf: mAP fell by .* more than max-drop 0\.01$"),
        ({"significance": 0.01}, r"^shelf: mAP fell by .* significance 0\.01; 95 % interval"),
    ],
)
def test_each_gate_refuses_by_itself(night, embedded, gates, said):
    night("2020-01-01")
    with pytest.raises(GateNotMet, match=said):
        night("2020-01-02", model=WORSE, gates=gates)


def test_a_worse_night_passes_where_no_gate_is_set(night, embedded):
    night("2020-01-01")
    assert night("2020-01-02", model=WORSE, gates={"significance": 0.0})["accepted"]


def test_a_model_may_be_the_folder_of_a_training_run(night, embedded, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    files.write_json(str(run / "run.json"), {"job": "train"})
    with pytest.raises(UserError, match="has not finished"):
        night("2020-01-01", model=str(run))
    assert not (tmp_path / "nightly").exists()


@pytest.mark.parametrize("date", ["tonight", "2020-02-30"])
def test_a_date_that_is_none_is_refused(night, date):
    with pytest.raises(UserError, match="is not a date such as"):
        night(date)


def days_from_today(count):
    return str(datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=count))


@pytest.mark.parametrize("accept", [False, True])
def test_a_date_that_is_yet_to_come_is_refused_and_locks_nothing(night, embedded, tmp_path, accept):
    with pytest.raises(
        UserError, match=rf"--date 2999-01-01 is in the future .*; use {days_from_today(1)} at the latest$"
    ):
        night("2999-01-01", accept=accept)
    with pytest.raises(UserError, match="is in the future"):
        night(days_from_today(2))
    assert not (tmp_path / "nightly").exists()
    night(days_from_today(-1))
    assert night(days_from_today(1))["accepted"]  # it is tomorrow somewhere


def test_a_history_that_a_future_date_has_locked_says_how_to_open_it(night, embedded, tmp_path):
    night("2020-01-01")
    out = tmp_path / "nightly"
    record = files.read_json(str(out / "nights" / "2020-01-01" / "night.json"))
    (row,) = history(tmp_path)
    NightlyHistory(str(out)).put("2999-01-01", [NightRow(**row | {"date": "2999-01-01"})])  # as an earlier dim did
    files.make_folder(str(out / "nights" / "2999-01-01"))
    files.write_json(str(out / "nights" / "2999-01-01" / "night.json"), record | {"date": "2999-01-01"})
    said = (
        r"history\.csv' has the night 2999-01-01, which is in the future, .*; delete its rows after .*, and the folders"
    )
    with pytest.raises(UserError, match=said):
        night("2020-01-02")
    lines = (out / "history.csv").read_text().splitlines(keepends=True)
    future = {line for line in lines if re.match(r'"?2[1-9]', line)}  # the nights missed before it stand there, too
    assert len(future) > 300
    (out / "history.csv").write_text("".join(line for line in lines if line not in future))
    shutil.rmtree(out / "nights" / "2999-01-01")
    assert night("2020-01-02")["evaluations"]["shelf"]["baseline"] == "2020-01-01"


def test_a_date_before_the_last_night_is_refused(night, embedded):
    night("2020-01-02")
    with pytest.raises(UserError, match=r"2020-01-01 is before 2020-01-02, the last night of"):
        night("2020-01-01")


@pytest.mark.slow
def test_a_model_that_changes_between_two_collections(night, photos, embedded, tmp_path, monkeypatch):
    other = tmp_path / "photos" / "more.csv"
    shutil.copy(photos.manifest, other)
    measured = tuple(
        Measurement(name=name, manifest=manifest, split="test")
        for name, manifest in (("shelf", photos.manifest), ("more", str(other)))
    )
    refresh = kept_collections.refresh

    def changing(config, model, manifest):  # what a training run writes meanwhile
        return refresh(config, WORSE if manifest == str(other) else model, manifest)

    with monkeypatch.context() as patch:
        patch.setattr(kept_collections, "refresh", changing)
        with pytest.raises(UserError, match=r"'vgg16-gem' and 'vgg16-gem, as it is now' were made by different"):
            night("2020-01-01", evaluations=measured)
    assert not (tmp_path / "nightly" / "nights" / "2020-01-01" / "night.json").exists()
    assert night("2020-01-01", evaluations=measured)["accepted"]


def test_an_index_that_lost_a_file_is_made_again(night, embedded, tmp_path):
    night("2020-01-01")
    (ids,) = tmp_path.glob("nightly/collections/*/*/index/ids.parquet")
    before = ids.read_bytes()
    ids.unlink()
    night("2020-01-02")
    assert ids.read_bytes() == before


@pytest.mark.slow
def test_what_a_killed_night_left_is_swept(night, embedded, tmp_path):
    folder = tmp_path / "nightly" / "nights" / "2020-01-01"
    folder.mkdir(parents=True)
    for path in (folder / "night.json.4194304.tmp", tmp_path / "nightly" / "history.csv.4194304.tmp"):
        path.write_text("half")
    night("2020-01-01")
    assert not list(tmp_path.rglob("*.tmp"))
