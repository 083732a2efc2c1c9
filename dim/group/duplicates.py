"""Which of the copies of a photo to keep, and which to delete. Nothing is deleted here.

Of a group of copies, the photo with the most pixels is kept; of equal ones the sharpest; then the largest file; then
the first image id. Sharpness is the variance of the Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield
microscopy: a comparative study", 2000), at the same size for all photos.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from dim.app import tasks
from dim.data import isolated, photos
from dim.data.limits import DecodeError
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.io import seal

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("keep", "delete", "why")]
    + [("similarity", pa.float64()), ("keep_path", pa.string()), ("delete_path", pa.string())]
)
IDENTICAL = "the files are identical"
_SIDE = 256  # the longest side at which sharpness is measured
_PHOTOS = 32  # of a unit of work
_SHARPER = 1.05  # a smaller ratio of two sharpnesses says nothing


@dataclass(frozen=True)
class FileFacts:
    """What decides which photo is kept: the checksum and the bytes of its file, its pixels, and its sharpness."""

    sha256: str
    size: int
    width: int
    height: int
    sharpness: float


@dataclass(frozen=True)
class Duplicate:
    """The photo `delete` is a copy of the photo `keep`; both are positions in the manifest. `why` says what decided."""

    keep: int
    delete: int
    why: str


def of_groups(chosen: Manifest, groups: Sequence[np.ndarray], workers: int | None) -> list[Duplicate]:
    """The duplicates among the photos of each group of copies: their positions in `chosen`, in the order of image ids.

    A photo that can't be read, is a part of a photo, or has the path of a photo before it, is left out.
    """
    asked = np.unique(np.concatenate([np.zeros(0, np.int64), *groups]))
    some = replace(chosen, table=chosen.table.take(pa.array(asked)))
    paths = {row: path for row, path, box in zip(asked.tolist(), some.paths, some.boxes, strict=True) if box is None}
    rows = list(paths)
    units = [[paths[row] for row in rows[start : start + _PHOTOS]] for start in range(0, len(rows), _PHOTOS)]
    facts: dict[int, FileFacts] = {}
    for position, found in tasks.spread(_facts, units, workers=workers, stage="checking", size=len, unit="copies"):
        first = position * _PHOTOS
        facts |= {row: one for row, one in zip(rows[first : first + _PHOTOS], found, strict=True) if one}
    return [pair for group in groups for pair in _of_group(group.tolist(), paths, facts)]


def _of_group(group: list[int], paths: dict[int, str], facts: dict[int, FileFacts]) -> Iterator[Duplicate]:
    distinct = list({paths[row]: row for row in reversed(group) if row in facts}.values())[::-1]
    if len(distinct) < 2:
        return
    best = distinct[0]
    for row in distinct[1:]:
        best = row if _better(facts[row], facts[best]) else best
    for row in distinct:
        if row != best:
            yield Duplicate(best, row, _why(facts[row], facts[best]))


def table(chosen: Manifest, found: Sequence[Duplicate], similarities: np.ndarray) -> pa.Table:
    """The table of duplicates.csv: first identical files, then the most similar copies. `similarities` are (P,)."""
    kept, gone = (replace(chosen, table=chosen.table.take(pa.array(rows, pa.int64())))
                  for rows in ([pair.keep for pair in found], [pair.delete for pair in found]))  # fmt: skip
    why = [pair.why for pair in found]
    columns = [kept.ids, gone.ids, pa.array(why, pa.string()), np.round(similarities, 6), kept.uris, gone.uris]
    made = pa.table(columns, schema=SCHEMA)
    made = made.append_column("order", pa.array([one != IDENTICAL for one in why], pa.bool_()))
    keys = [("order", "ascending"), ("similarity", "descending"), ("keep", "ascending"), ("delete", "ascending")]
    return made.sort_by(keys).drop_columns("order")


def _better(one: FileFacts, other: FileFacts) -> bool:
    """Whether to keep `one` rather than `other`, which comes first by its image id."""
    if one.width * one.height != other.width * other.height:
        return one.width * one.height > other.width * other.height
    if max(one.sharpness, other.sharpness) > _SHARPER * min(one.sharpness, other.sharpness):
        return one.sharpness > other.sharpness
    return one.size > other.size


def _why(one: FileFacts, kept: FileFacts) -> str:
    if one.sha256 == kept.sha256:
        return IDENTICAL
    if one.width * one.height < kept.width * kept.height:
        return f"{one.width} × {one.height} pixels, not {kept.width} × {kept.height}"
    if kept.sharpness > _SHARPER * one.sharpness:
        return f"less sharp: {one.sharpness:.0f}, not {kept.sharpness:.0f}"
    return f"{one.size:,} bytes, not {kept.size:,}"


def _facts(paths: list[str]) -> list[FileFacts | None]:
    """The facts of each photo; None if it can't be read."""
    return [_fact(path) for path in paths]


def _fact(path: str) -> FileFacts | None:
    try:
        content = photos.read(path)
        found = isolated.decode(content, _SIDE, "long-side", scaled=True)
    except (DecodeError, OSError, UserError):
        return None
    grey = found.pixels.mean(axis=2)
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    sharpness = float(laplacian.var()) if laplacian.size else 0.0
    return FileFacts(seal.sha256(content), len(content), found.width, found.height, sharpness)
