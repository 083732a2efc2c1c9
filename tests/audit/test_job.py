"""The audit of a set in which what is wrong is known: the list, its files, and its page."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dim.app import tasks
from dim.audit import photos, suspects
from dim.audit.config import AuditConfig
from dim.audit.job import audit
from dim.audit.suspects import SCHEMA
from dim.errors import UserError

LABELS, EACH = 12, 4
IDS = [f"label {label:02d}/{number}" for label in range(LABELS) for number in range(EACH)]


@pytest.fixture
def place(tmp_path, write_manifest, write_descriptors):
    """Photos of twelve labels, of which 05/1 is labelled 09, 03/2 resembles nothing, 07/0 has a twin in 08 and another
    in split train, and one has no label.
    """
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(LABELS), EACH)
    vectors = generator.standard_normal((LABELS, 32))[labels] + 0.5 * generator.standard_normal((len(labels), 32))
    names = [f"label {label:02d}" for label in labels]
    splits = ["test"] * len(IDS)
    names[IDS.index("label 05/1")] = "label 09"
    names[IDS.index("label 11/3")] = None
    vectors[IDS.index("label 03/2")] = -vectors[IDS.index("label 03/1")]
    vectors[IDS.index("label 08/0")] = vectors[IDS.index("label 07/0")]
    vectors[IDS.index("label 07/3")] = vectors[IDS.index("label 07/2")] + 0.01
    splits[IDS.index("label 07/3")] = "train"
    (tmp_path / "photos").mkdir()
    for number in range(len(IDS)):
        colours = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(colours).save(tmp_path / "photos" / f"{number}.png")
    paths = [f"photos/{number}.png" for number in range(len(IDS))]
    manifest = write_manifest(image_id=IDS, label=names, split=splits, path=paths)
    folder = write_descriptors(IDS, vectors, errors=["label 01/0"])
    return AuditConfig(manifest=manifest, descriptors=folder, out=str(tmp_path / "out"))


def test_labels_that_a_spreadsheet_would_run(tmp_path, write_manifest, write_descriptors):
    vectors = np.random.default_rng(0).standard_normal((6, 8))
    vectors[3] = vectors[0]
    labels = ["=1+1"] * 3 + ["@SUM(1)"] * 3
    manifest = write_manifest(image_id=[f"={name}" for name in "abcdef"], label=labels, path=[*"abcdef"])
    folder = write_descriptors([f"={name}" for name in "abcdef"], vectors)
    audit(AuditConfig(manifest=manifest, descriptors=folder, out=str(tmp_path / "out")))
    table = pq.read_table(tmp_path / "out" / "suspects.parquet").to_pylist()
    frame = pd.read_csv(tmp_path / "out" / "suspects.csv").to_dict("records")
    assert frame and [f"'{row['image_id']}" for row in table] == [row["image_id"] for row in frame]
    assert {row["label"] for row in frame} <= {"'=1+1", "'@SUM(1)"}


def test_what_is_wrong_is_listed(place, tmp_path):
    result = audit(place)
    assert result == {"images": 47, "errors": 1, "label": 2, "duplicate": 2, "far": 1, "duplicate_pairs": 2}
    table = pq.read_table(tmp_path / "out" / "suspects.parquet")
    assert table.schema.equals(SCHEMA)
    found = {(row["kind"], row["image_id"]): row for row in table.to_pylist()}
    wrong = found["label", "label 05/1"]
    assert (wrong["label"], wrong["other_label"]) == ("label 09", "label 05")
    assert wrong["score"] > 0.3
    assert found["duplicate", "label 07/0"]["other_id"] == "label 08/0"
    leak = found["duplicate", "label 07/2"]
    assert (leak["other_id"], leak["split"], leak["other_split"]) == ("label 07/3", "test", "train")
    assert ("far", "label 03/2") in found
    frame = pd.read_csv(tmp_path / "out" / "suspects.csv")
    assert frame["image_id"].tolist() == table["image_id"].to_pylist()
    for _, those in frame.groupby("kind"):
        assert those["rank"].tolist() == list(range(1, len(those) + 1))
        assert those["score"].is_monotonic_decreasing


def test_the_page_shows_them(place, tmp_path):
    audit(place)
    page = (tmp_path / "out" / "report.html").read_text()
    for said in ("Likely label errors", "label 05/1", "other label", "Near duplicates", "Far from their label"):
        assert said in page
    assert "could not be read" not in page


def test_a_set_without_faults_has_an_empty_list(write_manifest, write_descriptors, tmp_path):
    vectors = np.eye(8)[np.repeat(np.arange(8), 3)] + 0.01 * np.random.default_rng(0).standard_normal((24, 8))
    ids = [f"{number}" for number in range(24)]
    manifest = write_manifest(image_id=ids, label=[str(row // 3) for row in range(24)])
    folder = write_descriptors(ids, vectors)
    result = audit(AuditConfig(manifest=manifest, descriptors=folder, out=str(tmp_path / "out")))
    assert (result["label"], result["duplicate"], result["far"]) == (0, 0, 0)
    assert pq.read_table(tmp_path / "out" / "suspects.parquet").num_rows == 0


@pytest.mark.parametrize("changes", [{"workers": 1}, {"workers": 3, "memory": "256MiB"}, {"candidates": "Flat"}])
def test_workers_memory_and_an_exhaustive_index_make_no_difference(place, tmp_path, changes, monkeypatch):
    result = audit(place)
    monkeypatch.setattr(photos, "UNIT_ROWS", 5)
    again = dataclasses.replace(place, out=str(tmp_path / "again"), **changes)
    assert audit(again) == result
    first, second = (pq.read_table(tmp_path / name / "suspects.parquet") for name in ("out", "again"))
    assert second.equals(first)


@pytest.mark.parametrize("factory", [None, "IVF2,SQ8"])
def test_tasks_of_ray_find_what_threads_find(ray_session, place, tmp_path, factory, monkeypatch):
    monkeypatch.setattr(photos, "UNIT_ROWS", 20)
    config = dataclasses.replace(place, candidates=factory)
    result = audit(config)
    monkeypatch.setattr(tasks, "_by_tasks", tasks._by_threads)
    assert audit(dataclasses.replace(config, out=str(tmp_path / "again"))) == result
    first, second = (pq.read_table(tmp_path / name / "suspects.parquet") for name in ("out", "again"))
    assert second.equals(first)


def test_of_many_suspects_the_first_are_listed_and_all_are_counted(place, tmp_path, caplog, monkeypatch):
    everything = audit(dataclasses.replace(place, least_score=0.001))
    listed = pq.read_table(tmp_path / "out" / "suspects.parquet").to_pylist()
    monkeypatch.setattr(suspects, "LISTED", 1)
    assert audit(dataclasses.replace(place, least_score=0.001)) == everything
    fewer = pq.read_table(tmp_path / "out" / "suspects.parquet").to_pylist()
    assert fewer == [row for row in listed if row["kind"] == "duplicate" or row["rank"] == 1] != listed
    assert f"there are {everything['label']} photos of a likely wrong label; the 1 with the highest" in caplog.text


@pytest.mark.slow
def test_of_a_large_set_an_index_finds_nearly_the_suspects_of_the_exact_way(
    write_manifest, write_descriptors, tmp_path
):
    generator = np.random.default_rng(0)
    codes = np.arange(900) % 90
    vectors = generator.standard_normal((90, 32))[codes] + 0.8 * generator.standard_normal((900, 32))
    wrong = generator.choice(900, 45, replace=False)
    vectors[wrong[:5]] = vectors[(wrong[:5] + 1) % 900]  # duplicates of the photos after them
    codes[wrong] = generator.integers(0, 90, 45)
    ids = [f"{row:03d}" for row in range(900)]
    manifest = write_manifest(image_id=ids, label=[f"{code}" for code in codes])
    folder = write_descriptors(ids, vectors)
    found = []
    for factory in (None, "HNSW32", "IVF8,SQ8"):
        out = str(tmp_path / f"{factory}")
        audit(AuditConfig(manifest=manifest, descriptors=folder, out=out, candidates=factory))
        rows = pq.read_table(f"{out}/suspects.parquet").to_pylist()
        found.append({(row["kind"], row["image_id"]) for row in rows})
    assert len(found[0]) > 40
    for proposed in found[1:]:
        assert len(found[0] & proposed) >= 0.95 * len(found[0]) and len(proposed - found[0]) <= 2


def test_settings_out_of_range_are_refused():
    for name in ("least_score", "duplicates"):
        with pytest.raises(UserError, match="must be above 0 and at most 1, not 0"):
            AuditConfig(manifest="m", descriptors="d", out="o", **{name: 0})
