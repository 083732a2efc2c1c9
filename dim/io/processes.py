"""Runs a module of dim in a second process, which imports nothing from the current folder.

A stranger may have put a file with the name of a Python module into the current folder.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import dim

_CODE = Path(dim.__file__).resolve().parents[1]


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs `module`. Run it with the environment `child_environment()`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def start(module: str, stderr: int | IO[bytes] | None) -> "subprocess.Popen[bytes]":
    """Starts `module`, which reads requests from stdin and answers on stdout. The caller has to end the process."""
    return subprocess.Popen(
        command(module),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=child_environment(),
        process_group=0,  # Ctrl-C reaches only the job, which then ends the new process
    )


def child_environment() -> dict[str, str]:
    """The environment for a child process that may have little memory: this process's, and `import_path()`."""
    return os.environ | import_path() | {"OPENBLAS_NUM_THREADS": "1"}  # each thread reserves memory


def import_path() -> dict[str, str]:
    """The environment variables that let another Python import what this Python can, except from the current folder.

    The current folder remains importable only if it holds dim itself, as in a submitted job.
    """
    here = Path.cwd()
    entries = [entry for entry in sys.path if entry and (Path(entry).resolve() != here or here == _CODE)]
    return {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, entries)), "PYTHONSAFEPATH": "1"}
