"""Runs a program of jobs/ within a Ray of its own, so that it works in Ray tasks, not in threads, and slowly.

    python on_ray.py SECONDS jobs/audit.py FLAGS…

Each task first sleeps so many seconds, so that a test can see and kill it.
"""

import functools
import runpy
import sys
import time

from dim.app import cluster, tasks


def slowed(by_tasks, seconds):
    """The way `by_tasks` of dividing work, with slow tasks."""

    def divided(work, *arguments):
        @functools.wraps(work)
        def slow(*given):
            time.sleep(seconds)
            return work(*given)

        return by_tasks(slow, *arguments)

    return divided


if __name__ == "__main__":
    seconds, *sys.argv = sys.argv[1:]
    tasks._by_tasks = slowed(tasks._by_tasks, float(seconds))
    with cluster.connected():
        runpy.run_path(sys.argv[0], run_name="__main__")
