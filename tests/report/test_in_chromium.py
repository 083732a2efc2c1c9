"""Pages in a browser: tables sort, filter and unfold, without console errors and without requests."""

import pytest
from PIL import Image

from dim.report import charts, parts
from dim.report.markup import element
from dim.report.page import Page
from dim.report.page_photos import PagePhoto
from dim.report.parts import Card, Column, Row

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script> مرحبا 😀"
ROWS = [("q10", 0.25, 4), ("q9", None, 0), (EVIL, 0.75, 12), ("Q2", 0.5, 3)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    Image.new("RGB", (90, 60), "orange").save(folder / "a.jpg")
    page = Page("job", EVIL, EVIL)
    cards = [
        Card("a", PagePhoto(str(folder / "a.jpg")), EVIL, "0.93", verdict) for verdict in ("right", "wrong", "junk")
    ]
    page.section("Strip", parts.legend(), parts.strip(page.photos, cards, cards[0]))
    page.section(
        "Chart", charts.lines("c", charts.shares("x"), charts.shares("y"), [charts.Line(EVIL, [0, 1], [1, 0])])
    )
    columns = [Column("query"), Column("AP", ".3f"), Column("positives", "d", spare=True)]
    page.section("Table", parts.table(columns, [Row(row, element("p", f"all of {row[0]}")) for row in ROWS], "queries"))
    page.write(str(folder / "page.html"))
    return folder / "page.html"


@pytest.fixture
def shown(browser, written, tmp_path):
    def show(width, dark=False):
        browser.open(written, width, dark=dark)
        browser.run("window.scrollTo(0, document.body.scrollHeight)")
        return browser

    yield show
    assert browser.complaints == []
    assert browser.requests == [written.resolve().as_uri()]


def firsts(browser):
    rows = "[...document.querySelectorAll('tbody')].filter(b => !b.hidden).map(b => b.rows[0].cells[1].innerText)"
    return browser.run(rows)


def click(browser, text):
    browser.run(f"[...document.querySelectorAll('th button')].find(b => b.textContent === '{text}').click()")


def test_headings_sort_numbers_as_numbers_and_what_is_missing_stays_last(shown):
    browser = shown(1280)
    assert firsts(browser) == ["q10", "q9", EVIL, "Q2"]
    click(browser, "query")
    assert firsts(browser) == [EVIL, "Q2", "q9", "q10"]
    click(browser, "AP")
    assert firsts(browser) == ["q10", "Q2", EVIL, "q9"]
    click(browser, "AP")
    assert firsts(browser) == [EVIL, "Q2", "q10", "q9"]
    assert browser.run("document.querySelector('[aria-sort=descending]').innerText").startswith("AP")
    click(browser, "positives")
    assert firsts(browser) == ["q9", "Q2", "q10", EVIL]


def test_words_filter_and_the_count_says_so(shown):
    browser = shown(1280)

    def typed(text):
        browser.run(
            f"(i => {{ i.value = '{text}'; i.dispatchEvent(new Event('input')) }})(document.querySelector('input'))"
        )
        return firsts(browser), browser.run("document.querySelector('output').innerText")

    assert typed("Q2 .5") == (["Q2"], "1 of 4")
    assert typed("script 0.75") == ([EVIL], "1 of 4")
    assert typed("no such thing") == ([], "0 of 4")
    assert typed("") == ([row[0] for row in ROWS], "4 of 4")


@pytest.mark.parametrize("width", [1280, 390])
def test_rows_unfold_and_fold_and_nothing_is_wider_than_the_window(shown, width, tmp_path):
    browser = shown(width)
    opened = "[...document.querySelectorAll('.detail')].map(r => r.checkVisibility())"
    button = "document.querySelectorAll('.unfold')[1]"
    assert browser.run(opened) == [False] * 4
    browser.run(f"{button}.focus(); {button}.click()")
    assert browser.run(opened) == [False, True, False, False]
    assert browser.run(f"{button}.getAttribute('aria-expanded')") == "true"
    click(browser, "query")  # the detail goes along with its row
    assert browser.run("document.querySelectorAll('tbody')[2].rows[1].innerText") == "all of q9"
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert image.width == width
    browser.run("document.querySelectorAll('.unfold')[2].click()")
    assert browser.run(opened) == [False] * 4


def test_names_are_shown_as_text_and_pictures_are_described(shown):
    browser = shown(1280)
    assert browser.run("document.title") == EVIL
    assert browser.run("document.querySelector('h1').innerText") == EVIL
    assert browser.run("document.querySelectorAll('img, script').length") == 1
    assert browser.run("document.querySelector('.wrong .label').innerText") == EVIL
    pictures = "[...document.querySelectorAll('svg[role=img]')]"
    told = f"{pictures}.map(s => s.getAttribute('aria-label') || s.querySelector('title').textContent)"
    assert all(browser.run(told))
    # Frames differ by more than colour.
    style = "getComputedStyle(document.querySelector(`.strip .${v} .photo`)).borderStyle"
    styles = f"['right', 'wrong', 'junk'].map(v => {style})"
    assert browser.run(styles) == ["solid", "dashed", "dotted"]
    marks = "[...document.querySelectorAll('.strip .mark')].map(m => m.innerText)"
    assert browser.run(marks) == ["✓", "✓", "✗", "–"]


def test_photos_are_drawn_from_the_one_copy(shown, tmp_path):
    browser = shown(1280)
    browser.run("window.scrollTo(0, 0)")
    place = "document.querySelectorAll('.strip .photo')[2].getBoundingClientRect()"
    box = browser.run(f"(({{x, y, width}}) => [x, y, width])({place})")
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        colour = image.convert("RGB").getpixel((int(box[0] + box[2] / 2), int(box[1] + box[2] / 2)))
    assert all(abs(found - wanted) < 12 for found, wanted in zip(colour, (255, 165, 0), strict=True))


def test_dark_where_the_reader_likes_it_dark(shown):
    paper = "getComputedStyle(document.body).backgroundColor"
    assert shown(1280).run(paper) == "rgb(245, 246, 248)"
    assert shown(1280, dark=True).run(paper) == "rgb(20, 23, 27)"
