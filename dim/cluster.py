"""The Ray that a job runs on: the one of RAY_ADDRESS, else an own local one that ends with the job."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator

import ray
from ray.exceptions import RayTaskError

from dim.errors import JobFailed, UserError
from dim.model import precision as precisions

log = logging.getLogger(__name__)


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
    handler = signal.getsignal(signal.SIGTERM)
    # An address of "local" starts an own Ray; without it, ray.init would join any Ray that runs on this machine.
    address = os.environ.get("RAY_ADDRESS", "local")
    _require_answer(address)
    log.info("%s", "starting Ray" if address == "local" else f"connecting to Ray at {address}")
    ray.init(
        address=address,
        include_dashboard=False if address == "local" else None,
        log_to_driver=verbose(),
        logging_level=logging.INFO if verbose() else logging.CRITICAL,
    )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the job with a status that says nothing
    try:
        yield
    finally:
        ray.shutdown()


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


def gpus() -> int:
    """GPUs that a worker gets if nothing else is asked for: one, where the cluster has any."""
    return int(ray.cluster_resources().get("GPU", 0) > 0)


def precision(wanted: str, gpus: float) -> str:
    """`wanted`, or for "auto" what suits the machine that workers with this many `gpus` get."""
    if wanted != "auto":
        return wanted
    # Asked there: the driver may sit on a head node of another kind.
    best = ray.remote(precisions.best).options(num_cpus=0, num_gpus=gpus)
    return str(ray.get(best.remote(gpus > 0)))


def earlier_attempts() -> int:
    """How often the task that asks was begun before: more than 0 once a worker or a node has died over it."""
    # Ray 2.60 has no public name for it.
    return int(ray._private.worker.global_worker.core_worker.get_current_task_attempt_number())
