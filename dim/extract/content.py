"""Which photo a row was computed from: path, size, modification time and box. A changed photo has another content."""

import hashlib
import os
import posixpath
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
    rows = zip(files.infos(manifest.paths), manifest.table["path"].to_pylist(), manifest.boxes, strict=True)
    for info, path, box in rows:
        present.append(info.type == pafs.FileType.File)
        # The path as the manifest writes it: moving a folder with its manifest changes nothing.
        key = f"{path}\t{info.size}\t{info.mtime_ns}\t{box}"
        contents.append(hashlib.sha256(key.encode()).hexdigest()[:32])
    if not any(present):
        windows = " and use / where Windows uses \\" if "\\" in manifest.paths[0] else ""
        raise UserError(
            f"none of the {len(present)} photos of {manifest.uri!r} exists, the first at {manifest.paths[0]!r}; "
            f"paths are relative to the manifest's folder{windows}"
        )
    return Contents(contents, present)


def require_under(root: str, manifest: Manifest) -> None:
    """Raises UserError unless each photo lies under the folder `root`, links and `..` resolved."""
    top = f"{_resolved(root).rstrip('/')}/"
    for image_id, uri in zip(manifest.image_ids, manifest.paths, strict=True):
        if not _resolved(uri).startswith(top):
            raise UserError(f"image_id {image_id!r} of {manifest.uri!r} is at {uri!r}, outside --root {root!r}")


def _resolved(uri: str) -> str:
    if files.is_local(uri):
        return os.path.realpath(files.locate(uri)[1])
    return posixpath.normpath(uri.replace("://", ":/")).replace(":/", "://", 1)  # stores know no links
