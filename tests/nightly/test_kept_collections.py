"""Collections: which are kept from night to night, found again, and deleted."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from dim.errors import GateNotMet, JobFailed
from dim.extract import own_process, store
from dim.io import files
from dim.nightly import job, kept_collections
from dim.nightly.config import Measurement

GOOD, FAIR, WORSE = "vgg16-gem", "vgg16-spoc", "vgg16-mac"


def collections(folder):
    """The collections in `folder`, by manifest and embedding."""
    return sorted(path.relative_to(folder / "collections") for path in folder.glob("collections/*/*"))


@pytest.mark.slow
def test_the_baselines_network_is_found_where_the_folder_has_moved(night, embedded, tmp_path):
    night("2020-01-01", model=GOOD)
    moved = (tmp_path / "nightly").rename(tmp_path / "moved too")
    for date, out in (("2020-01-02", str(moved)), ("2020-01-03", f"{moved}/"), ("2020-01-04", moved.as_uri())):
        said = r"^shelf: mAP fell by .* from the network of 2020-01-01 to tonight's, both"
        with pytest.raises(GateNotMet, match=said):
            night(date, model=WORSE, out=out)
    assert len(collections(moved)) == 2


def test_a_baseline_that_cannot_be_measured_is_kept_although_the_folder_has_moved(night, embedded, tmp_path):
    night("2020-01-01", model=GOOD)
    moved = (tmp_path / "nightly").rename(tmp_path / "moved")
    (standing,) = collections(moved)
    (note,) = moved.rglob("network.json")
    note.unlink()
    with pytest.raises(GateNotMet, match="can't be measured on tonight's photos"):
        night("2020-01-02", model=WORSE, out=str(moved))
    assert standing in collections(moved)


@pytest.mark.slow
def test_collections_of_manifests_that_no_night_needs_go(night, photos, embedded, tmp_path):
    for day in range(1, 5):
        dated = tmp_path / "photos" / f"of-{day}.csv"
        shutil.copy(photos.manifest, dated)
        night(f"2020-01-0{day}", evaluations=(Measurement(name="shelf", manifest=str(dated), split="test"),))
    (left,) = collections(tmp_path / "nightly")
    assert str(left).startswith("of-4-")
    assert [path.name for path in (tmp_path / "nightly" / "collections").iterdir()] == [left.parent.name]


@pytest.mark.slow
def test_a_network_that_was_half_deleted_is_kept_anew(night, embedded, tmp_path, monkeypatch, write_model):
    model, out = tmp_path / "model", tmp_path / "nightly"
    write_model(model, "gem", 1)
    night("2020-01-01", model=str(model), weights=None)

    whole = files.delete_folder

    def killed(folder):
        if not Path(f"{folder}/model").exists():
            whole(folder)  # a folder of an index, for example
            return
        shutil.rmtree(f"{folder}/model")
        raise JobFailed("it was killed")

    with monkeypatch.context() as patched, pytest.raises(JobFailed):
        patched.setattr(files, "delete_folder", killed)
        night("2020-01-02", model=FAIR, accept=True)
        night("2020-01-03", model=FAIR)
    night("2020-01-04", model=str(model), weights=None, accept=True)
    with pytest.raises(GateNotMet, match=r"from the network of 2020-01-04 to tonight's, both measured on tonight's"):
        night("2020-01-05", model=WORSE)
    assert len(list(out.rglob("model.weights.h5"))) == 1


def test_an_evaluation_that_is_left_out_for_a_night_keeps_its_baseline(night, shot, embedded, tmp_path):
    rack = Measurement(name="rack", manifest=shot(6, 4, "others").manifest, split="test")
    night("2020-01-01", model=GOOD, evaluations=(rack,))
    night("2020-01-02", model=GOOD)
    assert len(collections(tmp_path / "nightly")) == 2
    with pytest.raises(GateNotMet, match=r"^rack: mAP fell by .* from the network of 2020-01-01 to tonight's, both"):
        night("2020-01-03", model=WORSE, evaluations=(rack,))


def test_a_night_that_was_killed_before_its_record_follows_the_same_night_as_before(night, embedded, monkeypatch):
    night("2020-01-01")

    def full(uri, _):
        raise JobFailed(f"cannot write {uri!r}")

    with monkeypatch.context() as patched, pytest.raises(JobFailed):
        patched.setattr(
            job.nightly_report, "write", full
        )  # the history has the night by then, and those that were missed
        night("2020-01-04")
    assert night("2020-01-04")["previous"] == "2020-01-01"


def test_a_network_that_was_not_kept_is_no_reason_where_no_fall_is_refused(night, embedded, tmp_path):
    gates = {"min_map": 0.1, "significance": 0.0}
    night("2020-01-01", model=GOOD, gates=gates)
    (note,) = (tmp_path / "nightly").rglob("network.json")
    note.unlink()
    done = night("2020-01-02", model=FAIR, gates=gates)
    assert done["accepted"]
    said = "the network of 2020-01-01, the last accepted night, can't be measured on tonight's photos (no "
    assert done["evaluations"]["shelf"]["note"].startswith(said)


def test_an_evaluation_may_be_called_baseline(night, photos, embedded, tmp_path):
    asked = Measurement(name="baseline", manifest=photos.manifest, split="test")
    night("2020-01-01", evaluations=(asked,))
    assert files.exists(str(tmp_path / "nightly/nights/2020-01-01/baseline/report.html"))


def test_photos_that_only_one_network_has_are_said_to_be_a_difference(night, photos, embedded, monkeypatch):
    night("2020-01-01", model=GOOD)
    run = own_process.run

    def failing(*asked):
        for table in run(*asked):
            rows = table.to_pylist()
            if rows[0]["image_id"] == photos.rows[0]["image_id"]:
                rows[0] |= {"descriptor": None, "status": store.ERROR, "error": "the store did not answer"}
            yield pa.Table.from_pylist(rows, schema=table.schema)

    monkeypatch.setattr(own_process, "run", failing)
    done = night("2020-01-02", model=FAIR, gates={"significance": 0.0})
    assert done["evaluations"]["shelf"]["note"] == (
        "photos without a descriptor are never found: 1 with tonight's network, 0 with the one of 2020-01-01; part of "
        "the change may be due to that"
    )


@pytest.mark.slow
def test_two_evaluations_of_one_manifest_ask_for_its_photos_once_a_network(night, photos, embedded, monkeypatch):
    pair = tuple(Measurement(name=name, manifest=photos.manifest, significance=0.0) for name in ("all", "again"))
    night("2020-01-01", model=GOOD, evaluations=pair)
    extract, asked = kept_collections.extract, []
    monkeypatch.setattr(kept_collections, "extract", lambda *given: asked.append(given) or extract(*given))
    figures = night("2020-01-02", model=FAIR, evaluations=pair)["evaluations"]
    assert len(asked) == 2
    assert figures["all"]["baseline_collection"] == figures["again"]["baseline_collection"]
    assert figures["all"]["difference"] == figures["again"]["difference"] != 0
