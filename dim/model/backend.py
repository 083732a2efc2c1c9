"""Imports Keras with the settings that dim needs. They override KERAS_BACKEND and ~/.keras/keras.json.

All modules of dim import `keras` and `ops` from here. The import sets Keras's float type, epsilon and image format for
the process. Importing Keras fixes the backend, and TensorFlow imports Keras, too. So jobs set the backend before they
import anything else (`dim.app.environment`). Jobs need TensorFlow; the layers run on any backend of Keras.
"""

import importlib.util
import os
import sys
from typing import Any

from dim.errors import UserError

BACKEND = "tensorflow"


def _imported() -> Any:
    """Imports and configures Keras. Raises UserError if the process has already imported it with another backend."""
    jobs_can_run = importlib.util.find_spec("tensorflow") is not None
    if jobs_can_run and "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = BACKEND  # Keras prefers this variable to keras.json
    import keras  # noqa: PLC0415  (after KERAS_BACKEND is set)

    if jobs_can_run and (found := keras.config.backend()) != BACKEND:
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
