"""Reads, writes, lists and deletes files on any storage: local paths, `file:///…`, `s3://…`, `gs://…`.

A local file is written under a temporary name in the same folder and then renamed, so a reader never sees half a file.
An object store shows an object only once it is complete. `dim.io.storage` repeats the requests that fail in a store. It
also has the guards of folders, which are called before each write.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from dim.errors import JobFailed, UserError
from dim.io import object_listings, storage, strict_json
from dim.io.storage import for_each, parallel_map, retried
from dim.io.uris import FILE, canonical, encoded, parts, tar_and_member

_PATHS_PER_CALL = 100  # local paths in one call for types, sizes and times

locate = storage.locate


def is_local(uri: str) -> bool:
    """Whether `uri` names a file on this machine's disks."""
    return parts(uri)[0] in ("", "file")


def absolute(uri: str) -> str:
    """Makes a local path absolute, and percent-encodes a file:// URI. Raises UserError as `uris.parts` does."""
    if uri.startswith(FILE):
        return canonical(uri)
    scheme, path = parts(uri)
    return uri if scheme else path


def join(folder: str, name: str) -> str:
    """The URI of `name` (not percent-encoded) inside `folder`. Returns an absolute path or a URI unchanged."""
    if "://" in name or name.startswith("/") or not folder:
        return name
    if folder.startswith(FILE):
        above = folder.removeprefix(FILE).rstrip("/")
        return canonical(f"{FILE}{above}/") + encoded(name)
    return f"{folder.rstrip('/')}/{name}"


def parent(uri: str) -> str:
    """The folder that holds `uri`."""
    folder, slash, _ = uri.rpartition("/")
    return f"{folder}/" if slash and folder in ("", FILE) else folder or "."


def name(uri: str) -> str:
    """The name of the file or folder at `uri`, decoded."""
    return parts(uri)[1].rpartition("/")[2]


def exists(uri: str) -> bool:
    """Whether there is a file or folder at `uri`."""
    return bool(info(uri).type != pafs.FileType.NotFound)


def is_folder(uri: str) -> bool:
    """Whether there is a folder at `uri`."""
    return bool(info(uri).type == pafs.FileType.Directory)


def info(uri: str) -> pafs.FileInfo:
    """The type, size and modification time of the file or folder at `uri`."""
    filesystem, path = locate(uri)
    try:
        return retried(filesystem.get_file_info)(path)
    except OSError:
        if not isinstance(filesystem, pafs.LocalFileSystem):
            raise
        return pafs.FileInfo(path, pafs.FileType.NotFound)  # the name is too long, for example


def infos(uris: Sequence[str]) -> list[pafs.FileInfo]:
    """Does what `info` does for each of `uris`, with many requests in parallel. A tar's member has the tar's info."""
    asked = [tar_and_member(uri)[0] for uri in uris]
    distinct = dict.fromkeys(asked)
    local = [uri for uri in distinct if is_local(uri)]
    # A network disk is slow, so calls run in parallel. A fast disk answers sooner than a thread starts, so each call
    # takes many paths.
    chunks = [local[start : start + _PATHS_PER_CALL] for start in range(0, len(local), _PATHS_PER_CALL)]
    found = dict(zip(local, chain.from_iterable(parallel_map(_local_infos, chunks)), strict=True))
    if len(local) < len(distinct):
        found |= object_listings.infos([uri for uri in distinct if uri not in found], info)
    return [found[uri] for uri in asked]


def _local_infos(uris: Sequence[str]) -> list[pafs.FileInfo]:
    try:
        return list(pafs.LocalFileSystem().get_file_info([parts(uri)[1] for uri in uris]))
    except OSError:  # the error doesn't say which path caused it
        return list(map(info, uris))


def decoded_path(info: pafs.FileInfo) -> str:
    """The path in `info`. Raises UserError if it is not UTF-8, because Arrow can't open such a file."""
    try:
        return str(info.path)
    except UnicodeDecodeError as error:
        raise UserError(f"the file name {error.object!r} is not UTF-8; rename it") from error


def require_at_most(uri: str, most: int, what: str) -> None:
    """Raises UserError if the file at `uri` has more than `most` bytes. `what` ("a pickle") is its content."""
    size = info(uri).size or 0
    if size > most:
        raise UserError(f"{uri!r} has {size:,} bytes; the limit for {what} is {most:,}")


def names(folder: str) -> list[str]:
    """The names of the files directly in `folder`, sorted; none if the folder does not exist."""
    return sorted(sizes(folder))


