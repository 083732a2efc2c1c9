"""A page's file: it shows names as text, embeds each photo once, and stays below 5 MB."""

import base64
import html.parser
import io
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from dim.report import parts
from dim.report.markup import element, fragment, user_text
from dim.report.page import MAX_BYTES, Page
from dim.report.page_photos import SIZES, PagePhoto, PagePhotos
from dim.report.parts import Card, Column, Row

NAMES = ("<script>alert(1)</script>", "\"a\" & 'b'", "</title></style>", "مرحبا\u202eabc", "😀 -->", "$title ${x}")


class Reader(html.parser.HTMLParser):
    """The text and the tags of a page."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags = [], []
        self.feed(page.decode() if isinstance(page, bytes) else page)

    def handle_data(self, data):
        self.text.append(data)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


@pytest.fixture
def photograph(tmp_path):
    """Writes a photo of noise, which takes up most room."""

    def write(number, size=(300, 200)):
        path = tmp_path / f"{number}.jpg"
        pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=95)
        return PagePhoto(str(path))

    return write


def test_text_is_escaped_and_markup_is_not():
    assert element("p", "a<b", None, [1, element("b", "&")]) == "<p>a&lt;b1<b>&amp;</b></p>"
    assert element("input", type="x", hidden=True, class_='"', data_value=0, id=None) == (
        '<input type="x" hidden class="&quot;" data-value="0">'
    )
    assert fragment(user_text("<i>")) == "<bdi>&lt;i&gt;</bdi>"


@pytest.mark.parametrize("evil", NAMES)
def test_names_are_text_wherever_they_stand(evil):
    page = Page(evil, evil, evil)
    cards = [Card(evil, PagePhoto(None), evil, evil, "wrong")]
    page.section(evil, parts.strip(page.photos, cards, cards[0]), parts.figures({evil: (evil, evil)}), note=evil)
    page.section("Table", parts.table([Column(evil, explanation=evil)], [Row([evil], element("p", evil))], evil))
    page.section("Facts", parts.facts({evil: evil}))
    found = Reader(page.render())
    assert "".join(found.text).count(evil) >= 15
    scripts = [attributes for tag, attributes in found.tags if tag == "script"]
    assert scripts == [{}]
    assert not any(attribute.startswith("on") for _, attributes in found.tags for attribute in attributes)


def test_nothing_is_asked_of_a_network_and_only_own_scripts_and_styles_apply():
    page = Page("job", "Title")
    page.section("One", "text")
    text = page.render().decode()
    assert re.findall(r"(?:src|href|url|import)[=(\s]+[\"']?(?!#|data:)\w+:", text) == []
    policy = next(a["content"] for t, a in Reader(text).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert " style=" not in text


def test_each_photo_is_embedded_once_however_often_it_is_shown(photograph):
    page = Page("job", "Title")
    photos = [photograph(0), photograph(1)]
    for _ in range(3):
        page.section("Again", [page.photos.picture(PagePhoto(photo.path), "a photo") for photo in photos])
    text = page.render().decode()
    assert text.count("data:image/") == len(page.photos) == 2
    assert text.count("<use ") == 6
    assert text.count("<title>a photo</title>") == 6


def test_photos_shrink_until_the_page_is_small_enough(photograph):
    page = Page("job", "Title")
    photos = [photograph(number) for number in range(40)]
    page.section("Photos", [page.photos.picture(photo, "noise") for photo in photos])
    whole = page.photos.symbols(MAX_BYTES)
    less = page.photos.symbols(len(whole) // 3)
    assert len(less) <= len(whole) // 3
    sizes = [max(_image(symbols).size) for symbols in (whole, less)]
    assert sizes[0] == SIZES[0][0] > sizes[1]
    assert _image(whole).size == (224, 149)


def _image(symbols):
    return Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", symbols).group(1))))


def test_a_box_is_cut_out_before_it_is_made_small(tmp_path):
    pixels = np.zeros((1000, 1000, 3), np.uint8)
    pixels[100:120, 300:340] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    photos = PagePhotos()
    photos.symbol(PagePhoto(str(tmp_path / "a.png"), (300, 100, 340, 120)))
    image = _image(photos.symbols(MAX_BYTES))
    assert image.size == (40, 32)  # no side under 32
    assert np.asarray(image).min() > 250


def test_a_photo_in_a_tar_is_shown(tmp_path, photograph):
    photo = photograph(0)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(photo.path, "./a.jpg")
    photos = PagePhotos()
    photos.symbol(photo)
    photos.symbol(PagePhoto(f"file://{tmp_path}/x.tar#./a.jpg"))
    assert not photos.unreadable()
    one, other = re.findall(r"base64,([^\"]+)", photos.symbols(MAX_BYTES))
    assert one == other


def test_a_photo_that_cannot_be_read_is_a_placeholder_and_is_named(tmp_path, photograph):
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    page = Page("job", "Title")
    wrong = [PagePhoto(str(tmp_path / name)) for name in ("broken.jpg", "absent.jpg")] + [
        PagePhoto("ftp://host/a"),
        PagePhoto(None),
    ]
    page.section("Photos", [page.photos.picture(photo, "one") for photo in [*wrong, photograph(1)]])
    found = Reader(page.render())
    text = "".join(found.text)
    assert "Photos that could not be read: 3" in text
    assert "broken.jpg: no photo in a known format" in text
    assert "absent.jpg: no such file" in text
    assert sum(tag == "symbol" for tag, _ in found.tags) == 5
    assert sum(tag == "image" for tag, _ in found.tags) == 1


def test_tables_hold_values_to_sort_by_and_details_to_unfold():
    rows = [Row(["a", 0.12345], element("p", "more")), Row(["b", None])]
    found = Reader(parts.table([Column("id"), Column("AP", ".3f", spare=True)], rows, "queries"))
    values = [attributes.get("data-value") for tag, attributes in found.tags if tag == "td"]
    assert values == [None, None, "0.12345", None, None, None, None]
    assert [text for text in found.text if text in ("0.123", "–", "more", "2 of 2")] == ["2 of 2", "0.123", "more", "–"]
