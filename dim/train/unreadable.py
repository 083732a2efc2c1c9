"""The photos that a run leaves out because they cannot be read: which, and why."""

import logging

import pyarrow as pa

from dim import files, sheets
from dim.data.reasons import summed
from dim.train.history import UNREADABLE
from dim.train.photos import Photos

log = logging.getLogger(__name__)


def tell(run: str, photos: Photos, reasons: dict[int, str]) -> None:
    """Says how many there are and why, by `reasons` (row → why), and lists them in the folder `run`."""
    where = files.join(run, UNREADABLE)
    files.delete(where)  # of a run that died before its first step
    if not reasons:
        return
    rows = sorted(reasons)
    columns = {
        "image_id": [photos.image_ids[row] for row in rows],
        "path": [photos.paths[row] for row in rows],
        "label": [photos.labels[row] for row in rows],
        "reason": [reasons[row] for row in rows],
    }
    sheets.write(where, pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns])))
    log.warning(
        "photos that could not be read: %d (%s); they are left out; see %s", len(rows), summed(columns["reason"]), where
    )