def sizes(folder: str) -> dict[str, int]:
    """The bytes of each file directly in `folder`, by name; none if the folder does not exist."""
    return {name: info.size for name, info in _listed(folder) if info.is_file}


def folders(folder: str) -> list[str]:
    """The names of the folders directly in `folder`, sorted; none if the folder does not exist."""
    return sorted(name for name, info in _listed(folder) if info.type == pafs.FileType.Directory)


@retried
def _listed(folder: str) -> list[tuple[str, pafs.FileInfo]]:
    filesystem, path = locate(folder)
    found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return [(decoded_path(info).rpartition("/")[2], info) for info in found]


def opened(uri: str) -> pa.NativeFile:
    """Opens the file at `uri` for reading. Raises OSError if it is missing or not a regular file."""
    filesystem, path = locate(uri)
    if isinstance(filesystem, pafs.LocalFileSystem) and Path(path).exists() and not Path(path).is_file():
        raise OSError(f"{path!r} is not a regular file")  # opening a FIFO would wait for a writer
    # Not `open_input_stream`: it would read an object in pieces of 256 kB, each with a request of its own.
    return filesystem.open_input_file(path)


@retried
def read_bytes(uri: str) -> bytes:
    """The whole content of the file at `uri`."""
    with opened(uri) as file:
        return bytes(file.read())


def write_bytes(uri: str, content: bytes) -> None:
    """Writes all of `content` to `uri`, or nothing. Raises JobFailed if the write fails, as on a full disk."""
    with writing(uri):
        _write(uri, content)


@retried
def _write(uri: str, content: bytes) -> None:
    filesystem, path = locate(uri)
    storage.require_writable(uri)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)
        return
    with beside(path) as new, new.open("xb") as file:  # "x" fails on a link, which another user may have put there
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def beside(path: str) -> Iterator[Path]:
    """Yields a temporary path beside the local `path`. If the block succeeds, renames the file there to `path`."""
    new = Path(f"{path}.{os.getpid()}.tmp")
    try:
        new.unlink(missing_ok=True)
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(uri: str) -> Iterator[None]:
    """Turns an OSError of the block into a JobFailed that says what to do. `uri` is what the block writes."""
    try:
        yield
    except OSError as error:
        first = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "fix this"
        raise JobFailed(f"cannot write {uri!r} ({reason(error)}); {first} and run the same command again") from error


def reason(error: Exception) -> str:
    """The cause of `error` in one line, without the path and the text that Arrow and Google's library add."""
    text = " ".join(str(error).split()).rpartition("Detail: ")[2]
    text = text.partition(" error_info=")[0].rpartition("with a last message of ")[2]
    return re.sub(r"^\[errno \d+\] ", "", text, flags=re.IGNORECASE) or type(error).__name__


def make_folder(uri: str) -> None:
    """Creates the folder `uri` and its parents. Raises UserError if that fails."""
    filesystem, path = locate(uri)
    storage.require_writable(uri)
    try:
        retried(filesystem.create_dir)(path, recursive=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {uri!r} ({reason(error)}); choose another place") from error


@retried
def delete(uri: str) -> None:
    """Deletes the file at `uri` if there is one."""
    filesystem, path = locate(uri)
    storage.require_writable(uri)
    if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
        filesystem.delete_file(path)


def delete_all(uris: Iterable[str]) -> None:
    """Deletes the files at `uris`, many in parallel. Ignores files that don't exist."""
    for_each(delete, uris)


def delete_folder(uri: str) -> None:
    """Deletes the folder `uri` and everything in it."""
    filesystem, path = locate(uri)
    storage.require_writable(uri)
    filesystem.delete_dir(path)


def copy_folder(source: str, target: str) -> None:
    """Creates the folder `target`, and copies all files of the folder `source`, but no subfolders, into it."""
    make_folder(target)
    for_each(lambda name: write_bytes(join(target, name), read_bytes(join(source, name))), names(source))


def read_json(uri: str) -> Any:
    """Reads the JSON document at `uri`. Raises UserError if the file can't be read or is not JSON."""
    try:
        return strict_json.loads(read_bytes(uri))
    except FileNotFoundError as error:
        raise UserError(f"no file {uri!r}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{uri!r} is not JSON: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {uri!r}: {reason(error)}") from error


def write_json(uri: str, document: object) -> None:
    """Writes `document` to `uri` as indented JSON."""
    write_bytes(uri, (strict_json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
