"""The pages of the jobs in a browser, at the widths of a desktop and a phone."""

import numpy as np
import pytest
from PIL import Image

from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.nightly.history import NightlyHistory, NightRow
from dim.report import nightly
from dim.search.config import SearchConfig
from dim.search.job import search

EVIL = ("<script>document.title = 'broken in'</script>", "\"a\" & 'b'", "مرحبا بالعالم", "😀 </script>")
COUNT = 40


@pytest.fixture
def photos(tmp_path, write_manifest, write_descriptors):
    """A manifest of photos with nasty names, and two sets of descriptors."""
    ids = [f"{EVIL[number % 4].replace('/', '-')} {number}" for number in range(COUNT)]
    colours = np.random.default_rng(0).integers(0, 256, (COUNT, 3))
    for number, colour in enumerate(colours.tolist()):
        Image.new("RGB", (60, 80), tuple(colour)).save(tmp_path / f"{number}.png")
    paths = [f"{number}.png" for number in range(COUNT)]
    labels = [EVIL[number // 5 % 4] for number in range(COUNT)]
    manifest = write_manifest(image_id=ids, path=paths, label=labels)
    vectors = np.random.default_rng(1).standard_normal((2, COUNT, 8)) + np.repeat(np.eye(8) * 2, 5, axis=0)
    folders = [
        write_descriptors(ids, found, name=name, inputs={"manifest": manifest}, pooling=name)
        for name, found in zip(("gem", "mac"), vectors, strict=True)
    ]
    return manifest, folders, tmp_path / "out"


@pytest.fixture
def look(browser, tmp_path):
    """Opens a page as desk and phone would, and has it looked at; it must neither complain nor ask for anything."""

    def at(page, check):
        for width in (1280, 390):
            browser.open(page, width, 900)
            check(browser)
            assert browser.run("document.documentElement.scrollWidth") <= width
            browser.screenshot(tmp_path / f"{page.stem}-{width}.png")
            with Image.open(tmp_path / f"{page.stem}-{width}.png") as image:
                assert image.width == width
            assert browser.complaints == []
            assert browser.requests == [page.resolve().as_uri()]

    return at


TABLE = "document.querySelector('section:last-of-type .table')"
SHOWN = f"[...{TABLE}.querySelectorAll('tbody')].filter(body => !body.hidden)"


def test_the_report_of_an_evaluation(photos, look):
    manifest, folders, out = photos
    found = evaluate(EvaluateConfig(manifest=manifest, descriptors=tuple(folders), out=str(out)))

    def check(browser):
        assert browser.run("document.title") == "How well photos are found"
        assert f"{found['map']:.4f}" in browser.run("document.querySelector('.figures').innerText")
        titles = browser.run("[...document.querySelectorAll('h2')].map(h => h.innerText)")
        wanted = ["Headline", "Curves", "Comparison", "Worst queries", "Median queries", "Best queries"]
        assert titles == [*wanted, "Confused labels", "All queries"]
        aps = f"{SHOWN}.map(body => Number(body.rows[0].cells[3].dataset.value))"
        assert browser.run(aps) == sorted(browser.run(aps))
        browser.run(
            f"{TABLE}.querySelectorAll('th button')[2].click(); {TABLE}.querySelectorAll('th button')[2].click()"
        )
        assert browser.run(aps) == sorted(browser.run(aps), reverse=True)
        browser.run(
            f"(i => {{ i.value = 'مرحبا'; i.dispatchEvent(new Event('input')) }})({TABLE}.querySelector('input'))"
        )
        assert 0 < browser.run(f"{SHOWN}.length") < COUNT
        browser.run(f"{SHOWN}[0].querySelector('.unfold').click()")
        pictures = (
            f"[...{SHOWN}[0].querySelectorAll('.detail .photo')].filter(p => p.getBoundingClientRect().width > 40)"
        )
        assert browser.run(f"{pictures}.length") == 11
        names = "[...document.querySelectorAll('.strip .label')].map(label => label.innerText)"
        assert set(browser.run(names)) == set(EVIL)

    look(out / "report.html", check)


def test_the_pages_of_a_search(photos, look):
    _, folders, out = photos
    search(SearchConfig(index=folders[0], queries=folders[0], out=str(out)))

    def strips(browser):
        assert browser.run("document.querySelectorAll('.strip').length") == COUNT

    look(out / "report.html", strips)

    def check(browser):
        def typed(text):
            browser.run(
                f"(i => {{ i.value = '{text}'; i.dispatchEvent(new Event('input')) }})(document.querySelector('input'))"
            )
            return browser.run("document.querySelectorAll('.spot:not(.faded)').length")

        places = "[...document.querySelectorAll('.spot')].map(spot => spot.getBoundingClientRect())"
        apart = f"(([a, b]) => Math.hypot(a.x - b.x, a.y - b.y))({places})"
        before = browser.run(apart)
        browser.run("document.querySelector('.zoom button').click()")
        assert browser.run(apart) == pytest.approx(1.6 * before, rel=0.01)
        key = "new KeyboardEvent('keydown', { key: '0' })"
        browser.run(f"document.querySelector('.frame svg').dispatchEvent({key})")
        assert browser.run(apart) == pytest.approx(before, rel=0.01)
        named = sum("script" in EVIL[n % 4] + EVIL[n // 5 % 4] for n in range(COUNT))
        assert typed("script") == 2 * named  # each photo is in the set and a query
        assert typed("nothing like it") == 0
        assert typed("") == 2 * COUNT
        browser.run("document.querySelector('.spot').dispatchEvent(new MouseEvent('click', { bubbles: true }))")
        assert browser.run("document.querySelector('.chosen bdi').innerText") in EVIL
        assert browser.run("document.title") == "Map of the set"

    look(out / "map.html", check)


def test_what_the_policy_does_not_know_is_refused(photos, browser, tmp_path):
    _, folders, out = photos
    search(SearchConfig(index=folders[0], queries=folders[0], out=str(out)))
    text = (out / "report.html").read_text()
    broken_in = "<script>document.title = 'broken in'</script><img src='http://127.0.0.1:1/x.png'></main>"
    (tmp_path / "broken.html").write_text(text.replace("</main>", broken_in, 1))
    browser.open(tmp_path / "broken.html")
    assert browser.run("document.title") == "Search results"
    assert len([told for told in browser.complaints if "Content Security Policy" in told]) == 2


def test_the_trend_of_nights(look, tmp_path):
    history = NightlyHistory(str(tmp_path))
    for day in (1, 2, 3, 5, 6):
        status = "refused" if day == 3 else "accepted"
        known = {"map": 0.5 + day / 100, "images": 1000, "embedding": "one" if day < 3 else str(day)}
        known |= {"difference": 0.01, "low": -0.01, "high": 0.03, "baseline": "2020-01-02", "reason": EVIL[0]}
        history.put(f"2020-01-0{day}", [NightRow(f"2020-01-0{day}", name, status, **known) for name in EVIL])
    nightly.write(str(tmp_path), history.rows)

    def check(browser):
        assert browser.run("document.title") == "Nightly evaluations"
        assert browser.run("document.querySelectorAll('.timeline svg .dot').length") >= 2 * len(EVIL)
        # Marks have their colours: the style that is allowed takes in theirs.
        assert browser.run("getComputedStyle(document.querySelector('.cross')).stroke") == "rgb(198, 47, 47)"
        assert browser.run(f"{SHOWN}.length") == 6
        assert browser.run(f"{TABLE}.querySelector('a').getAttribute('href')").startswith("nights/2020-01-06/")

    look(tmp_path / "trend.html", check)
