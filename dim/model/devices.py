"""Finds the precision in which this machine computes fastest, and the GPUs that this process may use."""

import contextlib
import subprocess
from pathlib import Path
from typing import Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}  # precision → Keras's name


def best_precision(gpu: bool) -> str:
    """Returns what "auto" means: "bfloat16" if this machine's CPU (`gpu`: every GPU) supports it, else "float32"."""
    return "bfloat16" if (_gpu_has_bfloat16() if gpu else _cpu_has_bfloat16()) else "float32"


def _cpu_has_bfloat16() -> bool:
    information = Path("/proc/cpuinfo")
    return information.exists() and "avx512_bf16" in information.read_text(encoding="utf-8")


def _gpu_has_bfloat16() -> bool:
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        capabilities = [float(line) for line in answer.splitlines()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return False
    return min(capabilities, default=0.0) >= 8.0  # the first compute capability with bfloat16


def use_assigned_gpus() -> None:
    """Lets TensorFlow use only the GPUs that Ray assigned to this task or actor, and only the memory that it needs.

    Call this before TensorFlow computes anything. Otherwise TensorFlow takes all memory of every GPU that it sees, and
    Ray 2.60 hides GPUs neither from a driver nor from a worker to which it assigned none.
    """
    import tensorflow as tf  # noqa: PLC0415  (most drivers do not need TensorFlow)

    if not assigned_gpus():
        if tf.config.get_visible_devices("GPU"):
            tf.config.set_visible_devices([], "GPU")
        return
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def share_gpus() -> bool:
    """Lets TensorFlow take only the GPU memory that it needs, in a process of the user's. Returns whether it has a GPU.

    If TensorFlow has begun to use a GPU, the settings stay as they are.
    """
    import tensorflow as tf  # noqa: PLC0415

    gpus = tf.config.get_visible_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)
    return bool(gpus)


def assigned_gpus() -> list[str]:
    """Returns the ids of the GPUs that Ray has assigned to this task or actor. In a driver, the list is empty."""
    import ray  # noqa: PLC0415  (--help does not need Ray)

    found: list[str] = ray.get_runtime_context().get_accelerator_ids()["GPU"] if ray.is_initialized() else []
    return found
