"""Photos in tars as rows of a manifest: one tar at a time, in tasks, and never as Python objects of all rows.

A photo KEY.jpg in TAR gets the id `TAR/KEY` and the path `TAR#KEY.jpg`. Its content is not read. So 100 million photos
are listed in the time that it takes to find the headers in their tars.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim.app import cluster
from dim.app.tasks import in_order, spread
from dim.data import photos
from dim.io import files, tars, uris

_PHOTO = (".jpg", ".jpeg")


@dataclass(frozen=True)
class TarredPhotos:
    """The photos in `tars`, or only those whose keys are `chosen`.

    `listed` has the number of photos that a tar of this name should have, as far as it is known.
    """

    tars: list[str]
    chosen: pa.ChunkedArray | None = None
    listed: dict[str, int] = field(default_factory=dict)

    def rows(self, folder: str) -> Iterator[tuple[str, pa.Table, str | None]]:
        """Yields each tar in order: its path in a manifest in `folder`, its rows and, if any, what is wrong with it.

        The rows have the columns image_id and path. Works in Ray tasks if RAY_ADDRESS names a cluster.
        """
        paths = photos.manifest_paths([files.absolute(tar) for tar in self.tars], folder)
        units = list(zip(map(files.absolute, self.tars), paths, strict=True))
        with cluster.joined():
            if not cluster.is_local():
                cluster.require_shared(self.tars)
            found = in_order(spread(_rows_of, units, [self.chosen], stage="importing", unit="tars"))
            for tar, path, (table, problem) in zip(self.tars, paths, found, strict=True):
                yield path, table, problem or self._lack(tar, table.num_rows)

    def _lack(self, tar: str, rows: int) -> str | None:
        expected = self.listed.get(files.name(tar), rows)
        return None if rows == expected else f"the tar has {rows:,} of the {expected:,} photos that are listed"


def _rows_of(unit: tuple[str, str], chosen: pa.ChunkedArray | None) -> tuple[pa.Table, str | None]:
    """The rows of one tar, and what is wrong with it. Of a tar that is cut off, the rows up to there are returned."""
    (uri, path), problem = unit, None
    names = []
    try:
        for member in tars.members(uri):
            if member.name.lower().endswith(_PHOTO):
                names.append(member.name)
    except FileNotFoundError:
        problem = photos.MISSING
    except OSError as error:
        problem = files.reason(error)
    known = [name for name in names if name.isprintable()]  # other names may not be UTF-8
    if len(known) < len(names):
        problem = f"{len(names) - len(known)} photos have names that can't be printed"
    members = pa.array(known, pa.string())
    keys = pc.replace_substring_regex(pc.replace_substring_regex(members, r"^\./", ""), r"\.[^/]*$", "")
    first = np.sort(np.unique(np.asarray(keys.dictionary_encode().indices), return_index=True)[1])
    if len(first) < len(keys):
        problem = f"{len(keys) - len(first)} photos have the name of another one; the first of each is used"
    if chosen is not None:
        first = first[np.asarray(pc.is_in(keys, chosen))[first]]
    inside = pa.array([uris.encoded(name) for name in known]) if path.startswith(uris.FILE) else members
    table = pa.table({"image_id": _joined(f"{files.name(uri)}/", keys), "path": _joined(f"{path}#", inside)})
    return table.take(pa.array(first)), problem


def _joined(start: str, names: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(pa.scalar(start), names, "")
