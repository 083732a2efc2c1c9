"""The GPUs that TensorFlow may use in this process."""

import ray


def keep_assigned() -> None:
    """Leaves TensorFlow the GPUs that Ray has assigned to this task or actor, whose memory it takes as it needs it.

    All others are hidden from it, for it would take all of their memory: Ray 2.60 hides none from a worker to which it
    has assigned none, and a driver has none at all. To be called before TensorFlow computes anything.
    """
    import tensorflow as tf  # noqa: PLC0415  (a driver that needs no TensorFlow does without it)

    if not assigned():
        if tf.config.get_visible_devices("GPU"):
            tf.config.set_visible_devices([], "GPU")
        return
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def assigned() -> list[str]:
    """The ids of the GPUs that Ray has assigned to this task or actor, which no other is to use."""
    found: list[str] = ray.get_runtime_context().get_accelerator_ids()["GPU"] if ray.is_initialized() else []
    return found
