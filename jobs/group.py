#!/usr/bin/env -S python3 -X job
"""ray job submit --working-dir . -- python jobs/group.py FLAGS; --help describes the job (dim/jobs/group.py)."""

from dim.jobs.command import run_job

if __name__ == "__main__":
    run_job("group")
