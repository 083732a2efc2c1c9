"""Fields, their kinds, and YAML files of them."""

from dataclasses import dataclass
from typing import Literal

import pytest

from dim.app.config import Kind, flag_name, kind_of, nearest, one_of, option, read_yaml
from dim.errors import UserError, quoted


@dataclass(frozen=True)
class Config:
    manifest: str = option(help="photos")
    image_size: int | None = option(None)
    scales: tuple[float, ...] = option((1.0,))
    resize: Literal["squash", "long-side"] | None = option(None)
    ignore_label: tuple[str, ...] = option(())
    margin: float = option(0.1)
    retry: bool = option(False)


@pytest.fixture
def read(tmp_path):
    def of(text):
        (tmp_path / "flags.yaml").write_text(text, encoding="utf-8")
        return read_yaml(str(tmp_path / "flags.yaml"), Config)

    return of


def test_kinds():
    assert kind_of(int) == Kind(int, False, False, None)
    assert kind_of(float | None) == Kind(float, False, True, None)
    assert kind_of(tuple[str, ...]) == Kind(str, True, False, None)
    assert kind_of(Literal["a", "b"] | None) == Kind(str, False, True, ("a", "b"))


def test_the_nearest_name_or_all():
    assert nearest("imagesize", ["image_size", "resize"]) == "did you mean 'image_size'?"
    assert nearest("zzz", ["a", "b"]) == "known: a, b"
    assert one_of("pooling", "gem", ["gem"]) == "gem"
    with pytest.raises(UserError, match=r"^unknown pooling 'gen'; did you mean 'gem'\?$"):
        one_of("pooling", "gen", ["mac", "gem"])
    assert flag_name("image_size") == "--image-size"


def test_what_is_quoted_is_short():
    assert quoted("a  b\n") == r"'a  b\n'"
    unfolding = "x"
    for _ in range(40):
        unfolding = [unfolding] * 9
    for value in ("k" * 10**6, unfolding, list("k" * 10**6)):
        assert len(quoted(value)) < 150


def test_yaml_takes_flags_and_fields_and_lists(read):
    values = read(
        "image-size: 320\nscales: [1, 0.5]\nignore_label: [7, b]\nmargin: 1e-5\nretry: true\nresize: squash\n"
    )
    assert values == {
        "image_size": 320,
        "scales": (1.0, 0.5),
        "ignore_label": ("7", "b"),  # YAML reads a number where an id is meant
        "margin": 1e-5,  # YAML reads 1e-5 as text
        "retry": True,
        "resize": "squash",
    }
    assert read("image_size: null\nscales: 2\nmanifest: 2024\n") == {
        "image_size": None,
        "scales": (2.0,),
        "manifest": "2024",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagesize: 3", r"unknown key 'imagesize' in '.*flags.yaml'; did you mean 'image_size'\?"),
        ("image-size: big", "image-size in '.*' must be a whole number, not 'big'"),
        ("image-size: 2.5", "must be a whole number, not 2.5"),
        ("image-size: true", "must be a whole number, not True"),
        ("margin: wide", "must be a number, not 'wide'"),
        ("margin: null", "must be a number, not None"),
        ("margin: true", "must be a number, not True"),
        ("margin: .nan", "must be a number, not nan"),
        ("retry: maybe", "must be true or false, not 'maybe'"),
        ("retry: 1", "must be true or false, not 1"),
        ("scales: [1, x]", "scales in .* must be a number, not 'x'"),
        ("resize: stretch", "must be one of squash, long-side, not 'stretch'"),
        ("manifest: [a]", r"must be text, not \['a'\]"),
        ("- a\n- b", "must hold a mapping of flags to values, not list"),
        ("", "must hold a mapping of flags to values, not NoneType"),
        ("a: [", "is not YAML: .*"),
        ("\0", "is not YAML"),
        *(
            (f"{key}: 0x{'f' * 5000}", "must have at most 63 bits .*line 1")
            for key in ("manifest", "image-size", "retry")
        ),
        (f"scales: [0x{'f' * 5000}]", "must have at most 63 bits"),
        (f"image-size: {-(2**63)}", "must have at most 63 bits"),
        (f"{{{2**61 - 1}: 1, {5 * (2**61 - 1)}: 1}}", "must have at most 63 bits"),  # keys with one hash
        ("image-size: 1" + ":1" * 40_000, "must have at most 63 bits"),  # base 60
        ("resize: " + "k" * 90_000, "must be one of squash, long-side, not 'kkk"),
        ("? " + "k" * 90_000, "unknown key 'kkk"),
        ("retry: *" + "k" * 90_000, "found undefined alias …"),
        ("#" * 100_001, "has 100,001 bytes; the limit for a configuration is 100,000"),
    ],
    ids=lambda text: text[:30],
)
def test_yaml_that_is_wrong_is_named_in_one_line(read, text, message):
    with pytest.raises(UserError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_large_configuration_is_not_read(read, monkeypatch):
    monkeypatch.setattr("dim.io.files.read_bytes", lambda _: pytest.fail("read before its size was looked at"))
    with pytest.raises(UserError, match="the limit for a configuration"):
        read("#" * 100_001)


def test_yaml_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the configuration .*none\.yaml"):
        read_yaml(str(tmp_path / "none.yaml"), Config)
    with pytest.raises(UserError, match="cannot read the configuration"):
        read_yaml(str(tmp_path), Config)


@dataclass(frozen=True)
class Part:
    name: str = option(help="how it is called")
    least: float | None = option(None, help="a bound")


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...] = option(help="its parts")


def test_a_list_of_mappings_becomes_dataclasses(tmp_path):
    (tmp_path / "whole.yaml").write_text("parts:\n  - name: one\n    least: 1\n  - {name: two}\n")
    found = read_yaml(str(tmp_path / "whole.yaml"), Whole)
    assert found == {"parts": (Part("one", 1.0), Part("two"))}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parts: [{nam: one}]", "unknown key 'nam' in parts in .*did you mean 'name'"),
        ("parts: [{least: 1}]", "parts in .*: an entry lacks the key 'name' \\(how it is called\\)"),
        ("parts: [one]", "parts in .* must hold mappings, not 'one'"),
    ],
)
def test_a_wrong_part_is_named(tmp_path, text, said):
    (tmp_path / "whole.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        read_yaml(str(tmp_path / "whole.yaml"), Whole)
