"""What each epoch came to: `history.csv` and TensorBoard events in the run's folder, on any storage, and MLflow."""

import csv
import io
import tempfile
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from dim import files
from dim.train.tracking import Tracking

# What the workers leave in the run's folder: the figures of each epoch, the photos that could not be read, and the
# trained model.
HISTORY, UNREADABLE, MODEL = "history.csv", "unreadable.csv", "model"


class History:
    """Writes a run's epochs; only one worker holds one."""

    def __init__(self, run: str, tracking: Tracking | None = None) -> None:
        self._run, self._tracking = run, tracking

    def write(self, epochs: list[dict[str, Any]]) -> None:
        """Writes all `epochs` (one dictionary each, of the same keys) and adds the last to TensorBoard and MLflow."""
        sheet = io.StringIO()
        writer = csv.DictWriter(sheet, fieldnames=list(epochs[-1]))
        writer.writeheader()
        writer.writerows(epochs)
        files.write_bytes(files.join(self._run, HISTORY), sheet.getvalue().encode())
        if self._tracking:
            self._tracking.epoch(epochs[-1])
        files.make_folder(files.join(self._run, "tensorboard"))
        # A file for each epoch, so that one that is done again after a death takes the place of the first.
        name = f"tensorboard/events.out.tfevents.{epochs[-1]['epoch']:010d}"
        files.write_bytes(files.join(self._run, name), _events(epochs[-1]))


def _events(figures: dict[str, Any]) -> bytes:
    """A whole file of events: an epoch's figures."""
    # Events can be written to paths only; a thread writes them, and only `close` waits for it.
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for name, value in figures.items():
                if value is not None and name != "epoch":
                    writer.add_scalar(name, value, figures["epoch"])
        (file,) = Path(folder).iterdir()
        return file.read_bytes()
