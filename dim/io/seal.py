"""Whether a file is still what it was: its sha256, and inputs that must not change while a job reads them.

Which files of an output folder belong together: their names, sizes, checksums and rows, in one record.

The seal stands as `files` in the run.json that says that the job is done, so no folder is done without it; a folder
that was made before there were seals has none. It names no place and no time: what is copied whole stays whole.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from dim.errors import UserError, quoted
from dim.io import files, tables
from dim.io.storage import at_once


def sha256(content: bytes) -> str:
    """The sha256 of `content`, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(uri: str) -> str:
    """The sha256 of the file at `uri`, hexadecimal. Raises OSError where it can't be read."""
    return sha256(files.read_bytes(uri))


@contextlib.contextmanager
def unchanged(*uris: str | None) -> Iterator[None]:
    """For files that several steps of a job read: raises UserError where one has another content at the end."""
    given = [uri for uri in uris if uri]
    before = [_if_readable(uri) for uri in given]
    yield
    for uri, known in zip(given, before, strict=True):
        if _if_readable(uri) != known:
            raise changed(uri)


def changed(uri: str) -> UserError:
    """The error for an input that was another when a job read it a second time."""
    return UserError(f"{uri!r} changed while this job ran; run the same command again")


def _if_readable(uri: str) -> str | None:
    try:
        return sha256_of_file(uri)
    except OSError:  # whoever reads it says so
        return None


RECORD, FILES = "run.json", "files"  # where it stands
_READ = 4  # files at a time
MOST_HASHED = 2**26  # bytes; of a larger file whose job gives no checksum, the size and the rows have to do

Facts: TypeAlias = dict[str, Any]  # bytes and, where they are known, sha256 and rows
Seal: TypeAlias = dict[str, Facts]  # by the file's name within the folder


def of(folder: str, names: Iterable[str], known: Mapping[str, Facts]) -> Seal:
    """The seal of the files `names` of `folder`, as far as they are there; those that are `known` are not read."""
    asked = sorted({*names, *known})
    uris = [files.join(folder, name) for name in asked]
    found = {name: info.size for name, info in zip(asked, files.infos(uris), strict=True) if info.is_file}
    new = [name for name in found if not known.get(name)]
    facts = dict(zip(new, at_once(lambda name: _facts(files.join(folder, name), found[name]), new, _READ), strict=True))
    return {name: known.get(name) or facts[name] for name in found}


def _facts(uri: str, size: int) -> Facts:
    facts: Facts = {"bytes": size}
    if size <= MOST_HASHED:
        facts["sha256"] = sha256_of_file(uri)
    if uri.endswith(".parquet"):
        facts["rows"] = tables.rows(uri)
    return facts


def of_record(record: Mapping[str, Any], folder: str) -> Seal | None:
    """The seal in `record`, the run.json of `folder`; None where it has none. Raises UserError where it is no seal."""
    found = record.get(FILES)
    if found is None:
        return None
    if not isinstance(found, dict) or not all(isinstance(facts, dict) for facts in found.values()):
        raise _no_seal(folder, found)
    return {name: found[name] for name in names(found, folder)}


def names(found: Any, folder: str) -> list[str]:
    """The names of files that the run.json of `folder` lists. Raises UserError where one could lie outside of it."""
    if isinstance(found, list | dict) and all(isinstance(name, str) and _inside(name) for name in found):
        return list(found)
    raise _no_seal(folder, found)


def _inside(name: str) -> bool:
    return bool(name) and "://" not in name and not {"", ".", ".."} & {*name.split("/")}


def _no_seal(folder: str, found: Any) -> UserError:
    where = files.join(folder, RECORD)
    return UserError(f"{where!r}: its files are {quoted(found)}, not what dim writes; make this folder again")


def require_whole(folder: str, sealed: Seal, job: str) -> None:
    """Raises UserError unless each file that is `sealed` stands in `folder`, the output of `job`, and has its size."""
    found = files.infos([files.join(folder, name) for name in sealed])
    for (name, facts), info in zip(sealed.items(), found, strict=True):
        uri = files.join(folder, name)
        if not info.is_file:
            raise UserError(f"no file {uri!r}; {_again(job)}")
        if facts.get("bytes") not in (None, info.size):
            raise not_the_one(uri, job)


def require_content(uri: str, facts: Facts, job: str) -> None:
    """Raises UserError unless the file at `uri` has the checksum of its `facts`; one without is not read."""
    if facts.get("sha256") is not None and facts["sha256"] != sha256_of_file(uri):
        raise not_the_one(uri, job)


def not_the_one(uri: str, job: str) -> UserError:
    """The error for a file that is not the one with which its folder, the output of `job`, was sealed."""
    return UserError(f"{uri!r} is not the file that its {RECORD} describes; {_again(job)}")


def _again(job: str) -> str:
    return f"make it again with {job}.py, or copy the folder as a whole"
