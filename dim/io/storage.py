"""Which storage a path or URI names, and how to ask it: retries, many requests in parallel, and guards on writes.

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

# The store's SDK repeats a failed request at once, unless it takes the error for permanent. `retried` then repeats the
# request after a wait, which doubles each time: 15 s in all.
RETRIES, TRIES, FIRST_WAIT = 3, 5, 1.0
CONNECT_SECONDS, SILENT_SECONDS = 5.0, 10.0  # time limits to connect, and for a connection that sends no byte
GOOGLE_SECONDS = 10.0  # how long Google's library retries before `retried` does
REQUESTS_AT_ONCE = 64  # small requests of one process: a store answers thousands a second, each after 20 to 100 ms

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")

_LOCAL = pafs.LocalFileSystem()
# Arrow's errors about stores have no error number, only these words in the message.
_TRANSIENT = re.compile("NETWORK_CONNECTION|INTERNAL|SLOW_DOWN|THROTTL|UNAVAILABLE|DEADLINE_EXCEEDED|HTTP status 5")
_NO_TOKEN = re.compile(r"OAuth2 access token.*The underlying error message was: (.*?) error_info", re.DOTALL)


def locate(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of `uri` and the path within it. A path without a scheme is local and is made absolute.

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
    # Arrow gives the filesystem as many connections as there are I/O threads when it is created.
    pa.set_io_thread_count(max(pa.io_thread_count(), REQUESTS_AT_ONCE))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=None if endpoint else pafs.resolve_s3_region(bucket),
        # The SDK's newer strategy has a quota of retries and gives up early.
        retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=RETRIES),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=SILENT_SECONDS,
        allow_delayed_open=True,  # a small object is one request
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
        # Other errors don't matter yet: the account may only lack the right to ask for this one name.
    return filesystem


class _Thread(threading.local):
    abandoned = threading.Event()  # set once nobody wants this thread's result any more, as after Ctrl-C


_thread = _Thread()


def retried(call: Callable[P, T]) -> Callable[P, T]:
    """Decorates `call`, which must be idempotent, to be repeated after a store's error that may be transient.

    A thread of `parallel_futures` doesn't retry once the caller has stopped taking results.
    """

    @functools.wraps(call)
    def again(*arguments: P.args, **named: P.kwargs) -> T:
        for trial in range(TRIES - 1):
            try:
                return call(*arguments, **named)
            except OSError as error:
                wait = FIRST_WAIT * 2**trial * random.uniform(0.5, 1.5)  # so that workers don't retry all together
                if not _TRANSIENT.search(str(error)) or _thread.abandoned.wait(wait):
                    raise
        return call(*arguments, **named)

    return again


def parallel_map(call: Callable[[Item], T], items: Iterable[Item], most: int = REQUESTS_AT_ONCE) -> Iterator[T]:
    """Yields `call(item)` for each of `items`, in their order, from `most` threads.

    The threads run at most `most` items ahead of the caller. At the first item whose call failed, no more calls begin,
    and the error is raised once the running ones have ended.
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
    """As `parallel_map`, but yields each result as a future, which raises the error of its call.

    A caller that stops early keeps the futures that it has. Their calls go on, but are not retried.
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
    """Within the block, each write of this process into `folder` first calls `require`, which raises to forbid it."""
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
