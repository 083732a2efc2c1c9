"""The report of a training run, from what its workers leave."""

import csv
import itertools
import logging
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from dim.mine.triplets import active
from dim.report import training
from dim.search.exact import Part
from dim.train import embed, history
from dim.train.config import TrainConfig
from dim.train.training_set import TrainingPhotos

LABELS = np.array(["a", "a", "<b>", "<b>", "c", "c", None, "d"], dtype=object)
IDS = np.array([f"photo {number}" for number in range(8)], dtype=object)
SUMMARY = {"map_before": 0.25, "map_fitted": None, "map_after": 0.75, "judged_on": "test", "epochs": 3, "best_epoch": 2}
SUMMARY |= {"val_before": 0.31, "val_fitted": None, "val_interval": (0.12, 0.58), "verdict": "epoch 2 may be better"}
SUMMARY |= {"val_whitened": None, "final_whitening": None}
SUMMARY |= {"warnings": ["no epoch was better", "split train has 84 photos"]}
EPOCH = {"loss": 0.1, "active_share": 0.5, "candidates": 90, "kept": 9}
TIMES = {f"{part}_seconds": 1.5 for part in ("embed", "mine", "fit", "validate")}


def unit(*shape, seed=0):
    vectors = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def photos(tmp_path):
    for number, image_id in enumerate(IDS):
        Image.new("RGB", (60, 40), (number * 30, 80, 0)).save(tmp_path / f"{image_id}.png")
    paths = [str(tmp_path / f"{image_id}.png") for image_id in IDS]
    return TrainingPhotos(IDS, LABELS, np.array(["test"] * 8), paths, [None] * 8, [""] * 8, 224, "squash")


@pytest.fixture
def run(tmp_path):
    """The folder of a run of three epochs; in the second nothing was mined."""

    class Out:
        folder = tmp_path / "run"

        def path(self, name):
            return str(self.folder / name)

    Out.folder.mkdir()
    with open(Out.folder / "history.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", *EPOCH, "val_map", *TIMES])
        writer.writeheader()
        writer.writerows(
            {"epoch": epoch, **EPOCH, "val_map": None if epoch == 1 else 0.3, **TIMES} for epoch in (1, 2, 3)
        )
    return Out()


def mined(count):
    rows = np.array([(n % 2, 1 - n % 2, 2 + n % 6) for n in range(count)]).T
    near = np.linspace(0.9, 0.2, count, dtype=np.float32)
    return active(rows, near, np.full(count, 0.1, np.float32), 0.1, 200)


def parts_of(vectors, count=1):
    ends = np.linspace(0, len(vectors), count + 1).astype(int).tolist()
    return [Part(a, b - a, partial(np.copy, vectors[a:b])) for a, b in itertools.pairwise(ends)]


def test_rankings_have_the_ap_of_each_query_and_what_heads_its_list():
    vectors = unit(8, 4)
    found = embed.rankings(parts_of(vectors), LABELS, IDS)
    for count in (2, 3, 7):
        assert embed.rankings(parts_of(vectors, count), LABELS, IDS).equals(found)
    known = embed.average_precisions(parts_of(vectors), LABELS, IDS)
    np.testing.assert_array_equal(
        known, found["ap"].to_numpy(zero_copy_only=False)
    )  # where one is null, the other is NaN
    assert found["ap"].null_count == 2  # one without a label, one alone with its own
    for query, row in enumerate(found.to_pylist()):
        others = [other for other in range(8) if other != query]
        nearest = sorted(others, key=lambda other: -(vectors[query].astype(float) @ vectors[other]))
        assert row["query_id"] == IDS[query]
        assert row["found"] == IDS[nearest].tolist()
        assert row["scores"] == pytest.approx([float(vectors[query] @ vectors[other]) for other in nearest], abs=1e-5)


def test_the_hardest_triplets_of_each_epoch_are_kept(run):
    for epoch, count in ((1, 150), (3, 2)):
        history.keep_hardest(str(run.folder), epoch, mined(count), IDS)
    found = history.hardest(str(run.folder))
    assert list(found) == [1, 3]
    assert [table.num_rows for table in found.values()] == [history.KEPT, 2]
    assert found[1]["rank"].to_pylist() == list(range(1, 101))
    assert pc.max(found[1]["loss"]).as_py() == found[1]["loss"][0].as_py()


def test_the_page_shows_curves_triplets_and_what_changed(run, photos):
    folder = str(run.folder)
    before, after = unit(8, 4, seed=1), unit(8, 4, seed=2)
    history.keep_found(folder, history.BEFORE, embed.rankings(parts_of(before), LABELS, IDS))
    history.keep_found(folder, history.AFTER, embed.rankings(parts_of(after), LABELS, IDS))
    for epoch in (1, 3):
        history.keep_hardest(folder, epoch, mined(9), IDS)
    training.write(TrainConfig(out=folder), photos, SUMMARY, run)
    text = (run.folder / "report.html").read_text()
    assert text.count("data:image/") == 8
    for figure in ("0.2500", "0.7500", "none"):
        assert f"<strong>{figure}</strong>" in text
    warnings = "".join(f"<li>{warning}</li>" for warning in SUMMARY["warnings"])
    assert f'<p class="note">{SUMMARY["verdict"]}</p><ul class="note">{warnings}</ul>' in text
    for title in ("Loss", "Active", "Validation", "Time"):
        assert f"<figcaption>{title}</figcaption>" in text
    triplets = text[text.index("Hardest triplets</h2>") :]
    assert re.findall(r"<h3>Epoch (\d)</h3>", triplets) == ["1", "3"]
    assert len(re.findall('<li class="first">', triplets)) == 4  # two anchors an epoch
    pairs = zip(*(embed.rankings(parts_of(v), LABELS, IDS)["ap"].to_pylist() for v in (before, after)), strict=True)
    expected = sorted(f"{old:.3f} → {new:.3f}" for old, new in pairs if None not in (old, new) and old != new)
    assert sorted(re.findall(r"AP ([\d.]+ → [\d.]+)", text)) == expected
    assert "<b>" not in text.replace("<b>Before", "").replace('<b class="mark">', "")


