"""The processes of a job and their memory, for the benchmarks that need them (Linux only)."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

# Ray's daemons, by what stands in their command lines.
DAEMONS = (
    "/raylet/raylet",
    "gcs_server",
    "log_monitor",
    "monitor.py",
    "dashboard",
    "DashboardAgent",
    "RuntimeEnvAgent",
)
DAEMONS += ("runtime_env/agent",)
MEBIBYTE = 2**20


def command_line(pid: int) -> str:
    """What `ps` shows of a process; empty where it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").replace("\0", " ").strip()
    return ""


def family(root: int) -> list[int]:
    """The process `root` and all that descend from it, Ray's daemons left out."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        if not any(word in command_line(pid) for word in DAEMONS):
            found.append(pid)
    return found


def pss(pid: int) -> int:
    """The bytes of memory of a process, those that it shares divided among the sharers; 0 where it is gone."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has taken, without its children; 0 where it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


class Peak:
    """The largest sum of the memory of a family of processes; `bytes` holds it once the block is done."""

    def __init__(self) -> None:
        self.bytes = 0


@contextlib.contextmanager
def peak_of(root: int, every: float = 0.5) -> Iterator[Peak]:
    """Looks at the memory of `root` and its family, every so many seconds, for as long as the block runs."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(every):
            peak.bytes = max(peak.bytes, sum(map(pss, family(root))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def timed(function, *arguments):  # type: ignore[no-untyped-def]
    """What a call returns, and its seconds."""
    started = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - started
