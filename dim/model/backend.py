"""Keras as dim needs it, whatever KERAS_BACKEND and ~/.keras/keras.json are for the sake of other projects.

All of dim takes `keras` and `ops` from here. Importing this sets Keras's float type, epsilon and image format for the
process. The backend can't be changed once Keras is there, which TensorFlow imports, too: jobs set it in their
environment before all else (`dim.environment`).
"""

import os
import sys
from typing import Any

from dim.errors import UserError

BACKEND = "tensorflow"


def _imported() -> Any:
    """Keras with the settings that dim needs. Raises UserError where the process has imported it on another backend."""
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = BACKEND  # which wins over the file
    import keras  # noqa: PLC0415  (what comes before counts)

    if (found := keras.config.backend()) != BACKEND:
        raise UserError(
            f"Keras runs on {found!r} in this process, and dim needs {BACKEND!r}; set KERAS_BACKEND={BACKEND} before "
            "Keras or TensorFlow is imported"
        )
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    return keras


keras = _imported()
ops = keras.ops
