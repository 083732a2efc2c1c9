"""The arithmetic of the network: float32, or mixed with bfloat16 or float16 where the machine is made for it."""

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
