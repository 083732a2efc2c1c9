"""Which files of an output folder belong together: their names, sizes, checksums and rows, in one record.

The seal stands as `files` in the run.json that says that the job is done, so no folder is done without it; a folder
that was made before there were seals has none. It names no place and no time: what is copied whole stays whole.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from dim import checksum, files, tables
from dim.errors import UserError, quoted
from dim.storage import at_once

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
        facts["sha256"] = checksum.of_file(uri)
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
    if facts.get("sha256") is not None and facts["sha256"] != checksum.of_file(uri):
        raise not_the_one(uri, job)


def not_the_one(uri: str, job: str) -> UserError:
    """The error for a file that is not the one with which its folder, the output of `job`, was sealed."""
    return UserError(f"{uri!r} is not the file that its {RECORD} describes; {_again(job)}")


def _again(job: str) -> str:
    return f"make it again with {job}.py, or copy the folder as a whole"
