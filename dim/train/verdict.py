"""What a user has to be told of the network that a run keeps: that training did not help, or that nothing says so."""

from collections.abc import Iterator

from dim.train.checkpoint import State
from dim.train.config import TrainConfig


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
