"""The pages of a search: photos where their manifest still stands, ids where it is gone."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dim.errors import UserError
from dim.report import search as search_report
from dim.search.approximate import Approximate
from dim.search.build_index import build
from dim.search.config import IndexConfig, SearchConfig
from dim.search.job import search

RNG = np.random.default_rng(2)
IDS = [f"photo-{number}" for number in range(12)]
LABELS = ["a", "b", "<c>", None] * 3


@pytest.fixture
def set_up(tmp_path, write_manifest, write_descriptors):
    for number, image_id in enumerate(IDS):
        Image.new("RGB", (40, 30), (number * 20, 90, 200)).save(tmp_path / f"{image_id}.jpg")
    manifest = write_manifest(image_id=IDS, label=LABELS)
    folder = write_descriptors(IDS, RNG.standard_normal((12, 5)), inputs={"manifest": manifest})
    index = str(tmp_path / "index")
    build(IndexConfig(descriptors=folder, out=index))
    return manifest, folder, index, str(tmp_path / "out")


def test_hits_have_their_photos_scores_and_labels(set_up):
    _, folder, index, out = set_up
    search(SearchConfig(index=index, queries=folder, out=out, top=5))
    text = Path(out, "report.html").read_text()
    assert text.count("data:image/") == 12  # each once, as query or hit
    assert len(re.findall(r'<li class="first">', text)) == 12
    assert text.count('class="card right"') >= 9  # a query finds itself
    assert "&lt;c&gt;" in text
    assert "<c>" not in text
    shown = Path(out, "map.html").read_text()
    assert "the 12 photos of" in shown
    assert "framed: 12" in shown


def test_where_the_manifest_is_gone_ids_are_shown_and_no_map(set_up, caplog):
    caplog.set_level("INFO")
    manifest, folder, index, out = set_up
    Path(manifest).unlink()
    search(SearchConfig(index=index, queries=folder, out=out))
    text = Path(out, "report.html").read_text()
    assert "data:image/" not in text
    assert all(image_id in text for image_id in IDS)
    assert not Path(out, "map.html").exists()
    assert "no map: the manifest of" in caplog.text


def test_codes_that_can_not_be_decoded_have_no_map(set_up, caplog, monkeypatch, tmp_path):
    def take(self, rows):
        raise UserError("these codes give no vectors back")

    caplog.set_level("INFO")
    monkeypatch.setattr(Approximate, "take", take)
    _, folder, _, out = set_up
    build(IndexConfig(descriptors=folder, out=str(tmp_path / "coded"), factory="SQ8"))
    search(SearchConfig(index=str(tmp_path / "coded"), queries=folder, out=out))
    assert Path(out, "report.html").exists()
    assert "no map: these codes give no vectors back" in caplog.text


def test_pages_are_left_out_where_they_are_not_wanted(set_up):
    _, folder, index, out = set_up
    search(SearchConfig(index=index, queries=folder, out=out, report=False))
    assert not list(Path(out).glob("*.html"))


def test_another_file_in_the_manifests_place_is_no_manifest(set_up):
    manifest, folder, index, _ = set_up
    assert search_report.of_folder(index, IDS[:2]).labels == {IDS[0]: "a", IDS[1]: "b"}
    Path(manifest).write_text("x,y\n1,2\n")
    assert search_report.of_folder(folder, IDS) == search_report.NOT_KNOWN


def test_photos_outside_the_root_are_not_shown(set_up, tmp_path, caplog):
    _, folder, index, out = set_up
    (tmp_path / "root").mkdir()
    search(SearchConfig(index=index, queries=folder, out=out, root=str(tmp_path / "root")))
    assert "data:image/" not in Path(out, "report.html").read_text()
    assert not Path(out, "map.html").exists()
    assert "outside --root" in caplog.text
    search(SearchConfig(index=index, queries=folder, out=out, root=str(tmp_path)))
    assert Path(out, "report.html").read_text().count("data:image/") == 12


@pytest.mark.parametrize("inputs", [None, [], {"manifest": 5}, {"descriptors": "itself"}])
def test_a_folder_that_names_no_manifest_shows_no_photos(set_up, inputs):
    _, folder, index, _ = set_up
    record = Path(folder, "run.json")
    inputs = {"descriptors": folder} if inputs == {"descriptors": "itself"} else inputs
    record.write_text(json.dumps(json.loads(record.read_text()) | {"inputs": inputs}))
    for where in (folder, index):
        assert search_report.of_folder(where, IDS) == search_report.NOT_KNOWN
