"""Which storage a path or URI names, and how patiently it is asked: everything else goes through `dim.files`.

A name is a local path, `file:///…`, `s3://BUCKET/KEY` or `gs://BUCKET/KEY`. `file://` is a URI, percent-encoded as
`Path.as_uri()` does it; a local path and a key are literal. Names stand in manifests, which anybody may have written:
they say which bucket, and never which machine is asked. So Arrow's own reading of URIs is left alone: it knows schemes
that send this machine's credentials to the host in the URI.

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
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs

from dim.credentials import require_no_secret
from dim.errors import UserError, quoted

# The SDK makes a failed request again at once. What goes on failing, or what it doesn't see as passing (an error longer
# than the small object that was asked for), `patient` tries again after a wait, doubled each time: 15 s in all.
RETRIES, TRIES, FIRST_WAIT = 3, 5, 1.0
CONNECT_SECONDS, SILENT_SECONDS = 5.0, 10.0  # a connection from which no byte comes for as long is given up
GOOGLE_SECONDS = 10.0  # in which Google's library makes a failed request again, before `patient` does

P = ParamSpec("P")
T = TypeVar("T")

FILE = "file://"
MEMBER = ".tar#"  # TAR#MEMBER is a file in a tar

_LOCAL = pafs.LocalFileSystem()
_STORES = ("s3", "gs")
_USE = "use a local path, file:///…, s3://… or gs://…"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # no host with a port, no user
_WINDOWS = re.compile(r"(file:///)?[A-Za-z]:[\\/]|\\\\")  # a drive or a share
_MISSPELT = re.compile(r"\s*(file|s3|gs):(?!//)", re.IGNORECASE)
# A name like this is sound: `parts` needn't be asked about each of millions.
SOUND = (
    r"^[^:\\\x00]*$"
    rf"|^(s3|gs)://{_BUCKET.pattern}/[^:\\\x00?&;@]*$"
    r"|^file:///([^:\\\x00?&;@%]|%[2-7][0-9A-Fa-f])*$"
)
# What Arrow writes into its messages; such errors of stores have no number.
_PASSING = re.compile("NETWORK_CONNECTION|INTERNAL|SLOW_DOWN|THROTTL|UNAVAILABLE|DEADLINE_EXCEEDED|HTTP status 5")
_NO_TOKEN = re.compile(r"OAuth2 access token.*The underlying error message was: (.*?) error_info", re.DOTALL)
_PARAMETERS = re.compile(r"\?(access_key|secret_key|endpoint_override|region|scheme|retry_limit_seconds)=")


def parts(uri: str) -> tuple[str, str]:
    """The scheme of `uri`, "" of a local path, and what it names: an absolute path, decoded, or bucket and key.

    Asks no store. Raises UserError for what names nothing that dim reads, and for credentials in the URI.
    """
    scheme, separator, rest = uri.partition("://")
    if separator:
        require_no_secret(uri)
    _require_text(uri, uri)
    if _WINDOWS.match(uri):
        raise UserError(f"{quoted(uri)} is a path of Windows; name the file as this machine does, such as /mnt/a.jpg")
    if misspelt := _MISSPELT.match(uri):
        right = f"{misspelt[1].lower()}://"
        raise UserError(f"cannot open {quoted(uri)}: it must begin with {right + '/' if right == FILE else right}")
    if not separator:
        return "", _absolute(os.path.expanduser(uri))
    if scheme == "file":
        if host := rest.partition("/")[0]:
            raise UserError(f"{quoted(uri)} names the host {quoted(host)}; write file:///…, the path on this machine")
        path = unquote(rest, errors="surrogateescape")
        _require_text(path, uri)
        return scheme, _absolute(path)
    if scheme not in _STORES:
        raise UserError(f"cannot open {quoted(uri)}: no storage is called {quoted(scheme)}; {_USE}")
    if not _BUCKET.fullmatch(bucket := rest.partition("/")[0]):
        raise UserError(f"cannot open {quoted(uri)}: {quoted(bucket)} is no bucket; write {scheme}://BUCKET/KEY")
    if _PARAMETERS.search(rest):
        raise UserError(f"{quoted(uri)} has parameters; set AWS_ENDPOINT_URL and AWS_REGION in the environment instead")
    return scheme, rest


def _require_text(name: str, uri: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{uri!r} is no UTF-8; rename it") from error
    if "\0" in name:
        raise UserError(f"{uri!r} has a NUL in it, which no name has")


def _absolute(path: str) -> str:
    return f"/{os.path.abspath(path).lstrip('/')}"  # of two slashes, abspath keeps both


def is_plain(name: str) -> bool:
    """Whether `name` is relative to the folder in which it stands: no path from the root, and nothing like a URI."""
    return not (name.startswith("/") or "://" in name or _WINDOWS.match(name) or _MISSPELT.match(name))


def encoded(name: str) -> str:
    """`name`, a path or a part of one, as it stands in a file:// URI."""
    return _of_both(name, lambda part: quote(part, errors="surrogatepass"))


@functools.lru_cache(maxsize=64)  # of a folder, asked for each file in it
def canonical(uri: str) -> str:
    """The file:// `uri` as `Path.as_uri()` would write it, except that the mark of a tar's member stays.

    Raises UserError as `parts` does.
    """
    parts(uri)
    return FILE + _of_both(uri.removeprefix(FILE), lambda part: quote(unquote(part)))


def _of_both(name: str, change: Callable[[str], str]) -> str:
    tar, mark, member = name.rpartition(MEMBER)
    return change(tar) + mark + change(member)


def locate(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of `uri` and the path within it; a path without a scheme is local and made absolute.

    Raises UserError as `parts` does, and for a storage that can't be reached.
    """
    scheme, path = parts(uri)
    return (_opened(f"{scheme}://{path.partition('/')[0]}") if scheme in _STORES else _LOCAL), path


@functools.lru_cache(maxsize=64)  # to find a bucket takes a question to the store
def _opened(uri: str) -> pafs.FileSystem:
    scheme, _, bucket = uri.partition("://")
    try:
        return _s3(bucket) if scheme == "s3" else _google(bucket)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot open {uri!r}: {error}; {_USE}") from error


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
