"""The page of an audit in a browser: its strips, its table, and names that are text whatever they hold."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dim.audit import photos
from dim.audit.config import AuditConfig
from dim.audit.suspects import DUPLICATE, FAR, LABEL, Suspect
from dim.report import audit
from dim.report.page_photos import PagePhoto
from dim.search.database import parts_of

EVIL = '<script>alert(1)</script> "quoted" مرحبا 😀'


@pytest.fixture
def written(tmp_path):
    parts = parts_of(np.eye(6, dtype=np.float32))
    names = pa.chunked_array([[EVIL, *"bcdef"]])
    labels = pa.array([EVIL, EVIL, "two", "two", "three", "three"])
    where = []
    for number, colour in enumerate(("red", "green", "blue", "black", "white", "orange")):
        Image.new("RGB", (60, 40), colour).save(tmp_path / f"{number}.jpg")
        where.append(PagePhoto(str(tmp_path / f"{number}.jpg")))
    found = [Suspect(0, LABEL, 0.5, 2), Suspect(1, DUPLICATE, 0.99, 4), Suspect(3, FAR, 0.1, 2)]
    config = AuditConfig(manifest="photos.csv", descriptors="descriptors", out="out")
    audit.write(
        str(tmp_path / "report.html"), config, photos.of(parts, names, labels, labels), where.__getitem__, found
    )
    return tmp_path / "report.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_suspects_are_shown_and_sorted(browser, written, width):
    browser.open(written, width)
    strips = browser.run("[...document.querySelectorAll('ol.strip')].map(s => s.querySelectorAll('figure').length)")
    assert strips == [4, 2, 2]  # with one mate and two of the other label; with its twin; with one mate
    kinds = "[...document.querySelectorAll('tbody')].map(b => b.rows[0].cells[0].innerText)"
    assert browser.run(kinds) == ["label", "duplicate", "far"]
    browser.run("[...document.querySelectorAll('th button')].find(b => b.textContent === 'score').click()")
    assert sorted(browser.run(kinds)) == ["duplicate", "far", "label"] != browser.run(kinds)
    assert EVIL in browser.run("document.body.innerText")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.complaints == []
    assert browser.requests == [written.resolve().as_uri()]
