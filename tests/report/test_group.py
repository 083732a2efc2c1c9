"""The page of groups in a browser: marks become corrections, whatever the names hold, and nothing else is loaded."""

import json

import numpy as np
import pytest
from PIL import Image

from dim.group.config import GroupConfig
from dim.group.job import group

EVIL = '<script>alert(1)</script> "quoted", مرحبا'


@pytest.fixture
def written(tmp_path, write_manifest, write_descriptors, in_threads):
    vectors = np.repeat(np.eye(3, 8), 3, axis=0) + 0.05 * np.random.default_rng(0).standard_normal((9, 8))
    for number in range(9):
        Image.new("RGB", (60, 40), (25 * number, 90, 90)).save(tmp_path / f"{number}.jpg")
    ids = [EVIL, *(f"photo {number}" for number in range(1, 9))]
    manifest = write_manifest(image_id=ids, path=[f"{number}.jpg" for number in range(9)])
    out = str(tmp_path / "out")
    group(GroupConfig(manifest=manifest, descriptors=write_descriptors(ids, vectors), out=out, threshold=0.5))
    return tmp_path / "out" / "report.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_marks_become_corrections(browser, written, width):
    browser.open(written, width)
    assert browser.run("document.querySelectorAll('.group').length") == 6  # three groups, as doubtful and as large ones
    assert browser.run("document.querySelector('.save').disabled")
    item = f"[...document.querySelectorAll('.group .id')].find(one => one.textContent === {json.dumps(EVIL)})"
    browser.run(f"{item}.closest('li').querySelector('.part').click()")
    assert browser.run("document.querySelectorAll('.parted').length") == 2  # the photo is shown twice
    assert sorted(browser.run("pairs()")) == [[EVIL, f"photo {other}", "cannot-link"] for other in (1, 2)]
    quoted = EVIL.replace('"', '""')
    assert f'"{quoted}",photo 1,cannot-link' in browser.run("table()").splitlines()
    assert not browser.run("document.querySelector('.save').disabled")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.complaints == []
    assert browser.requests == [written.resolve().as_uri()]
