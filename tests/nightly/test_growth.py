"""Photos added since the last accepted night are no fall: both networks are measured on tonight's photos."""

import shutil

import pyarrow as pa
import pytest

from dim.errors import GateNotMet, UserError
from dim.evaluate.comparison import Comparison
from dim.evaluate.significance import MeanDifference
from dim.io import files, tables
from dim.nightly import kept_collections, measurement
from dim.nightly.config import Measurement
from dim.nightly.measurement import NightlyResult

GOOD, WORSE = "vgg16-gem", "vgg16-mac"
FAIR = "vgg16-spoc"  # finds most, so that photos of another product come in between


@pytest.fixture
def photos(shot):
    """Six labels of four photos each."""
    return shot(6, 4)


def recorded(tmp_path):
    return tables.read(str(tmp_path / "nightly" / "history.csv")).to_pylist()


@pytest.mark.slow
def test_six_nights_that_grow_by_a_product_are_accepted(night, photos, embedded, tmp_path):
    night("2020-01-01", model=FAIR)
    for day in range(2, 8):
        photos.add(10 + day, 4)
        done = night(f"2020-01-{day:02d}", model=FAIR, gates={"max_drop": 0.0})
        figure = done["evaluations"]["shelf"]
        assert done["accepted"] and done["computed"] == 4
        assert (figure["difference"], figure["low"], figure["high"], figure["p_value"]) == (0, 0, 0, 1)
    maps = [float(row["map"]) for row in recorded(tmp_path)]
    assert maps[-1] < maps[0] - 0.05  # which was taken for a fall of the network
    assert figure["note"] == (
        "the network is that of 2020-01-06: only photos or labels can have moved mAP, from "
        f"{maps[-2]:.4f} (44 photos) to {maps[-1]:.4f} (48 photos)"
    )


def test_a_corrected_label_is_no_fall_either(night, photos, embedded):
    night("2020-01-01", model=FAIR)
    photos.rows[0]["label"] = "5"
    photos.add(5, 0)
    assert night("2020-01-02", model=FAIR, gates={"max_drop": 0.0})["accepted"]


def test_an_unchanged_night_after_a_refused_one_is_accepted(night, photos, embedded):
    night("2020-01-01", model=FAIR)
    photos.add(20, 4)
    with pytest.raises(GateNotMet, match=r"below min-map 1\.0$"):
        night("2020-01-02", model=FAIR, gates={"min_map": 1.0})
    assert night("2020-01-03", model=FAIR, gates={"max_drop": 0.0})["accepted"]


def test_a_worse_network_on_a_grown_database_is_refused_by_what_it_does_there(night, photos, embedded, tmp_path):
    night("2020-01-01", model=GOOD)
    embedded()
    photos.add(20, 4)
    said = r"^shelf: mAP fell by 0\.\d+ from the network of 2020-01-01 to tonight's, both measured on "
    said += r"tonight's 28 queries, "
    with pytest.raises(GateNotMet, match=said) as refused:
        night("2020-01-02", model=WORSE)
    figure = refused.value.result["evaluations"]["shelf"]
    new = [row["image_id"] for row in photos.rows[-4:]]
    assert sorted(embedded()) == sorted([row["image_id"] for row in photos.rows] + new)  # by the baseline only the new
    shelf = tmp_path / "nightly" / "nights" / "2020-01-02" / "shelf"
    maps = [files.read_json(f"{folder}/metrics.json")["map"] for folder in (shelf, shelf / "baseline")]
    assert figure["difference"] == pytest.approx(maps[0] - maps[1])
    assert figure["queries"] == 28
    assert files.read_json(f"{shelf}/metrics.json")["against_baseline"]["difference"] == figure["difference"]
    again = {path.name for path in (shelf / "baseline").iterdir()}
    with pytest.raises(GateNotMet, match=said):
        night("2020-01-03", model=WORSE)  # nothing changed: both evaluations are carried over
    assert embedded() == []
    assert {path.name for path in (tmp_path / "nightly/nights/2020-01-03/shelf/baseline").iterdir()} == again


def test_a_better_network_on_a_grown_database_is_accepted(night, photos, embedded, tmp_path):
    night("2020-01-01", model=WORSE)
    for label in range(20, 26):
        photos.add(label, 4)
    done = night("2020-01-02", model=FAIR, gates={"max_drop": 0.0})
    assert done["accepted"] and done["evaluations"]["shelf"]["difference"] > 0.1
    assert night("2020-01-03", model=FAIR)["evaluations"]["shelf"]["baseline"] == "2020-01-02"


def test_a_manifest_of_another_name_is_measured_by_the_baselines_network_too(night, photos, embedded, tmp_path):
    night("2020-01-01", model=GOOD)
    renamed = tmp_path / "photos" / "renamed.csv"
    shutil.copy(photos.manifest, renamed)
    shelf = Measurement(name="shelf", manifest=str(renamed), split="test")
    with pytest.raises(GateNotMet, match="both measured on tonight's 24 queries"):
        night("2020-01-02", model=WORSE, evaluations=(shelf,))
    assert night("2020-01-03", model=GOOD, evaluations=(shelf,))["computed"] == 0  # the baseline's, which was kept


