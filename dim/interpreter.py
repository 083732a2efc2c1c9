"""Which Python runs a job: one that has Ray.

A job may be submitted as a file, `ray job submit --working-dir . -- jobs/train.py`. Its first line then takes the first
`python3` on the cluster's PATH, which need not be the one that Ray was installed for.
"""

import importlib.util
import os
import sys
from pathlib import Path

from dim.errors import UserError

_AS_A_FILE = "job"  # the option -X of the jobs' first line
_WORKERS = "--python_worker_command="  # of Ray's raylet: how it starts its own workers


def require_ray() -> None:
    """Starts the job again under the cluster's Python where it runs as a file and this Python has no Ray.

    Raises UserError, naming this Python, where there is no other to take, or where the user named this one.
    """
    if importlib.util.find_spec("ray") is not None:
        return
    if _AS_A_FILE in sys._xoptions and (python := _of_the_cluster()) is not None:
        os.execv(python, [python, *sys.argv])
    raise UserError(
        f"{sys.executable} has no Ray; run the job with the Python of the environment that dim is installed in "
        "(submitted as jobs/NAME.py, without python, it finds that by itself)"
    )


def _of_the_cluster() -> str | None:
    """The Python of Ray's workers, by the raylet that this process descends from; None where it descends from none."""
    process = os.getpid()
    while process > 1:
        try:
            arguments = Path(f"/proc/{process}/cmdline").read_text(errors="replace").split("\0")
            # The name of a program, in parentheses, may hold anything.
            process = int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            return None
        for argument in arguments:
            if argument.startswith(_WORKERS):
                return argument.removeprefix(_WORKERS).split()[0]
    return None
