"""What must be true while a folder is written: `dim.io.files` asks here before each write, so that none can forget to.

Which storage a path or URI names, and how patiently it is asked: everything else goes through `dim.io.files`.

Credentials, region and endpoint come from the environment or the machine's role, as for any AWS or Google tool
(AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS …), never from a URI: URIs end in logs
and in run.json.
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

_guards: list[tuple[str, Callable[[], None]]] = []


@contextlib.contextmanager
def guarded(folder: str, require: Callable[[], None]) -> Iterator[None]:
    """Within the block, whatever this process writes into `folder` is written only where `require` raises nothing."""
    guard = (f"{folder.rstrip('/')}/", require)
    _guards.append(guard)
    try:
        yield
    finally:
        _guards.remove(guard)


def require_open(uri: str) -> None:
    """Raises whatever is raised by the guard of a folder that holds `uri`."""
    for folder, require in list(_guards):
        if f"{uri}/".startswith(folder):
            require()


# The SDK makes a failed request again at once. What goes on failing, or what it doesn't see as passing (an error longer
# than the small object that was asked for), `patient` tries again after a wait, doubled each time: 15 s in all.
RETRIES, TRIES, FIRST_WAIT = 3, 5, 1.0
CONNECT_SECONDS, SILENT_SECONDS = 5.0, 10.0  # a connection from which no byte comes for as long is given up
AT_ONCE = 64  # small requests of a process; a store takes thousands a second, and answers each in 20 to 100 ms
GOOGLE_SECONDS = 10.0  # in which Google's library makes a failed request again, before `patient` does

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")

_LOCAL = pafs.LocalFileSystem()
# What Arrow writes into its messages; such errors of stores have no number.
_PASSING = re.compile("NETWORK_CONNECTION|INTERNAL|SLOW_DOWN|THROTTL|UNAVAILABLE|DEADLINE_EXCEEDED|HTTP status 5")
_NO_TOKEN = re.compile(r"OAuth2 access token.*The underlying error message was: (.*?) error_info", re.DOTALL)


def locate(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of `uri` and the path within it; a path without a scheme is local and made absolute.

    Raises UserError as `uris.parts` does, and for a storage that can't be reached.
    """
    scheme, path = uris.parts(uri)
    return (_opened(f"{scheme}://{path.partition('/')[0]}") if scheme in uris.STORES else _LOCAL), path


@functools.lru_cache(maxsize=64)  # to find a bucket takes a question to the store
def _opened(uri: str) -> pafs.FileSystem:
    scheme, _, bucket = uri.partition("://")
    try:
        return _s3(bucket) if scheme == "s3" else _google(bucket)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot open {uri!r}: {error}; {uris.USE}") from error


def _s3(bucket: str) -> pafs.S3FileSystem:
    # Arrow opens as many connections to a store as it has threads for input and output when this is made.
    pa.set_io_thread_count(max(pa.io_thread_count(), AT_ONCE))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=None if endpoint else pafs.resolve_s3_region(bucket),
        # Of the SDK's strategies, the newer one gives up early: it has a quota of retries.
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
        # Whatever else it is, maybe only that this account may not ask for this name: what is wanted of it will tell.
    return filesystem


class _Thread(threading.local):
    ended = threading.Event()  # set once nobody wants what this thread does, as after Ctrl-C


_thread = _Thread()


def patient(call: Callable[P, T]) -> Callable[P, T]:
    """`call`, which must be repeatable, made again where a store fails it in a way that may pass.

    In a thread of `in_flight` it is not made again once the caller takes no more.
    """

    @functools.wraps(call)
    def again(*arguments: P.args, **named: P.kwargs) -> T:
        for trial in range(TRIES - 1):
            try:
                return call(*arguments, **named)
            except OSError as error:
                wait = FIRST_WAIT * 2**trial * random.uniform(0.5, 1.5)  # not all workers at once
                if not _PASSING.search(str(error)) or _thread.ended.wait(wait):
                    raise
        return call(*arguments, **named)

    return again


def at_once(call: Callable[[Item], T], items: Iterable[Item], most: int = AT_ONCE) -> Iterator[T]:
    """What `call` gives for each of `items`, in their order; `most` run at a time, at most as far ahead of the caller.

    Raises what the first of them in that order raises. Those that run by then are waited for; no others begin.
    """
    with contextlib.closing(in_flight(call, items, most)) as results:
        for result in results:
            yield result.result()


def finish(results: Iterable[object]) -> None:
    """Waits for all of `results`, of which nothing is wanted. Raises what they do."""
    deque(results, maxlen=0)


def in_flight(
    call: Callable[[Item], T], items: Iterable[Item], most: int = AT_ONCE
) -> Generator[Future[T], None, None]:
    """As `at_once`, but each result comes as a future, which raises what its call did.

    A caller that stops early keeps the futures that it has; the calls behind them are not tried again.
    """
    left, ended = iter(items), threading.Event()
    with ThreadPoolExecutor(most, initializer=functools.partial(setattr, _thread, "ended", ended)) as threads:
        asked = deque(threads.submit(call, item) for item in islice(left, most))
        try:
            while asked:
                first = asked.popleft()
                yield first
                asked.extend(threads.submit(call, item) for item in islice(left, 1))
        except BaseException:  # the caller takes no more
            ended.set()
            for future in asked:
                future.cancel()
            raise
