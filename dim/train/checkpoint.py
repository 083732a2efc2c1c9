"""Checkpoints: the trained weights, the optimizer and the state of the run, as arrays and JSON; no pickle.

A checkpoint is `epoch-0003.npz` and, written after it, `epoch-0003.json`: the state, and size and sha256 of the arrays.
It counts when both stand, fit each other and can be read, so what a death tore is skipped for the one before. (Ray
Train writes its own list of checkpoints in place: a death while it is written leaves a run that can't be resumed.)
`beginning.npz` and `beginning.json` are the same of epoch 0, the network before the first step: it may turn out to be
the best, but nothing is resumed from it.

What a user has to be told of the network that a run keeps: that training did not help, or that nothing says so.
"""

import dataclasses
import io
import logging
import re
import typing
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dim.io import files, seal
from dim.train.config import TrainConfig

if typing.TYPE_CHECKING:
    from dim.model.backend import keras  # the job looks at checkpoints before it has a use for TensorFlow

log = logging.getLogger(__name__)

FOLDER = "checkpoints"  # within the run's


@dataclass
class State:
    """Where a run stands: epochs done, its figures so far, and the ids of the last mined triplets (T, 3).

    `map_…` are on the split that the run is judged on, `val_…` on split val: `before`, off the shelf, and `fitted`,
    before the first step. Random numbers are drawn from (seed, epoch), so that the epoch is the random state too.
    """

    epoch: int = 0
    map_before: float | None = None
    map_fitted: float | None = None
    val_before: float | None = None
    val_fitted: float | None = None
    unreadable: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    triplets: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.str_))

    def as_json(self) -> dict[str, Any]:
        """All but the triplets, which are kept with the arrays."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "triplets"}

    def val_maps(self) -> dict[int, float | None]:
        """The mAP on split val of each epoch done, and of the fitted network as epoch 0."""
        return {0: self.val_fitted} | {row["epoch"]: row["val_map"] for row in self.history}

    def best_first(self) -> list[int]:
        """The epochs done, and 0, by mAP on split val; without that, or where it is equal, the later one is better."""

        def score(epoch: tuple[int, float | None]) -> tuple[float, int]:
            return (0.0 if epoch[1] is None else float(epoch[1])), epoch[0]

        return [number for number, _ in sorted(self.val_maps().items(), key=score, reverse=True)]


def write(
    folder: str, state: State, variables: list["keras.Variable"], optimizer: "keras.optimizers.Optimizer"
) -> None:
    """Writes the checkpoint of `state` into `folder`."""
    named = {f"weight/{index}": variable.numpy() for index, variable in enumerate(variables)}
    named |= {f"optimizer/{index}": variable.numpy() for index, variable in enumerate(optimizer.variables)}
    image_ids, places = np.unique(state.triplets.astype(np.str_), return_inverse=True)  # an id stands in many triplets
    stream = io.BytesIO()
    np.savez(stream, image_ids=image_ids, triplets=places.reshape(-1, 3), **named)
    content = stream.getvalue()
    files.make_folder(folder)
    files.write_bytes(_path(folder, state.epoch, "npz"), content)
    files.write_json(_path(folder, state.epoch, "json"), {"state": state.as_json(), **_statistics(content)})


def read(
    folder: str, epoch: int, variables: list["keras.Variable"], optimizer: "keras.optimizers.Optimizer | None" = None
) -> State:
    """Restores the weights, and the optimizer if given, and returns the state; `epoch` is one of `whole`."""
    with np.load(io.BytesIO(files.read_bytes(_path(folder, epoch, "npz"))), allow_pickle=False) as arrays:
        _assign(variables, arrays, "weight")
        if optimizer is not None:
            _assign(optimizer.variables, arrays, "optimizer")
        triplets = arrays["image_ids"][arrays["triplets"]]
    return State(**files.read_json(_path(folder, epoch, "json"))["state"], triplets=triplets)


def whole(folder: str, epochs: Iterable[int]) -> int | None:
    """The first of `epochs` whose checkpoint is whole, None where there is none; says which it skips."""
    for epoch in epochs:
        if _is_whole(folder, epoch):
            return epoch
        log.warning("the checkpoint of epoch %d is damaged; the one before is used", epoch)
    return None


def newest_first(folder: str) -> list[int]:
    """The epochs of which `folder` has a checkpoint, whole or not."""
    found = (re.fullmatch(r"epoch-([0-9]{4,})\.json", name) for name in files.names(folder))
    return sorted((int(name[1]) for name in found if name), reverse=True)


def keep(folder: str, epochs: Collection[int]) -> None:
    """Deletes the other epochs' checkpoints, and what deaths left."""
    kept = {_path("", epoch, ending) for epoch in epochs for ending in ("npz", "json")}
    left = [name for name in files.names(folder) if name.startswith("epoch-") and name not in kept]
    counting = {name for name in left if name.endswith(".json")}  # without which a checkpoint no longer counts
    for those in (counting, {*left} - counting):
        files.delete_all(files.join(folder, name) for name in those)


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
            found = {name: arrays[name] for name in arrays}  # all: one may be what only pickle reads
        state = State(**known["state"], triplets=found["image_ids"][found["triplets"]])
        return state.epoch == epoch and sorted(state.best_first()) == list(range(epoch + 1))
    except Exception:  # whatever reading them raises, one of the two is missing or damaged itself
        return False


def _assign(variables: list["keras.Variable"], arrays: Any, kind: str) -> None:
    for index, variable in enumerate(variables):
        variable.assign(arrays[f"{kind}/{index}"])


def warnings(config: TrainConfig, state: State, kept: int, judged_on: str | None, after: float | None) -> Iterator[str]:
    """A line for each reason to doubt that the network of epoch `kept` (0: as fitted) is better than without training.

    `after` is its mAP on split `judged_on`.
    """
    maps = state.val_maps()
    best = maps[kept]
    if best is None:
        yield "there is no split val, or none of its photos has another of its label: the last epoch is kept"
    elif state.best_first()[0] == kept == 0:
        others = max((value for epoch, value in maps.items() if epoch and value is not None), default=0.0)
        yield (
            f"no epoch was better than the fitted network on split val (mAP {best:.4f}, the best epoch {others:.4f}), "
            f"which is kept; try a smaller --learning-rate than {config.learning_rate:g}"
        )
    if best is not None and state.val_before is not None and state.val_before > best:
        yield (
            f"{config.model!r} off the shelf is better on split val (mAP {state.val_before:.4f}) than what is kept "
            f"({best:.4f}); use it as it is, or try another --dimension or --power"
        )
    if kept and after is not None and state.map_fitted is not None and after < state.map_fitted:
        yield (
            f"mAP on split {judged_on} is {after:.4f} after training and was {state.map_fitted:.4f} with the fitted "
            "network: training did not help there"
        )
