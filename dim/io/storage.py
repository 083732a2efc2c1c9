"""Opens the storage of a path or URI, repeats failed requests, runs requests in parallel, and guards writes.

`dim.io.files` is built on this module. Credentials, region and endpoint come from the environment or the machine's
role, as for any AWS or Google tool (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS
…). They never come from a URI, because URIs end up in logs and in run.json.
"""

import contextlib
import functools
import os
import random
import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from itertools import islice
from typing import ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from dim.errors import UserError
from dim.io import uris

# If an error may be transient, the client library of S3 soon repeats the request, up to RETRIES times. Then `retried`
# calls again, up to TRIES times in all. The waits begin at FIRST_WAIT seconds and double: 15 s in all.
RETRIES, TRIES, FIRST_WAIT = 3, 5, 1.0
CONNECT_SECONDS, SILENT_SECONDS = 5.0, 10.0  # time limits: to connect, and without a byte from the store
GOOGLE_SECONDS = 10.0  # seconds for which Google's library repeats a request, before `retried` does
REQUESTS_AT_ONCE = 64  # per process; a store takes 20 to 100 ms for a small request, but answers thousands per second

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")

_LOCAL = pafs.LocalFileSystem()
# Words in the message of an error that may be transient. Arrow's errors about stores have no error number.
_TRANSIENT = re.compile("NETWORK_CONNECTION|INTERNAL|SLOW_DOWN|THROTTL|UNAVAILABLE|DEADLINE_EXCEEDED|HTTP status 5")
_NO_TOKEN = re.compile(r"OAuth2 access token.*The underlying error message was: (.*?) error_info", re.DOTALL)


def locate(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of `uri`, and the path in that filesystem. A path without a scheme is local and is made absolute.

    Raises UserError if `uris.parts` refuses `uri`, or if the storage can't be reached.
    """
    scheme, path = uris.parts(uri)
    return (_opened(f"{scheme}://{path.partition('/')[0]}") if scheme in uris.STORES else _LOCAL), path


@functools.lru_cache(maxsize=64)  # opening a bucket takes a request
def _opened(uri: str) -> pafs.FileSystem:
    scheme, _, bucket = uri.partition("://")
    try:
        return _s3(bucket) if scheme == "s3" else _google(bucket)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot open {uri!r}: {error}; {uris.USE}") from error


def _s3(bucket: str) -> pafs.S3FileSystem:
    # A new filesystem gets as many connections as Arrow then has I/O threads.
    pa.set_io_thread_count(max(pa.io_thread_count(), REQUESTS_AT_ONCE))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=None if endpoint else pafs.resolve_s3_region(bucket),
        # AWS's newer strategy has a quota of retries and gives up early.
        retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=RETRIES),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=SILENT_SECONDS,
        allow_delayed_open=True,  # writing a small object then takes one request
    )


def _google(bucket: str) -> pafs.GcsFileSystem:
    filesystem = pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=GOOGLE_SECONDS))
    try:
        filesystem.get_file_info(f"{bucket}/-")
    except (pa.ArrowException, OSError) as error:
        if missing := _NO_TOKEN.search(str(error)):
            raise UserError(
                f"no credentials for 'gs://{bucket}' ({missing[1]}); set GOOGLE_APPLICATION_CREDENTIALS to a file that "
                "holds some, or run this where the machine has a role"
            ) from error
        # Other errors are ignored: the account may lack only the right to ask for this name.
    return filesystem


class _Thread(threading.local):
    abandoned = threading.Event()  # set once the caller takes no more results, as after Ctrl-C


_thread = _Thread()


def retried(call: Callable[P, T]) -> Callable[P, T]:
    """Decorates an idempotent `call` so that it is repeated after a store's error that may be transient.

    A thread of `parallel_futures` repeats no call once the caller takes no more results.
    """

    @functools.wraps(call)
    def again(*arguments: P.args, **named: P.kwargs) -> T:
        for trial in range(TRIES - 1):
            try:
                return call(*arguments, **named)
            except OSError as error:
                wait = FIRST_WAIT * 2**trial * random.uniform(0.5, 1.5)  # random, to spread the workers' retries
                if not _TRANSIENT.search(str(error)) or _thread.abandoned.wait(wait):
                    raise
        return call(*arguments, **named)

    return again


def parallel_map(call: Callable[[Item], T], items: Iterable[Item], most: int = REQUESTS_AT_ONCE) -> Iterator[T]:
    """Yields `call(item)` for each of `items`, in the order of `items`. Up to `most` threads make the calls.

    The calls are at most `most` items ahead of the caller. When the caller gets to an item whose call failed, no more
    calls begin. The error is raised once the running calls have ended.
    """
    with contextlib.closing(parallel_futures(call, items, most)) as results:
        for result in results:
            yield result.result()


def for_each(call: Callable[[Item], object], items: Iterable[Item], most: int = REQUESTS_AT_ONCE) -> None:
    """Runs `call(item)` for each of `items` as `parallel_map` does, and drops the results."""
    deque(parallel_map(call, items, most), maxlen=0)


def parallel_futures(
    call: Callable[[Item], T], items: Iterable[Item], most: int = REQUESTS_AT_ONCE
) -> Generator[Future[T], None, None]:
    """Does what `parallel_map` does, but yields futures. The `result()` of a future raises the error of its call.

    A caller that stops early may still use the futures that it has. Their calls go on, but are not retried.
    """
    left, abandoned = iter(items), threading.Event()
    with ThreadPoolExecutor(most, initializer=functools.partial(setattr, _thread, "abandoned", abandoned)) as threads:
        pending = deque(threads.submit(call, item) for item in islice(left, most))
        try:
            while pending:
                yield pending.popleft()
                pending.extend(threads.submit(call, item) for item in islice(left, 1))
        except BaseException:  # the caller takes no more results
            abandoned.set()
            for future in pending:
                future.cancel()
            raise


_guards: list[tuple[str, Callable[[], None]]] = []


@contextlib.contextmanager
def guard_writes(folder: str, require: Callable[[], None]) -> Iterator[None]:
    """Within the block, calls `require` before this process writes into `folder`. `require` raises to forbid it."""
    guard = (f"{folder.rstrip('/')}/", require)
    _guards.append(guard)
    try:
        yield
    finally:
        _guards.remove(guard)


def require_writable(uri: str) -> None:
    """Calls the guards of all folders that hold `uri`. `dim.io.files` calls this before each write."""
    for folder, require in list(_guards):
        if f"{uri}/".startswith(folder):
            require()
