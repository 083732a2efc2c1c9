"""The Ray cluster of a job: the cluster at RAY_ADDRESS or, if that is not set, a local Ray that ends with the job.

`connected` joins or starts the cluster, and `joined` only joins one. Other functions tell which nodes the cluster has
or may start, and whether all nodes can read the job's files.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import dim
from dim.app import ray_connection
from dim.errors import JobFailed, UserError

# The head node declares which nodes the autoscaler may start, because Ray 2.60 doesn't tell them on Kubernetes or after
# `ray up`. Each kind of node is a resource. Its name has the CPUs and GPUs of a node, and its amount is the maximum
# number of such nodes.
_KIND = re.compile(r"autoscaled_(\d+)CPU(?:_(\d+)GPU)?")
_KIND_PREFIX = "autoscaled"
_NODE_GROUP = "ray.io/node-group"  # label of each node whose group may grow


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Connects to Ray within the block. Uses an existing connection if there is one, and leaves it open.

    Raises UserError if there is no Ray at RAY_ADDRESS, and JobFailed if Ray did not start. If a worker raised a
    UserError or JobFailed, raises the same error.
    """
    with contextlib.nullcontext() if ray.is_initialized() else ray_connection.opened(_address(), verbose()):
        try:
            yield
        except RayTaskError as error:
            if isinstance(error.cause, UserError | JobFailed):  # Ray Data adds lines to the message
                raise type(error.cause)(str(error.cause).partition("\n")[0]) from None
            raise


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Does what `connected` does if RAY_ADDRESS is set or there is a connection already. Otherwise does nothing.

    This is for jobs that a single machine does faster in its own process (`dim.app.tasks`) than by a Ray of its own.
    """
    with connected() if ray.is_initialized() or not is_local() else contextlib.nullcontext():
        yield


def is_local() -> bool:
    """Whether the job starts a local Ray of its own."""
    return _address() == "local"


def _address() -> str:
    # Without "local", ray.init would join any Ray that runs on this machine.
    return os.environ.get("RAY_ADDRESS", "local")


def verbose() -> bool:
    """Whether Ray's own messages are shown (`-v`)."""
    return logging.getLogger("dim").isEnabledFor(logging.DEBUG)


def nodes() -> list[dict[str, float]]:
    """The resources of each live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def autoscaled_nodes() -> list[tuple[dict[str, float], int]]:
    """The kinds of node that the autoscaler may start: the "CPU" and "GPU" of a node, and how many there may be.

    Raises UserError if the head node declares a kind that dim can't read.
    """
    kinds = []
    for name, count in ray.cluster_resources().items():
        if not name.startswith(_KIND_PREFIX):
            continue
        found = _KIND.fullmatch(name)
        if found is None:
            raise UserError(
                f"the head node has the resource {name!r}, which dim doesn't know; name a kind of node that may start "
                "as in autoscaled_8CPU_1GPU"
            )
        cpus, gpus = map(float, found.groups(default="0"))
        kinds.append(({"CPU": cpus, "GPU": gpus}, int(count)))
    return kinds


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """The scheduling strategy that puts a task or actor on the caller's node, so that no other node is needed."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def require_shared(paths: Iterable[str], written: bool = False) -> None:
    """Raises UserError if one of `paths` is on one machine's disk, but the cluster has or may start other machines.

    A URI is always accepted: with `file:///…`, the user states that all machines mount the path. If the job only reads
    the paths (not `written`), they may also be in dim itself or in a submitted job's working directory, because Ray
    copies both to each machine.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) < 2 and not any(map(_others_may_come, alive)):
        return
    has = f"this cluster has {len(alive)}" if len(alive) > 1 else "this cluster starts others for the work"
    copied = () if written else _copied_folders()
    for path in paths:
        if "://" in path or os.path.abspath(path).startswith(copied):
            continue
        raise UserError(
            f"{path!r} is on the disk of one machine, and {has}; use s3://… or gs://…, or file:///… for a folder that "
            "each of them mounts"
        )


def _others_may_come(node: dict[str, Any]) -> bool:
    """Whether more nodes may come: `node` declares kinds of node, or is in a group that may grow, or has no CPUs."""
    resources = node["Resources"]
    declares = any(name.startswith(_KIND_PREFIX) for name in resources)
    return declares or _NODE_GROUP in node["Labels"] or not resources.get("CPU")


def _copied_folders() -> tuple[str, ...]:
    folders = [Path(dim.__file__).parent]
    if ray.get_runtime_context().runtime_env.get("working_dir"):
        folders.append(Path.cwd())
    return tuple(f"{folder}{os.sep}" for folder in folders)


def earlier_attempts() -> int:
    """How often the calling task was tried before. More than 0 means that its worker or node died during an attempt."""
    # Ray 2.60 has no public name for this number.
    return int(ray._private.worker.global_worker.core_worker.get_current_task_attempt_number())
