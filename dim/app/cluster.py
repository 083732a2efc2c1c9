"""The Ray that a job runs on: the one of RAY_ADDRESS, else an own local one that ends with the job."""

import contextlib
import logging
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.job_config import JobConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import dim
from dim.app import environment
from dim.errors import JobFailed, UserError
from dim.io import processes, scratch

# What a head node says of the nodes that the autoscaler may start: a resource for each kind of node, by its CPUs and
# GPUs, whose amount is how many there may be. Ray 2.60 can't be asked for it, neither on Kubernetes nor after `ray up`.
_KIND = re.compile(r"autoscaled_(\d+)CPU(?:_(\d+)GPU)?")
_MAY_COME = "autoscaled"  # how the names of these begin
_NODE_GROUP = "ray.io/node-group"  # the label of a node of a group that may grow

log = logging.getLogger(__name__)


class _JobConfig(JobConfig):  # type: ignore[misc]
    """Keeps Ray from letting its workers import from the driver's working directory before all else.

    A submitted job's code, which is in its working directory, they get by their own PYTHONPATH.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True  # Ray 2.60 has no public way


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Connects to Ray for the duration of a job; a Ray that is connected already (in tests, say) is used and left.

    A UserError or JobFailed that is raised in a worker comes out as it was there.
    """
    with contextlib.nullcontext() if ray.is_initialized() else _started():
        try:
            yield
        except RayTaskError as error:
            if isinstance(error.cause, UserError | JobFailed):  # to whose message Ray Data adds lines
                raise type(error.cause)(str(error.cause).partition("\n")[0]) from None
            raise


@contextlib.contextmanager
def _started() -> Iterator[None]:
    environment.require_usable()
    handler = signal.getsignal(signal.SIGTERM)
    address = _address()
    _require_answer(address)
    log.info("%s", "starting Ray" if address == "local" else f"connecting to Ray at {address}")
    with contextlib.ExitStack() as stack:
        own: dict[str, Any] = {}
        if address == "local":
            own = {"include_dashboard": False, "_temp_dir": stack.enter_context(_own_folder())}
        stack.callback(ray.shutdown)
        try:
            ray.init(
                address=address,
                log_to_driver=verbose(),
                job_config=_JobConfig(),
                logging_level=logging.INFO if verbose() else logging.CRITICAL,
                **own,
            )
        except Exception as error:  # Ray has no class of its own for this
            raise _not_started(address, error) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end the job with a status that says nothing
        yield


def _not_started(address: str, error: Exception) -> UserError | JobFailed:
    reason = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, ConnectionError) and address != "local":
        return UserError(f"no Ray at RAY_ADDRESS={address!r} ({reason}); start it, or unset RAY_ADDRESS")
    if "timed out" in reason:
        reason += "; where the machine has much else to do, run the same command again later"
    return JobFailed(f"Ray did not start: {reason}")


@contextlib.contextmanager
def _own_folder() -> Iterator[str]:
    """A folder for an own Ray's logs and sockets, and one for what its processes leave in TMPDIR, while it runs."""
    # The paths of sockets must be short, so Ray's folder is not in TMPDIR.
    with (
        scratch.folder(os.environ.get("RAY_TMPDIR", "/tmp")) as own,
        scratch.folder(tempfile.gettempdir()) as temporary,
    ):
        changed = {"DIM_SCRATCH": str(scratch.place()), "TMPDIR": temporary} | processes.import_path()
        before = {name: os.environ.get(name) for name in changed}
        os.environ |= changed  # Ray's processes inherit it
        try:
            yield own
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def is_own() -> bool:
    """Whether the Ray of this job is its own, on this machine."""
    return _address() == "local"


def _address() -> str:
    # "local" starts an own Ray; without it, ray.init would join any Ray that runs on this machine.
    return os.environ.get("RAY_ADDRESS", "local")


def _require_answer(address: str) -> None:
    # Ray itself would wait for a quarter of an hour, deaf to Ctrl-C.
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"no Ray at RAY_ADDRESS={address!r} ({error}); start it, or unset RAY_ADDRESS") from error


def verbose() -> bool:
    """Whether the user wants to read what Ray says (`-v`)."""
    return logging.getLogger("dim").isEnabledFor(logging.DEBUG)


def nodes() -> list[dict[str, float]]:
    """The resources of each live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def may_come() -> list[tuple[dict[str, float], int]]:
    """The resources of each kind of node that the autoscaler may start, and how many of it there may be.

    Raises UserError where the head says it in words that dim doesn't know.
    """
    kinds = []
    for name, count in ray.cluster_resources().items():
        if not name.startswith(_MAY_COME):
            continue
        found = _KIND.fullmatch(name)
        if found is None:
            raise UserError(
                f"the head node has the resource {name!r}, which dim doesn't know; name the nodes that may come as in "
                "autoscaled_8CPU_1GPU"
            )
        cpus, gpus = map(float, found.groups(default="0"))
        kinds.append(({"CPU": cpus, "GPU": gpus}, int(count)))
    return kinds


def here() -> NodeAffinitySchedulingStrategy:
    """Where the caller runs: for what others may not do, or for an actor that no other node shall take down with it."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def require_shared(paths: Iterable[str], written: bool = False) -> None:
    """Raises UserError for a path on the disk of one machine where the cluster has several, or may have once it grows.

    What a job brings along, its working directory and dim itself, each machine has; but nothing is to be `written`
    there. A `file:///…` is taken at its word: that all of them mount it.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) < 2 and not any(map(_others_may_come, alive)):
        return
    has = f"this cluster has {len(alive)}" if len(alive) > 1 else "this cluster starts others for the work"
    brought = () if written else _brought()
    for path in paths:
        if "://" in path or os.path.abspath(path).startswith(brought):
            continue
        raise UserError(
            f"{path!r} is on the disk of one machine, and {has}; use s3://… or gs://…, or file:///… for a folder that "
            "each of them mounts"
        )


def _others_may_come(node: dict[str, Any]) -> bool:
    """Whether nodes may join this one, the first: it says so, is of a kind that Ray's autoscaler or KubeRay starts, or
    does no work itself.
    """
    resources = node["Resources"]
    says = any(name.startswith(_MAY_COME) for name in resources)
    return says or _NODE_GROUP in node["Labels"] or not resources.get("CPU")


def _brought() -> tuple[str, ...]:
    folders = [Path(dim.__file__).parent]
    if ray.get_runtime_context().runtime_env.get("working_dir"):
        folders.append(Path.cwd())
    return tuple(f"{folder}{os.sep}" for folder in folders)


def earlier_attempts() -> int:
    """How often the task that asks was begun before: more than 0 once a worker or a node has died over it."""
    # Ray 2.60 has no public name for it.
    return int(ray._private.worker.global_worker.core_worker.get_current_task_attempt_number())