@pytest.mark.parametrize(
    ("aps", "before", "said"),
    [
        (
            # The second query gained more.
            [(0.5, 0.6), (0.1, 0.9)],
            ["photo 2", "photo 6", "photo 7"],
            "test photo 'photo 1' (a) improved most: 0 of its 3 nearest photos were right before, 2 are now; the "
            "first right one was not among them, now it is at rank 2",
        ),
        (
            [(0.5, 0.5), (0.9, 0.1)],
            ["photo 2", "photo 5", "photo 7"],
            "test photo 'photo 1' (a) worsened most: 1 of its 3 nearest photos were right before, 2 are now; the "
            "first right one is at rank 2, as before",
        ),
        ([(0.5, 0.5), (0.9, 0.9)], [], None),
    ],
)
def test_the_log_tells_one_query_before_and_after_and_where_to_look(run, photos, caplog, aps, before, said):  # noqa: PLR0917
    caplog.set_level(logging.INFO, "dim")
    photos = replace(photos, labels=np.array(["a", "a", "b", "b", "a", "a", None, "d"], dtype=object))
    found = {history.BEFORE: before, history.AFTER: ["photo 3", "photo 0", "photo 4"]}
    for place, (moment, ids) in enumerate(found.items()):
        rows = [
            {"query_id": f"photo {query}", "ap": ap[place], "found": ids, "scores": [0.9] * len(ids)}
            for query, ap in enumerate(aps)
        ]
        history.keep_found(str(run.folder), moment, pa.Table.from_pylist(rows, embed.RANKING))
    training.write(TrainConfig(out=str(run.folder)), photos, SUMMARY, run)
    told = [line for line in caplog.messages if "photo 1" in line]
    assert told == ([said] if said else [])
    assert caplog.messages[-1] == f"look at {run.path('report.html')}; the network is in {run.path('model')}"


def test_a_run_that_kept_nothing_to_look_at_still_has_its_curves(run, photos):
    training.write(TrainConfig(out=str(run.folder)), photos, SUMMARY, run)
    assert "<figcaption>Loss</figcaption>" in (run.folder / "report.html").read_text()


def ticks_of_validation(text):
    chart = text[text.index("<figcaption>Validation") :]
    return [float(tick) for tick in re.findall('class="tick end">([^<]+)<', chart[: chart.index("</figure>")])]


@pytest.mark.parametrize(("interval", "expected"), [((0.12, 0.58), (0.1, 0.6)), ((0, 1), (0, 1)), (None, (0.3, 0.31))])
def test_the_axis_of_map_spans_what_chance_alone_changes(run, photos, interval, expected):
    """The figures of the run go from 0.30 to 0.31."""
    training.write(TrainConfig(out=str(run.folder)), photos, SUMMARY | {"val_interval": interval}, run)
    ticks = ticks_of_validation((run.folder / "report.html").read_text())
    assert (ticks[0], ticks[-1]) == pytest.approx(expected)


def test_a_network_as_it_came_is_no_epoch(run, photos):
    training.write(TrainConfig(out=str(run.folder)), photos, SUMMARY | {"best_epoch": None}, run)
    assert "<dt>Best epoch</dt><dd><strong>none</strong>" in (run.folder / "report.html").read_text()


def test_many_epochs_are_spread_over_the_run():
    assert training._spread(range(5), 20) == [0, 1, 2, 3, 4]
    found = training._spread(range(300), 20)
    assert (len(found), found[0], found[-1]) == (20, 0, 299)


def test_the_driver_needs_no_tensorflow():
    import subprocess
    import sys

    code = "import sys, dim.report.training; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize(("top", "said"), [(None, "the 300 hardest"), (1000, "the 1,000 hardest")])
def test_the_settings_name_the_triplets_of_an_epoch_also_by_default(top, said):
    assert training._settings(TrainConfig(top=top, final_whitening="none"), 150, SUMMARY)["Triplets"] == said


@pytest.mark.parametrize(
    ("labels", "said"), [("manifest", "the manifest&#x27;s"), ("groups", "groups of similar photos")]
)
def test_the_page_says_where_the_labels_came_from(run, photos, labels, said):
    training.write(TrainConfig(out=str(run.folder), labels=labels), photos, SUMMARY, run)
    text = (run.folder / "report.html").read_text()
    assert f"<dt>Labels of split train</dt><dd>{said}" in text
    assert ("photo of another group" in text) == (labels == "groups")
