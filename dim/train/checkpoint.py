"""Checkpoints: the trained weights, the optimizer and the state of the run, as arrays and JSON; no pickle."""

import dataclasses
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

ARRAYS, STATE = "arrays.npz", "state.json"


@dataclass
class State:
    """Where a run stands: epochs done, its figures so far, and the rows of the last mined triplets (T, 3).

    Random numbers are drawn from (seed, epoch), so that the epoch is the random state too.
    """

    epoch: int = 0
    map_before: float | None = None
    map_fitted: float | None = None
    unreadable: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    triplets: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))

    def as_json(self) -> dict[str, Any]:
        """All but the triplets, which are kept with the arrays."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "triplets"}


def write(folder: Path, state: State, variables: list[keras.Variable], optimizer: keras.optimizers.Optimizer) -> None:
    """Writes a checkpoint into `folder`."""
    named = {f"weight/{index}": variable.numpy() for index, variable in enumerate(variables)}
    named |= {f"optimizer/{index}": variable.numpy() for index, variable in enumerate(optimizer.variables)}
    np.savez(folder / ARRAYS, triplets=state.triplets, **named)
    (folder / STATE).write_text(json.dumps(state.as_json()), encoding="utf-8")


def read(folder: Path, variables: list[keras.Variable], optimizer: keras.optimizers.Optimizer | None = None) -> State:
    """Restores the weights, and the optimizer if given, and returns the state.

    Raises ValueError where the checkpoint is torn or of another network.
    """
    try:
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            _assign(variables, arrays, "weight")
            if optimizer is not None:
                _assign(optimizer.variables, arrays, "optimizer")
            triplets = arrays["triplets"]
        return State(**json.loads((folder / STATE).read_text(encoding="utf-8")), triplets=triplets)
    except (OSError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"the checkpoint in {folder} is not whole: {error}") from error


def _assign(variables: list[keras.Variable], arrays: Any, kind: str) -> None:
    for index, variable in enumerate(variables):
        variable.assign(arrays[f"{kind}/{index}"])
