"""The arithmetic of the network: float32, or mixed with bfloat16 or float16 where the machine is made for it.

The GPUs that TensorFlow may use in this process.
"""

import subprocess
from pathlib import Path
from typing import Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def best(gpu: bool) -> str:
    """What `auto` means on this machine: bfloat16 where its CPU has AVX-512 BF16, or its GPU (compute capability of at
    least 8.0) supports it; else float32.
    """
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
    return min(capabilities, default=0.0) >= 8.0


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
    import ray  # noqa: PLC0415  (--help needs none)

    found: list[str] = ray.get_runtime_context().get_accelerator_ids()["GPU"] if ray.is_initialized() else []
    return found
