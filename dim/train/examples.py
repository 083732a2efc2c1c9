"""What a run keeps for people to look at: the hardest triplets of each mining, and what queries find before and after.

`hardest/epoch-001.parquet` and so on are the heads of what mine.py writes; `found_before.parquet` and
`found_after.parquet` have, of the judged split, what `validate.rankings` returns.
"""

import re

import numpy as np
import pyarrow as pa

from dim import files, storage, tables
from dim.mine.triplets import Triplets

KEPT = 100  # triplets of an epoch
BEFORE, AFTER = "before", "after"


def keep_hardest(run: str, epoch: int, triplets: Triplets, image_ids: np.ndarray) -> None:
    """Writes the hardest of `triplets`, whose positions are those of `image_ids`, mined in `epoch` (from 1)."""
    files.make_folder(files.join(run, "hardest"))
    first = triplets.take(np.arange(min(KEPT, triplets.kept)))
    tables.write(files.join(run, f"hardest/epoch-{epoch:03}.parquet"), first.table(image_ids))


def hardest(run: str) -> dict[int, pa.Table]:
    """The hardest triplets by epoch, ascending."""
    folder = files.join(run, "hardest")
    epochs = {
        int(number): name for name in files.names(folder) for number in re.findall(r"epoch-(\d+)\.parquet$", name)
    }
    found = storage.at_once(lambda epoch: tables.read(files.join(folder, epochs[epoch])), sorted(epochs))
    return dict(zip(sorted(epochs), found, strict=True))


def keep_found(run: str, moment: str, rankings: pa.Table) -> None:
    """Writes what the queries find `BEFORE` or `AFTER` the training."""
    tables.write(files.join(run, f"found_{moment}.parquet"), rankings)


def found(run: str, moment: str) -> pa.Table:
    """What the queries found then; no row where it was not kept."""
    uri = files.join(run, f"found_{moment}.parquet")
    if files.exists(uri):
        return tables.read(uri)
    return pa.table({name: pa.array([]) for name in ("query_id", "ap", "found", "scores")})
