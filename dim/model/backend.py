"""Keras as dim needs it, whatever KERAS_BACKEND and ~/.keras/keras.json are for the sake of other projects.

All of dim takes `keras` and `ops` from here. Importing this sets Keras's float type, epsilon and image format for the
process. The backend can't be changed once Keras is there, which TensorFlow imports, too: jobs set it in their
environment before all else (`dim.app.environment`). Where TensorFlow is not installed, no job can run, but the layers
can be tried on the backend that there is.
"""

import importlib.util
import os
import sys
from typing import Any

from dim.errors import UserError

BACKEND = "tensorflow"


def _imported() -> Any:
    """Keras with the settings that dim needs. Raises UserError where the process has imported it on another backend."""
    jobs_can_run = importlib.util.find_spec("tensorflow") is not None
    if jobs_can_run and "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = BACKEND  # which wins over the file
    import keras  # noqa: PLC0415  (what comes before counts)

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
