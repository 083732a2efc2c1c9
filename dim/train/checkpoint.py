"""Checkpoints hold the trained weights, the optimizer and the state of the run as arrays and JSON, without pickle.

The checkpoint of epoch 3 consists of two files. `epoch-0003.npz` has the arrays. `epoch-0003.json` is written after it,
and has the state, and the size and the sha256 of the first file. A checkpoint is whole if both files exist, can be read
and fit each other. A run resumes from the newest whole checkpoint.

`beginning.npz` and `beginning.json` are the checkpoint of epoch 0: the network before the first step. This network may
turn out to be the best, but no run resumes from this checkpoint.

Ray Train's own checkpoints are not used. If Ray Train dies while it rewrites its checkpoint list, no run can resume.
"""

import dataclasses
import io
import logging
import re
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dim.evaluate import metrics
from dim.io import files, seal

if typing.TYPE_CHECKING:
    from dim.model.backend import keras  # the driver imports this module, but no TensorFlow

log = logging.getLogger(__name__)

FOLDER = "checkpoints"  # in the run's folder
_ARRAYS = {"triplets", "groups", "ap_before", "ap"}  # fields of `State` that are stored as arrays


@dataclass
class State:
    """The progress of a run. Random numbers depend only on the seed and the epoch, so no generator's state is kept."""

    epoch: int = 0  # number of epochs done
    map_before: float | None = None  # mAP of the network as it came, on the judged split (test, or else val)
    map_fitted: float | None = None  # like `map_before`, but with the PCA layer fitted, before the first step
    val_fitted: float | None = None  # like `map_fitted`, but on split val
    unreadable: int = 0  # number of photos that could not be read
    history: list[dict[str, Any]] = field(default_factory=list)  # the figures of each epoch done
    triplets: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.str_))  # image ids of the last mining
    groups: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.str_))  # its image ids and pseudo-labels
    most_similar: float | None = None  # the greatest cosine of its negatives, if there is a limit
    # The AP of each photo of split val, NaN if it has none: with the network as it came, and with that of `epoch`.
    ap_before: np.ndarray = field(default_factory=lambda: np.zeros(0))
    ap: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def as_json(self) -> dict[str, Any]:
        """All fields except the arrays."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _ARRAYS}

    @property
    def val_before(self) -> float | None:
        """Like `map_before`, but on split val."""
        return mean_of(self.ap_before)

    def val_maps(self) -> dict[int, float | None]:
        """The mAP on split val of each epoch done; epoch 0 is the network before the first step."""
        return {0: self.val_fitted} | {row["epoch"]: row["val_map"] for row in self.history}

    def epochs_without_gain(self) -> int:
        """The number of epochs since the mAP on split val was highest; 0 if there is no such mAP."""
        maps = [float(value or 0.0) for _, value in sorted(self.val_maps().items())]
        return self.epoch - maps.index(max(maps)) if any(maps) else 0

    def best_first(self) -> list[int]:
        """Sorts all epochs from 0 on by falling mAP on split val (0 if unknown). At equal mAP, the later is first."""
        maps = self.val_maps()
        return sorted(maps, key=lambda epoch: (float(maps[epoch] or 0.0), epoch), reverse=True)


def mean_of(ap: np.ndarray) -> float | None:
    """The mAP of queries whose AP is `ap` (n,). NaN stands for a query that has none. None if all have none."""
    return metrics.mean(ap[np.isfinite(ap)].tolist())


def write(
    folder: str, state: State, variables: list["keras.Variable"], optimizer: "keras.optimizers.Optimizer"
) -> None:
    """Writes the checkpoint of `state` into `folder`. Each variable is named by its position in `variables`."""
    named = {f"weight/{index}": variable.numpy() for index, variable in enumerate(variables)}
    named |= {f"optimizer/{index}": variable.numpy() for index, variable in enumerate(optimizer.variables)}
    named |= {"ap_before": state.ap_before, "ap": state.ap}
    # Each id is stored once. A label of a group is the id of one of its photos.
    ids = np.concatenate([state.triplets.ravel(), state.groups.ravel()]).astype(np.str_)
    image_ids, places = np.unique(ids, return_inverse=True)
    triplets, groups = places[: state.triplets.size], places[state.triplets.size :]
    stream = io.BytesIO()
    np.savez(stream, image_ids=image_ids, triplets=triplets.reshape(-1, 3), groups=groups.reshape(-1, 2), **named)
    content = stream.getvalue()
    files.make_folder(folder)
    files.write_bytes(_path(folder, state.epoch, "npz"), content)
    files.write_json(_path(folder, state.epoch, "json"), {"state": state.as_json(), **_statistics(content)})


def read(folder: str, epoch: int, variables: list["keras.Variable"], optimizer: "keras.optimizers.Optimizer") -> State:
    """Restores `variables` and `optimizer` from the checkpoint of `epoch`. Returns the run's state."""
    with np.load(io.BytesIO(files.read_bytes(_path(folder, epoch, "npz"))), allow_pickle=False) as arrays:
        _assign(variables, arrays, "weight")
        _assign(optimizer.variables, arrays, "optimizer")
        return _state(files.read_json(_path(folder, epoch, "json")), arrays)


def _state(document: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> State:
    image_ids = arrays["image_ids"]
    ids = {name: image_ids[arrays[name]] for name in ("triplets", "groups") if name in arrays}  # groups are newer
    return State(**document["state"], **ids, ap_before=arrays["ap_before"], ap=arrays["ap"])


def whole(folder: str, epochs: Iterable[int]) -> int | None:
    """The first of `epochs` whose checkpoint is whole, or None. Logs each damaged checkpoint before it."""
    for epoch in epochs:
        if _is_whole(folder, epoch):
            return epoch
        log.warning("the checkpoint of epoch %d is damaged; the one before is used", epoch)
    return None


def newest_first(folder: str) -> list[int]:
    """The epochs from 1 on that have a checkpoint in `folder`, whole or damaged, the newest first."""
    found = (re.fullmatch(r"epoch-([0-9]{4,})\.json", name) for name in files.names(folder))
    return sorted((int(name[1]) for name in found if name), reverse=True)


def keep(folder: str, epochs: Collection[int]) -> None:
    """Deletes all checkpoints and partial files of epochs that are not in `epochs`."""
    kept = {_path("", epoch, ending) for epoch in epochs for ending in ("npz", "json")}
    others = {name for name in files.names(folder) if name.startswith("epoch-")} - kept
    states = {name for name in others if name.endswith(".json")}
    for names in (states, others - states):  # the states first: arrays without a state are no checkpoint
        files.delete_all(files.join(folder, name) for name in names)


def _path(folder: str, epoch: int, ending: str) -> str:
    return files.join(folder, f"epoch-{epoch:04d}.{ending}" if epoch else f"beginning.{ending}")


def _statistics(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": seal.sha256(content)}


def _is_whole(folder: str, epoch: int) -> bool:
    try:
        known = files.read_json(_path(folder, epoch, "json"))
        content = files.read_bytes(_path(folder, epoch, "npz"))
        if not known.items() >= _statistics(content).items():
            return False
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays}  # reads all arrays; a pickled array raises an error
        state = _state(known, found)
        return state.epoch == epoch and sorted(state.best_first()) == list(range(epoch + 1))
    except Exception:  # damaged files raise all kinds of errors
        return False


def _assign(variables: list["keras.Variable"], arrays: Any, kind: str) -> None:
    for index, variable in enumerate(variables):
        variable.assign(arrays[f"{kind}/{index}"])
