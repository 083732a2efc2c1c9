"""Which photo a row was computed from: path, size, modification time and box. A changed photo has another content."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.fs as pafs

from dim import files
from dim.data.manifest import Manifest
from dim.errors import UserError


@dataclass(frozen=True)
class Contents:
    """For each row of a manifest: its content (a sha256) and whether its file exists."""

    contents: list[str]
    present: list[bool]


def of_manifest(manifest: Manifest) -> Contents:
    """Looks at each photo's size and modification time.

    Raises UserError where none of the photos exists: a wrong folder, not bad luck.
    """
    contents, present = [], []
    rows = zip(_looked_at(manifest.paths), manifest.table["path"].to_pylist(), manifest.boxes, strict=True)
    for info, path, box in rows:
        present.append(info.type == pafs.FileType.File)
        # The path as the manifest writes it: moving a folder with its manifest changes nothing.
        key = f"{path}\t{info.size}\t{info.mtime_ns}\t{box}"
        contents.append(hashlib.sha256(key.encode()).hexdigest()[:32])
    if not any(present):
        raise UserError(
            f"none of the {len(present)} photos of {manifest.uri!r} exists, the first at {manifest.paths[0]!r}; "
            "paths are relative to the manifest's folder"
        )
    return Contents(contents, present)


def _looked_at(uris: Sequence[str]) -> list[pafs.FileInfo]:
    groups: dict[int, tuple[pafs.FileSystem, list[int], list[str]]] = {}
    for row, uri in enumerate(uris):
        filesystem, path = files.locate(uri)
        _, rows, paths = groups.setdefault(id(filesystem), (filesystem, [], []))
        rows.append(row)
        paths.append(path)
    found: dict[int, pafs.FileInfo] = {}
    for filesystem, rows, paths in groups.values():
        # All at once: an object store answers many questions at a time.
        found |= zip(rows, filesystem.get_file_info(paths), strict=True)
    return [found[row] for row in range(len(uris))]


def require_under(root: str, manifest: Manifest) -> None:
    """Raises UserError unless each photo lies under the folder `root`, links and `..` resolved."""
    top = os.path.realpath(root) + os.sep
    for image_id, uri in zip(manifest.image_ids, manifest.paths, strict=True):
        if not files.is_local(uri) or not os.path.realpath(uri).startswith(top):
            raise UserError(f"image_id {image_id!r} of {manifest.uri!r} is at {uri!r}, outside --root {root!r}")
