"""Which storage a URI names, and how patiently it is asked: everything else goes through `dim.files`.

Credentials, region and endpoint come from the environment or the machine's role, as for any AWS or Google tool
(AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS …), never from a URI: URIs end in logs
and in run.json.
"""

import functools
import os
import random
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from dim.credentials import require_no_secret
from dim.errors import UserError

# The SDK makes a failed request again at once. What goes on failing, or what it doesn't see as passing (an error longer
# than the small object that was asked for), `patient` tries again after a wait, doubled each time: 15 s in all.
RETRIES, TRIES, FIRST_WAIT = 3, 5, 1.0
CONNECT_SECONDS, SILENT_SECONDS = 5.0, 10.0  # a connection from which no byte comes for as long is given up
GOOGLE_SECONDS = 10.0  # in which Google's library makes a failed request again, before `patient` does

P = ParamSpec("P")
T = TypeVar("T")

_LOCAL = pafs.LocalFileSystem()
_AS_NAMED = ("s3", "gs", "file")  # a question mark may be part of a name
_SCHEMES = (*_AS_NAMED, "hdfs", "abfs", "abfss")
# What Arrow writes into its messages; such errors of stores have no number.
_PASSING = re.compile("NETWORK_CONNECTION|INTERNAL|SLOW_DOWN|THROTTL|UNAVAILABLE|DEADLINE_EXCEEDED|HTTP status 5")
_NO_TOKEN = re.compile(r"OAuth2 access token.*The underlying error message was: (.*?) error_info", re.DOTALL)
_PARAMETERS = re.compile(r"\?(access_key|secret_key|endpoint_override|region|scheme|retry_limit_seconds)=")


def locate(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of `uri` and the path within it; a path without a scheme is local and made absolute.

    Raises UserError for a storage that is unknown or can't be reached, and for credentials in the URI.
    """
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{uri!r} is no UTF-8; rename it") from error
    if "\0" in uri:
        raise UserError(f"{uri!r} has a NUL in it, which no name has")
    if "://" not in uri:
        return _LOCAL, os.path.abspath(os.path.expanduser(uri))
    require_no_secret(uri)
    scheme, _, rest = uri.partition("://")
    if scheme not in _SCHEMES:
        raise UserError(f"cannot open {uri!r}: no storage is called {scheme!r}; use a local path, s3://… or gs://…")
    if _PARAMETERS.search(rest) or (scheme not in _AS_NAMED and "?" in rest):
        raise UserError(f"{uri!r} has parameters; set AWS_ENDPOINT_URL and AWS_REGION in the environment instead")
    if scheme not in ("s3", "gs"):
        return _opened(uri)
    return _opened(f"{scheme}://{rest.partition('/')[0]}")[0], rest  # a name is what it is, spaces and % included


@functools.lru_cache(maxsize=64)  # to find a bucket takes a question to the store
def _opened(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        if uri.startswith("s3://"):
            bucket = uri.removeprefix("s3://")
            return _s3(bucket), bucket
        if uri.startswith("gs://"):
            bucket = uri.removeprefix("gs://")
            return _google(bucket), bucket
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot open {uri!r}: {error}; use a local path, s3://… or gs://…") from error
    return filesystem, path


def _s3(bucket: str) -> pafs.S3FileSystem:
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


def patient(call: Callable[P, T]) -> Callable[P, T]:
    """`call`, which must be repeatable, made again where a store fails it in a way that may pass."""

    @functools.wraps(call)
    def again(*arguments: P.args, **named: P.kwargs) -> T:
        for trial in range(TRIES - 1):
            try:
                return call(*arguments, **named)
            except OSError as error:
                if not _PASSING.search(str(error)):
                    raise
                time.sleep(FIRST_WAIT * 2**trial * random.uniform(0.5, 1.5))  # not all workers at once
        return call(*arguments, **named)

    return again
