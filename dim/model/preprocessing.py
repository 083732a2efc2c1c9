"""What each backbone expects of its input, as one layer at the head of the network."""

from dataclasses import dataclass
from typing import Any

from dim.model.backend import keras, ops


@dataclass(frozen=True)
class Preprocessing:
    """Channel order, then (x − mean) / scale for each channel; `mean` and `scale` in the order after reordering."""

    order: str
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]


PREPROCESSINGS = {
    "caffe": Preprocessing("bgr", (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
    "unit": Preprocessing("rgb", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    "symmetric": Preprocessing("rgb", (128.0, 128.0, 128.0), (128.0, 128.0, 128.0)),
    "torch": Preprocessing("rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}


@keras.saving.register_keras_serializable(package="dim")
class Preprocess(keras.layers.Layer):  # type: ignore[misc]
    """uint8 RGB (N, H, W, 3) → float32, as the `PREPROCESSINGS` entry `mode` says."""

    def __init__(self, mode: str, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "name": "preprocess", "trainable": False} | kwargs, autocast=False)
        self.mode = mode

    def call(self, images: Any) -> Any:
        """Reorders, centres and scales the channels."""
        how = PREPROCESSINGS[self.mode]
        x = ops.cast(images, "float32")
        if how.order == "bgr":
            x = ops.flip(x, axis=-1)
        return (x - ops.convert_to_tensor(how.mean)) / ops.convert_to_tensor(how.scale)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape stays."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The mode, for `.keras` files."""
        return {**super().get_config(), "mode": self.mode}
