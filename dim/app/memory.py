"""How much memory a job may use: the flag --memory, and what the machine has.

Sizes of blocks, parts and windows follow from one number, the memory of a node. `Budget.share` is the part of it that
the driver, or one of the tasks that run beside each other, may fill with data.
"""

import contextlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from dim.app.config import Options, option, require_at_least
from dim.errors import UserError

# The files that hold the memory limit of a container: of cgroup 2, and of cgroup 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?) *([KMGT]?)(i?)B?", re.IGNORECASE)
_LEAST = 2**28  # bytes; libraries and the interpreter alone take as much
_FOR_DATA = 0.5  # the other half is for libraries, buffers and Ray's object store


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(Options):
    """The flag --memory of every job whose memory would grow with the number or the size of the photos.

    Raises UserError if it is not a size, or is too small.
    """

    memory: str | None = option(
        None,
        help="memory of a node that the job may use, such as 8GB; with less, it works in smaller parts, on disk, or on "
        "fewer large photos at a time (default: the memory of the smallest node)",
        metavar="SIZE",
        group="machine",
    )

    def __post_init__(self) -> None:
        if self.memory is not None:
            parsed(self.memory)
        super().__post_init__()

    @property
    def budget(self) -> "Budget":
        """The budget of this flag."""
        return budget(self.memory)


@dataclass(frozen=True, kw_only=True)
class TaskOptions(MemoryOptions):
    """The flags of jobs that divide all their work among tasks. Raises UserError if a value is out of range."""

    workers: int | None = option(None, help="tasks that run at a time (default: one per CPU)", group="machine")

    def __post_init__(self) -> None:
        require_at_least(self, {"workers": 1})
        super().__post_init__()


@dataclass(frozen=True)
class Budget:
    """The memory of a node in bytes, and the number of processes that share it: a task per CPU, and the driver."""

    node: int
    processes: int

    @property
    def share(self) -> int:
        """The bytes of data that each process may hold at a time."""
        return int(self.node * _FOR_DATA) // self.processes


def budget(wanted: str | None) -> Budget:
    """The budget of `wanted`, such as "8GB", or by default of the node with the least memory for each CPU.

    Raises UserError if `wanted` is not a size, or is too small.
    """
    nodes = _nodes()
    if wanted is not None:
        nodes = [(min(parsed(wanted), memory), cpus) for memory, cpus in nodes]
    memory, cpus = min(nodes, key=lambda node: node[0] / (node[1] + 1))
    return Budget(memory, cpus + 1)


def parsed(text: str) -> int:
    """The bytes of `text`, such as 512MB, 8GB or 1.5GiB. Raises UserError if it is not a size, or is too small."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UserError(f"--memory {text!r} is not a size, such as 512MB or 8GB")
    number, unit, binary = found.groups()
    size = int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " "))
    if size < _LEAST:
        raise UserError(f"--memory {text!r} is too small; give at least {_LEAST // 2**20}MiB")
    return size


def machine() -> int:
    """Returns the bytes of memory of this machine, or the limit of its container if that is lower."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in map(Path, _LIMITS):
        with contextlib.suppress(OSError, ValueError):  # there is no such file, or it says "max"
            found = min(found, int(path.read_text()))
    return found


def _nodes() -> list[tuple[int, int]]:
    """The memory and the CPUs of each node that does work; without Ray, of this machine."""
    ray = sys.modules.get("ray")
    found = []
    if ray is not None and ray.is_initialized():
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        # Ray leaves its object store out of a node's memory.
        found = [
            (int(has.get("memory", 0) + has.get("object_store_memory", 0)), int(has["CPU"]))
            for has in resources
            if has.get("CPU", 0) >= 1 and has.get("memory")
        ]
    return found or [(machine(), os.cpu_count() or 1)]
