"""What `auto` means on machines of each kind."""

import subprocess
from pathlib import Path

import pytest

from dim.model import devices


@pytest.mark.parametrize(("flags", "expected"), [("avx2 avx512_bf16 fma", "bfloat16"), ("avx2 avx512f", "float32")])
def test_of_a_cpu(monkeypatch, tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"flags\t: {flags}\n")
    monkeypatch.setattr(devices, "Path", lambda _: tmp_path / "cpuinfo")
    assert devices.best_precision(gpu=False) == expected


def test_of_a_machine_without_cpuinfo(monkeypatch):
    monkeypatch.setattr(devices, "Path", lambda _: Path("/nowhere"))
    assert devices.best_precision(gpu=False) == "float32"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("8.0\n", "bfloat16"),
        ("9.0\n9.0\n", "bfloat16"),
        ("7.5\n", "float32"),
        ("9.0\n7.0\n", "float32"),
        ("", "float32"),
        ("[N/A]\n", "float32"),
    ],
)
def test_of_gpus(monkeypatch, answer, expected):
    done = subprocess.CompletedProcess([], 0, stdout=answer)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert devices.best_precision(gpu=True) == expected


@pytest.mark.parametrize("error", [FileNotFoundError("nvidia-smi"), subprocess.TimeoutExpired("nvidia-smi", 30)])
def test_of_gpus_that_do_not_answer(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert devices.best_precision(gpu=True) == "float32"
