"""A random walk of kills: a job, on an earlier run's output or on none, dies by SIGKILL at one of its file operations,
or at some time.

After each death every reader refuses what stands there, or finds the one result or the other whole; and the same
command again gives what it would have given undisturbed, with nothing half-written left. Run as a program, in a process
that has run no job itself: each job is forked from it.
"""

import argparse
import builtins
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import jobs
from dim.errors import UserError
from dim.io import files

BY_TIME = 0.2  # of the deaths
LONGEST = 1.0  # seconds; some jobs have ended by then
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Death:
    """At which file operation a process dies, from 1, and where that opens a file to write, with `half` of it written;
    or after how many seconds.
    """

    at: int = 0
    half: bool = False
    seconds: float | None = None


class Deadly:
    """Counts this process's file operations, and kills it at one of them."""

    def __init__(self, death):
        self.seen, self._death, self._lock = 0, death, threading.Lock()

    def _counted(self):
        with self._lock:
            self.seen += 1
            return self.seen == self._death.at

    def before(self, call):
        def deadly(*arguments, **named):
            if self._counted():
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return deadly

    def opening(self, call):
        def deadly(file, mode="r", *arguments, **named):
            if "w" in mode and str(file).endswith(".tmp") and self._counted():
                if self._death.half:
                    with call(file, "wb") as half:
                        half.write(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            return call(file, mode, *arguments, **named)

        return deadly

    def take_over(self):
        builtins.open = io.open = self.opening(io.open)
        os.replace = self.before(os.replace)
        files.delete = self.before(files.delete)


def _run(asked, death, answer):
    deadly = Deadly(death)
    deadly.take_over()
    try:
        jobs.run(*asked)
        answer.put((deadly.seen, None))
    except Exception as error:
        answer.put((deadly.seen, f"{type(error).__name__}: {error}"))  # told in the parent


def run(*asked, death=Death()):
    """Runs a job in a process of its own. Returns how many file operations it had, None where it died at one."""
    answer = FORK.SimpleQueue()
    child = FORK.Process(target=_run, args=(asked, death, answer))
    child.start()
    child.join(120 if death.seconds is None else death.seconds)
    if death.seconds is not None and child.is_alive():
        child.kill()
        child.join()
    if child.exitcode == -signal.SIGKILL and death != Death():
        return None
    assert child.exitcode == 0, (asked, child.exitcode)
    operations, error = answer.get()
    assert error is None, (asked, death, error)
    return operations


def _read(job, root, out, answer):
    try:
        answer.put(("found", jobs.read(job, root, out)))
    except UserError as error:
        answer.put(("refused", str(error)))
    except Exception:
        answer.put(("broken", traceback.format_exc()))


def read(job, root, out):
    """What a process of its own reads there: ("found", what) or ("refused", why)."""
    answer = FORK.SimpleQueue()
    child = FORK.Process(target=_read, args=(job, root, out, answer))
    child.start()
    while child.is_alive() and answer.empty():
        time.sleep(0.005)
    assert not answer.empty(), (job, child.exitcode)
    found = answer.get()
    child.join()
    return found


def half_written(root):
    """What is half-written below `root`, but for the input."""
    return [str(path) for path in root.rglob("*.tmp")]


class Walk:
    """The walk below the folder `root`, its chance from `seed`."""

    def __init__(self, root, seed):
        self._root, self._chance = root, random.Random(seed)
        self._known = {}
        self.deaths, self.refused = Counter(), 0

    def _undisturbed(self, job, before, kind):
        """What `job` gives on input of this kind, on the output of `before`; and how many file operations it has."""
        if (job, before, kind) not in self._known:
            out = self._root / "undisturbed" / "out"
            out.parent.mkdir()
            operations = [run(job, one, self._root, out) for one in (before, kind) if one][-1]
            state, found = read(job, self._root, out)
            assert state == "found", (job, found)
            self._known[job, before, kind] = found, operations
            shutil.rmtree(out.parent)
        return self._known[job, before, kind]

    def step(self, job):
        """One death of `job`."""
        kind = self._chance.choice(jobs.KINDS)
        before = self._chance.choice([None, *jobs.KINDS])
        if job == "nightly":  # whose nights follow each other
            before, kind = self._chance.choice([(None, "old"), ("old", "new")])
        wanted, operations = self._undisturbed(job, before, kind)
        old = self._undisturbed(job, None, before)[0] if before else None
        out = self._root / "walk" / "out"
        out.parent.mkdir()
        if before:
            run(job, before, self._root, out)
        death = Death(self._chance.randint(1, operations), self._chance.random() < 0.5)
        if self._chance.random() < BY_TIME:
            death = Death(seconds=self._chance.uniform(0.0, LONGEST))
        where = (job, before, kind, death)
        assert run(job, kind, self._root, out, death=death) is None or death.seconds, where
        state, found = read(job, self._root, out)
        whole = [wanted, old]
        if job == "split":  # whose manifest counts without its list
            whole += [(rows, None) for rows, _ in (wanted, old or wanted)]
        assert state == "refused" or (state == "found" and found in whole), (where, state, found)
        self.refused += state == "refused"
        run(job, kind, self._root, out)
        assert read(job, self._root, out) == ("found", wanted), where
        assert not half_written(out.parent), (where, half_written(out.parent))
        shutil.rmtree(out.parent)
        self.deaths[job] += 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    jobs.stand_in()
    with tempfile.TemporaryDirectory(prefix="dim-walk-") as folder:
        root = Path(folder)
        making = FORK.Process(target=jobs.make_input, args=(root,))
        making.start()
        making.join()
        assert making.exitcode == 0
        walk = Walk(root, given.seed)
        names = list(jobs.RUNS)
        random.Random(given.seed).shuffle(names)
        for number in range(given.kills):
            walk.step(names[number % len(names)])
    print(json.dumps({"kills": given.kills, "seed": given.seed, "refused": walk.refused, "deaths": walk.deaths}))


if __name__ == "__main__":
    main()
