"""Files on any storage: local paths, `file:///…`, `s3://…`, `gs://…`.

Everything written here is written beside its final name and renamed, so that a reader never sees half a file.
(An object store shows an object only once it is whole; there, the rename is the store's own.)
What a store fails to do is tried again, as `dim.io.storage` says. Nothing is written where `dim.io.storage` forbids it.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from dim.errors import JobFailed, UserError
from dim.io import listings, storage, strict_json
from dim.io.storage import at_once, finish, patient
from dim.io.uris import FILE, canonical, encoded, parts

_ASKED_OF_DISK = 100  # questions of a thread at a time

locate = storage.locate


def is_local(uri: str) -> bool:
    """Whether `uri` lies on this machine's own disks."""
    return parts(uri)[0] in ("", "file")


def absolute(uri: str) -> str:
    """`uri`, a local path made absolute, a file:// URI percent-encoded. Raises UserError as `uris.parts` does."""
    if uri.startswith(FILE):
        return canonical(uri)
    scheme, path = parts(uri)
    return uri if scheme else path


def join(folder: str, name: str) -> str:
    """The plain `name` inside `folder`; one that is absolute or a URI stays as it is."""
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
    """The name of the file or folder at `uri`, decoded, within the folder that holds it."""
    return parts(uri)[1].rpartition("/")[2]


def exists(uri: str) -> bool:
    """Whether a file or folder stands at `uri`."""
    return bool(info(uri).type != pafs.FileType.NotFound)


def is_folder(uri: str) -> bool:
    """Whether a folder stands at `uri`."""
    return bool(info(uri).type == pafs.FileType.Directory)


def path_of(info: pafs.FileInfo) -> str:
    """The path of what a folder holds. Raises UserError where it is not UTF-8: nothing could be opened by it."""
    try:
        return str(info.path)
    except UnicodeDecodeError as error:
        raise UserError(f"the file name {error.object!r} is not UTF-8; rename it") from error


def info(uri: str) -> pafs.FileInfo:
    """Type, size and modification time of what stands at `uri`."""
    filesystem, path = locate(uri)
    try:
        return patient(filesystem.get_file_info)(path)
    except OSError:
        if not isinstance(filesystem, pafs.LocalFileSystem):
            raise
        return pafs.FileInfo(path, pafs.FileType.NotFound)  # a name that is too long, say


def infos(uris: Sequence[str]) -> list[pafs.FileInfo]:
    """Type, size and modification time of what stands at each of `uris`, which are asked for many at a time."""
    local = [uri for uri in uris if is_local(uri)]
    # Of a disk in the network many are asked at once; to hand over each of them takes as long as to ask an own disk.
    parts = [local[start : start + _ASKED_OF_DISK] for start in range(0, len(local), _ASKED_OF_DISK)]
    found = dict(zip(local, chain.from_iterable(at_once(_infos_of_disk, parts)), strict=True))
    if len(local) < len(uris):
        found |= listings.infos([uri for uri in uris if not is_local(uri)], info)
    return [found[uri] for uri in uris]


def _infos_of_disk(uris: Sequence[str]) -> list[pafs.FileInfo]:
    try:
        return list(pafs.LocalFileSystem().get_file_info([parts(uri)[1] for uri in uris]))
    except OSError:  # which of them it is, only questions about each tell
        return list(map(info, uris))


def require_at_most(uri: str, most: int, what: str) -> None:
    """Raises UserError where the file at `uri`, `what`, has more than `most` bytes; it could be larger than memory."""
    size = info(uri).size or 0
    if size > most:
        raise UserError(f"{uri!r} has {size:,} bytes; the limit for {what} is {most:,}")


def make_folder(uri: str) -> None:
    """Creates the folder `uri` and its parents. Raises UserError where that cannot be."""
    filesystem, path = locate(uri)
    storage.require_open(uri)
    try:
        patient(filesystem.create_dir)(path, recursive=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {uri!r} ({reason(error)}); choose another place") from error


def names(folder: str) -> list[str]:
    """The names of the files directly in `folder`, sorted; empty where there is no folder."""
    return _within(folder, pafs.FileType.File)


def folders(folder: str) -> list[str]:
    """The names of the folders directly in `folder`, sorted; empty where there is no folder."""
    return _within(folder, pafs.FileType.Directory)


@patient
def _within(folder: str, kind: pafs.FileType) -> list[str]:
    filesystem, path = locate(folder)
    found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(path_of(info).rpartition("/")[2] for info in found if info.type == kind)


def opened(uri: str) -> pa.NativeFile:
    """The file at `uri`, open for reading. Raises OSError where there is none, or something that is no file."""
    filesystem, path = locate(uri)
    if isinstance(filesystem, pafs.LocalFileSystem) and Path(path).exists() and not Path(path).is_file():
        raise OSError(f"{path!r} is no file")  # on a FIFO, opening would wait for a writer
    # Of known length: a stream is read in pieces of 256 kB, and from an object store each of them is a request.
    return filesystem.open_input_file(path)


@patient
def read_bytes(uri: str) -> bytes:
    """The whole of the file at `uri`."""
    with opened(uri) as file:
        return bytes(file.read())


def write_bytes(uri: str, content: bytes) -> None:
    """Writes `content` to `uri` at once: whole or not at all. Raises JobFailed where it can't, as on a full disk."""
    with writing(uri):
        _write(uri, content)


@patient
def _write(uri: str, content: bytes) -> None:
    filesystem, path = locate(uri)
    storage.require_open(uri)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)
        return
    beside = Path(f"{path}.{os.getpid()}.tmp")
    try:
        beside.unlink(missing_ok=True)
        with beside.open("xb") as file:  # not through a link that another has put there
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def writing(uri: str) -> Iterator[None]:
    """Within the block `uri` is written. Raises JobFailed, which says what to do, for an OSError."""
    try:
        yield
    except OSError as error:
        first = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        raise JobFailed(f"cannot write {uri!r} ({reason(error)}); {first} and run the same command again") from error


def reason(error: Exception) -> str:
    """What is wrong, in one line, without the path that Arrow puts before and what Google's library puts around."""
    said = " ".join(str(error).split()).rpartition("Detail: ")[2]
    return said.partition(" error_info=")[0].rpartition("with a last message of ")[2] or type(error).__name__


def delete_all(uris: Iterable[str]) -> None:
    """Deletes the files at `uris`, as far as there are any, many at a time."""
    finish(at_once(delete, uris))


@patient
def delete(uri: str) -> None:
    """Deletes the file at `uri`, if there is one."""
    filesystem, path = locate(uri)
    storage.require_open(uri)
    if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
        filesystem.delete_file(path)


def delete_folder(uri: str) -> None:
    """Deletes the folder `uri` with all that is in it."""
    filesystem, path = locate(uri)
    storage.require_open(uri)
    filesystem.delete_dir(path)


def copy_folder(source: str, target: str) -> None:
    """Copies the files directly in the folder `source` into the folder `target`, which is made."""
    make_folder(target)
    finish(at_once(lambda name: write_bytes(join(target, name), read_bytes(join(source, name))), names(source)))


def read_json(uri: str) -> Any:
    """The JSON document at `uri`. Raises UserError where it can't be read or is not JSON."""
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
