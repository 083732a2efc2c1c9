"""What workers have to say, carried to the job's own log through a queue of Ray's."""

import contextlib
import logging
import logging.handlers
import platform
from collections.abc import Iterator

from ray.util.queue import Queue

from dim import cluster


@contextlib.contextmanager
def listening() -> Iterator[Queue]:
    """A queue whose log records come out of the job's handlers."""
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": cluster.here()})
    listener = logging.handlers.QueueListener(queue, *logging.getLogger().handlers)
    listener.start()
    try:
        yield queue
    finally:
        listener.stop()
        queue.shutdown()


def speak_through(queue: Queue, level: int, worker: int | None = None) -> None:
    """Sends this process's `dim` log records of at least `level` to `queue`, as those of `worker`, if it is one, on
    this node.
    """

    def signed(record: logging.LogRecord) -> bool:
        record.node = platform.node()
        if worker is not None:
            record.worker = worker
        return True

    logger = logging.getLogger("dim")
    logger.handlers = [logging.handlers.QueueHandler(queue)]
    logger.handlers[0].addFilter(signed)
    logger.setLevel(level)
    logger.propagate = False
