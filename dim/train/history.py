"""What each epoch came to: `history.csv` and TensorBoard events in the run's folder, on any storage, and MLflow."""

import csv
import io
import tempfile
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from dim import files
from dim.train.task import HISTORY
from dim.train.tracking import Tracking


class History:
    """Writes a run's epochs; only one worker holds one."""

    def __init__(self, run: str, tracking: Tracking | None = None) -> None:
        self._run, self._tracking = run, tracking
        # Events can be written to paths only: here, from where they are copied as they grow.
        self._local = tempfile.TemporaryDirectory()
        self._writer = SummaryWriter(self._local.name)

    def write(self, epochs: list[dict[str, Any]]) -> None:
        """Writes all `epochs` (one dictionary each, of the same keys) and adds the last to TensorBoard and MLflow."""
        sheet = io.StringIO()
        writer = csv.DictWriter(sheet, fieldnames=list(epochs[-1]))
        writer.writeheader()
        writer.writerows(epochs)
        files.write_bytes(files.join(self._run, HISTORY), sheet.getvalue().encode())
        for name, value in epochs[-1].items():
            if value is not None and name != "epoch":
                self._writer.add_scalar(name, value, epochs[-1]["epoch"])
        self._writer.flush()
        if self._tracking:
            self._tracking.epoch(epochs[-1])
        files.make_folder(files.join(self._run, "tensorboard"))
        for events in Path(self._local.name).iterdir():
            files.write_bytes(files.join(self._run, f"tensorboard/{events.name}"), events.read_bytes())
