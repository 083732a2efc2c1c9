"""What every importer makes of a set as distributed, and how it reads the set's files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from dim import files
from dim.data import listing
from dim.data.decode import Box
from dim.errors import UserError, quoted


@dataclass(frozen=True)
class Photo:
    """A row of the manifest; `path` is relative to the set's folder."""

    image_id: str
    path: str
    label: str | None = None
    split: str | None = None
    role: str | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Benchmark:
    """A set: `photos` are all that it names, also those whose file is missing.

    `grades` are (query_id, image_id, grade), none where labels say what belongs together. `published` is the number of
    photos that the set is known to have (cropped queries not counted), None where the set's own lists say it.
    """

    photos: list[Photo]
    grades: list[tuple[str, str, str]] = field(default_factory=list)
    published: int | None = None


def lines(source: str, name: str, columns: int, header: bool = False) -> Iterator[tuple[str, list[str]]]:
    """The lines of a text file: where each stands, for messages, and its `columns` words; empty lines are skipped.

    Raises UserError where the file is missing or cannot be read, is no text, or a line has another number of words.
    """
    uri = files.join(source, name)
    try:
        text = files.read_bytes(uri).decode()
    except FileNotFoundError as error:
        raise UserError(f"no file {uri!r}; SOURCE is the folder of the set as distributed") from error
    except OSError as error:
        raise UserError(f"cannot read {uri!r}: {files.reason(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{uri!r} is no text: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or (header and number == 1):
            continue
        if len(words) != columns:
            raise UserError(f"{uri!r}, line {number}: expected {columns} words, got {quoted(line)}")
        yield f"{uri!r}, line {number}", words


def by_stem(source: str, names: list[str], pattern: str = ".+") -> dict[str, str]:
    """Name without ending → path, of the JPEGs among `names` whose name is like `pattern`, in any sub-folder.

    Raises UserError where there is none, or two share a name.
    """
    found: dict[str, str] = {}
    for path in names:
        name, _, suffix = path.rpartition("/")[2].rpartition(".")
        if suffix.lower() not in ("jpg", "jpeg") or not re.fullmatch(pattern, name):
            continue
        if name in found:
            raise UserError(f"{source!r} has {name!r} twice, as {found[name]!r} and {path!r}; keep one of them")
        found[name] = path
    if not found:
        raise UserError(f"{source!r} holds no photo {pattern}.jpg; SOURCE is the folder of the set as distributed")
    return found


def listed(source: str) -> list[str]:
    """The files of the set, at any depth. Raises UserError where there is no folder."""
    if not files.is_folder(source):
        raise UserError(f"no folder {source!r}; SOURCE is the folder of the set as distributed")
    return listing.listed(source)
