"""The console command `dim`: `dim train …` does what `python jobs/train.py …` does."""

import importlib
import logging
import sys
from collections.abc import Callable
from typing import NoReturn

from dim.app import cli, config, logs
from dim.errors import UserError

# In the order in which photos go through them.
JOBS = [
    "import", "split", "extract", "whiten", "mine", "train",
    "index", "search", "evaluate", "audit", "group", "export", "nightly",
]  # fmt: skip


def run_job(name: str) -> NoReturn:
    """Runs the job `name`, one of `JOBS`, with the arguments of this process. Exits with the status of the job."""
    main_of_job: Callable[[], NoReturn] = importlib.import_module(f"dim.jobs.{name}").main
    main_of_job()


def main() -> NoReturn:
    """Runs `dim JOB FLAGS…`. Exits with the status of the job, or with 2 if there is no such job."""
    program, *arguments = sys.argv
    if arguments[:1] in (["-h"], ["--help"]):
        print(_help())
        sys.exit(cli.DONE)
    try:
        if not arguments:
            raise UserError("no job was given; `dim --help` lists the jobs")
        name = config.one_of("job", arguments[0], JOBS)
    except UserError as error:
        logs.say(logging.ERROR, f"error: {error}")
        sys.exit(cli.WRONG_USAGE)
    sys.argv = [f"{program} {name}", *arguments[1:]]  # argparse shows the name of the program
    run_job(name)


def _help() -> str:
    lines = ["usage: dim JOB [FLAGS]", "", "dim JOB --help describes a job and its flags:", ""]
    for name in JOBS:
        description = importlib.import_module(f"dim.jobs.{name}").__doc__ or ""
        lines.append(f"  {name:<10}{description.partition(chr(10))[0]}")
    return "\n".join(lines)
