"""Modules of dim's as processes of their own, which import nothing from the folder that one stands in.

That folder is a place for data: whoever filled it may have put a file there that is named like a module.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import dim

_CODE = Path(dim.__file__).resolve().parents[1]


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs `module`, to be started in `environment()`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def started(module: str, stderr: int | IO[bytes]) -> "subprocess.Popen[bytes]":
    """`module` as a process that is asked by its stdin and answers by its stdout. Whoever starts it has to end it."""
    return subprocess.Popen(
        command(module),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=environment(),
        process_group=0,  # Ctrl-C is for the job, which ends it
    )


def environment() -> dict[str, str]:
    """This process's environment, for a child whose memory is limited and that imports the same, but for what is in the
    working directory.
    """
    return os.environ | import_path() | {"OPENBLAS_NUM_THREADS": "1"}  # each of its threads counts as memory


def import_path() -> dict[str, str]:
    """The variables by which another Python imports what this one does, but for what is in the working directory."""
    here = Path.cwd()  # which is left in only where it holds dim itself, as for a submitted job
    entries = [entry for entry in sys.path if entry and (Path(entry).resolve() != here or here == _CODE)]
    return {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, entries)), "PYTHONSAFEPATH": "1"}
