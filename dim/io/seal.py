"""Seals of output folders: a seal tells whether the files of a folder are complete and unchanged.

A seal lists the files with their sizes, sha256 checksums and numbers of rows. It is the entry `files` of the folder's
run.json, which the job writes at its end. A folder has no seal if its job is not done or wrote no file, or if the
folder was made before there were seals. A seal holds no absolute path and no time, so a complete copy of a folder is as
valid as the original.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from dim.errors import UserError, quoted
from dim.io import files, tables
from dim.io.storage import parallel_map

RECORD, FILES = "run.json", "files"  # the file that holds the seal, and the entry in that file
MOST_HASHED = 2**26  # bytes; a larger file has a checksum only if the job that wrote it gave one
_FILES_AT_ONCE = 4  # files that are read in parallel

Facts: TypeAlias = dict[str, Any]  # of one file: "bytes" and, if they are known, "sha256" and "rows"
Seal: TypeAlias = dict[str, Facts]  # facts of each file, by its name within the folder


def create(folder: str, names: Iterable[str], known: Mapping[str, Facts]) -> Seal:
    """Makes a seal of the files in `names` and `known` that exist in `folder`, without reading the `known` files."""
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
    """The seal in `record`, the run.json of `folder`; None if it has none. Raises UserError if it is malformed."""
    found = record.get(FILES)
    if found is None:
        return None
    if not isinstance(found, dict) or not all(isinstance(facts, dict) for facts in found.values()):
        raise _invalid(folder, found)
    return {name: found[name] for name in listed_names(found, folder)}


def listed_names(found: Any, folder: str) -> list[str]:
    """The names of files in `found`, an entry of run.json. Raises UserError unless all lie in `folder`."""
    if isinstance(found, list | dict) and all(isinstance(name, str) and _is_inside(name) for name in found):
        return list(found)
    raise _invalid(folder, found)


def _is_inside(name: str) -> bool:
    return bool(name) and "://" not in name and not {"", ".", ".."} & {*name.split("/")}


def _invalid(folder: str, found: Any) -> UserError:
    where = files.join(folder, RECORD)
    return UserError(f"{where!r}: its files are {quoted(found)}, not what dim writes; make this folder again")


def require_complete(folder: str, sealed: Seal, job: str) -> None:
    """Raises UserError if a `sealed` file is missing or has another size. `job` is the program that wrote `folder`."""
    found = files.infos([files.join(folder, name) for name in sealed])
    sizes = {name: info.size for name, info in zip(sealed, found, strict=True) if info.is_file}
    require_sizes(folder, sealed, sizes, job)


def require_sizes(folder: str, sealed: Seal, sizes: Mapping[str, int], job: str) -> None:
    """Does what `require_complete` does, given the sizes of all files that exist."""
    for name, facts in sealed.items():
        uri = files.join(folder, name)
        if name not in sizes:
            raise UserError(f"no file {uri!r}; {_again(job)}")
        if facts.get("bytes") not in (None, sizes[name]):
            raise mismatch(uri, job)


def require_content(uri: str, facts: Facts, job: str) -> None:
    """Raises UserError if `facts` has a checksum, and the file at `uri` has a different one."""
    if facts.get("sha256") is not None and facts["sha256"] != sha256_of_file(uri):
        raise mismatch(uri, job)


def mismatch(uri: str, job: str) -> UserError:
    """The error for a file that differs from the seal of its folder, which the program `job` wrote."""
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
    """Raises UserError at the end of the block if a file at `uris` changed during the block."""
    given = [uri for uri in uris if uri]
    before = [_sha256_or_none(uri) for uri in given]
    yield
    for uri, known in zip(given, before, strict=True):
        if _sha256_or_none(uri) != known:
            raise changed(uri)


def changed(uri: str) -> UserError:
    """The error for the input file at `uri`, which changed while the job ran."""
    return UserError(f"{uri!r} changed while this job ran; run the same command again")


def _sha256_or_none(uri: str) -> str | None:
    try:
        return sha256_of_file(uri)
    except OSError:  # the code that needs the file will report this
        return None