def test_a_network_that_was_not_kept_is_no_ground_to_accept(night, photos, embedded, tmp_path):
    night("2020-01-01", model=GOOD)
    (note,) = (tmp_path / "nightly").rglob("network.json")
    note.unlink()
    said = r"the network of 2020-01-01, the last .* photos \(no '.*network.json': it was deleted, .*; look .* --accept$"
    with pytest.raises(GateNotMet, match=said):
        night("2020-01-02", model=FAIR)
    assert night("2020-01-02", model=FAIR, accept=True)["accepted"]


def test_too_few_objects_are_said_to_be_too_few(night, shot, embedded):
    few = shot(4, 6, "few")
    asked = Measurement(name="shelf", manifest=few.manifest, split="test")
    night("2020-01-01", model=GOOD, evaluations=(asked,))
    done = night("2020-01-02", model=WORSE, evaluations=(asked,))
    assert done["accepted"]
    said = "significance 0.05 can refuse no fall: 4 objects give no p-value below 0.0625"
    assert done["evaluations"]["shelf"]["note"] == said


@pytest.mark.slow
def test_a_model_that_was_trained_anew_in_place_is_held_against_what_it_was(
    night, photos, embedded, tmp_path, write_model
):
    model = tmp_path / "model"
    write_model(model, "gem", 1)
    night("2020-01-01", model=str(model), weights=None)
    embedded()
    photos.add(20, 4)
    write_model(model, "mac", 2)
    with pytest.raises(GateNotMet, match=r"mAP fell by .* both measured on tonight's 28 queries, "):
        night("2020-01-02", model=str(model), weights=None)
    assert len(embedded()) == 28 + 4
    write_model(model, "gem", 1)
    assert night("2020-01-03", model=str(model), weights=None)["computed"] == 0


@pytest.mark.slow
def test_a_model_that_a_killed_night_half_kept_is_kept_anew(night, photos, embedded, tmp_path, write_model):
    model = tmp_path / "model"
    write_model(model, "gem", 1)
    night("2020-01-01", model=str(model), weights=None)
    (note,) = (tmp_path / "nightly").rglob("network.json")
    kept = {path: path.read_bytes() for path in (*note.parent.glob("model/*"), note)}
    assert len(kept) == 3
    note.unlink()
    (note.parent / "model" / "model.weights.h5").write_bytes(b"of another")
    (note.parent / "model" / "model.json.4194304.tmp").write_text("half")
    night("2020-01-02", model=str(model), weights=None)
    assert {path: path.read_bytes() for path in (*note.parent.glob("model/*"), note)} == kept


def test_a_model_that_changes_while_it_is_kept_makes_no_night(night, embedded, tmp_path, monkeypatch, write_model):
    model = tmp_path / "model"
    write_model(model, "gem", 1)
    keep = kept_collections.keep_network

    def late(*asked):
        write_model(model, "gem", 2)
        keep(*asked)

    monkeypatch.setattr(kept_collections, "keep_network", late)
    with pytest.raises(UserError, match="were made by different embeddings: weights"):
        night("2020-01-01", model=str(model), weights=None)
    monkeypatch.setattr(kept_collections, "keep_network", keep)
    write_model(model, "gem", 1)
    assert night("2020-01-01", model=str(model), weights=None)["accepted"]


def test_the_least_of_several_p_values_counts_as_often_as_there_are_tests():
    # Holm's own procedure, step by step: the least is held against 0.05 / 4, the next against 0.05 / 3, …
    found = measurement.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert measurement.holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert measurement.holm({}) == {}


def test_one_of_several_evaluations_is_not_refused_for_what_one_of_many_shows_by_chance():
    def of(p_value, other="other"):
        table = pa.table({"query_id": ["a"], "difference": [-0.1]})
        against = Comparison("2020-01-01", "2020-01-02", table, MeanDifference(-0.1, -0.2, -0.01, p_value, 20))
        return NightlyResult(0.5, None, "", "2020-01-01", other, against)

    asked = [Measurement(name=name, manifest="m") for name in "abc"]
    least = dict(zip("abc", map(of, (0.06, 0.5, 0.9)), strict=True))
    assert measurement.unmet_gates(asked, least) == []
    (said,) = measurement.unmet_gates(asked[:1], least)
    assert "one-sided p 0.0300 < significance 0.05" in said
    (said_of_two,) = measurement.unmet_gates(asked[:2], {"a": of(0.04), "b": of(0.5)})
    assert "more than chance explains (one-sided p over 2 evaluations 0.0400 < significance 0.05; " in said_of_two
    same = least | {"b": of(1.0, None), "c": of(1.0, None)}  # the networks of these are the baseline's: no tests
    assert measurement.unmet_gates(asked, same) == [said]
