"""Seals of output folders, which say whether their files are complete and unchanged, and the sha256 they rest on.

A seal lists the files of a folder with their sizes, checksums and rows. It is the entry `files` of the folder's
run.json, written when the job is done. Only folders that were made before there were seals have none. A seal holds no
absolute path and no time, so a complete copy of a folder is as valid as the original.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from dim.errors import UserError, quoted
from dim.io import files, tables
from dim.io.storage import parallel_map

RECORD, FILES = "run.json", "files"  # the file, and its entry, that hold the seal
MOST_HASHED = 2**26  # bytes: a larger file gets a checksum only from the job that writes it
_FILES_AT_ONCE = 4

Facts: TypeAlias = dict[str, Any]  # "bytes" and, if they are known, "sha256" and "rows" of a file
Seal: TypeAlias = dict[str, Facts]  # by the file's name within the folder


def create(folder: str, names: Iterable[str], known: Mapping[str, Facts]) -> Seal:
    """Seals the files of `folder` that exist and are in `names` or `known`. The files in `known` are not read."""
    asked = sorted({*names, *known})
    uris = [files.join(folder, name) for name in asked]
    sizes = {name: info.size for name, info in zip(asked, files.infos(uris), strict=True) if info.is_file}
    new = [name for name in sizes if not known.get(name)]
    facts = parallel_map(lambda name: _facts(files.join(folder, name), sizes[name]), new, _FILES_AT_ONCE)
    by_name = dict(zip(new, facts, strict=True))
    return {name: known.get(name) or by_name[name] for name in sizes}


def _facts(uri: str, size: int) -> Facts:
    facts: Facts = {"bytes": size}
    if size <= MOST_HASHED:
        facts["sha256"] = sha256_of_file(uri)
    if uri.endswith(".parquet"):
        facts["rows"] = tables.row_count(uri)
    return facts


def from_record(record: Mapping[str, Any], folder: str) -> Seal | None:
    """The seal in `record`, the run.json of `folder`, or None. Raises UserError if its entry `files` is not a seal."""
    found = record.get(FILES)
    if found is None:
        return None
    if not isinstance(found, dict) or not all(isinstance(facts, dict) for facts in found.values()):
        raise _invalid(folder, found)
    return {name: found[name] for name in listed_names(found, folder)}


def listed_names(found: Any, folder: str) -> list[str]:
    """The names in `found`, a list of files in the run.json of `folder`. Raises UserError if one leads out of it."""
    if isinstance(found, list | dict) and all(isinstance(name, str) and _is_inside(name) for name in found):
        return list(found)
    raise _invalid(folder, found)


def _is_inside(name: str) -> bool:
    return bool(name) and "://" not in name and not {"", ".", ".."} & {*name.split("/")}


def _invalid(folder: str, found: Any) -> UserError:
    where = files.join(folder, RECORD)
    return UserError(f"{where!r}: its files are {quoted(found)}, not what dim writes; make this folder again")


def require_complete(folder: str, sealed: Seal, job: str) -> None:
    """Raises UserError unless each `sealed` file of `folder`, the output of `job`, exists and has its size."""
    found = files.infos([files.join(folder, name) for name in sealed])
    for (name, facts), info in zip(sealed.items(), found, strict=True):
        uri = files.join(folder, name)
        if not info.is_file:
            raise UserError(f"no file {uri!r}; {_again(job)}")
        if facts.get("bytes") not in (None, info.size):
            raise mismatch(uri, job)


def require_content(uri: str, facts: Facts, job: str) -> None:
    """Raises UserError unless the file at `uri` has the checksum in `facts`, if there is one."""
    if facts.get("sha256") is not None and facts["sha256"] != sha256_of_file(uri):
        raise mismatch(uri, job)


def mismatch(uri: str, job: str) -> UserError:
    """The error for a file that differs from the seal of its folder, the output of `job`."""
    return UserError(f"{uri!r} is not the file that its {RECORD} describes; {_again(job)}")


def _again(job: str) -> str:
    return f"make it again with {job}.py, or copy the folder as a whole"


def sha256(content: bytes) -> str:
    """The sha256 of `content`, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(uri: str) -> str:
    """The sha256 of the file at `uri`, hexadecimal. Raises OSError if it can't be read."""
    return sha256(files.read_bytes(uri))


@contextlib.contextmanager
def unchanged(*uris: str | None) -> Iterator[None]:
    """Raises UserError at the end of the block if one of the files at `uris` has changed since its beginning."""
    given = [uri for uri in uris if uri]
    before = [_sha256_or_none(uri) for uri in given]
    yield
    for uri, known in zip(given, before, strict=True):
        if _sha256_or_none(uri) != known:
            raise changed(uri)


def changed(uri: str) -> UserError:
    """The error for an input file that changed between two reads of one job."""
    return UserError(f"{uri!r} changed while this job ran; run the same command again")


def _sha256_or_none(uri: str) -> str | None:
    try:
        return sha256_of_file(uri)
    except OSError:  # the code that needs the file will report this
        return None
