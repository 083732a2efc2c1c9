"""Credentials in URIs, which end in logs and in run.json: they are refused, and left out of messages.

What a path or URI names. Nobody is asked: `dim.io.storage` opens what is named here.

A name is a local path, `file:///…`, `s3://BUCKET/KEY` or `gs://BUCKET/KEY`. `file://` is a URI, percent-encoded as
`Path.as_uri()` does it; a local path and a key are literal. Names stand in manifests, which anybody may have written:
they say which bucket, and never which machine is asked. So Arrow's own reading of URIs is left alone: it knows schemes
that send this machine's credentials to the host in the URI.
"""

import functools
import os
import re
from collections.abc import Callable
from urllib.parse import quote, unquote

from dim.errors import UserError, quoted

_SECRETS = "key|secret|token|sig|credential|password"  # in the name of a parameter


def require_no_secret(uri: str) -> None:
    """Raises UserError, without repeating it, where `uri` has a password or secret key in it."""
    if uri != redacted(uri):
        raise UserError(
            f"{redacted(uri)!r} has credentials in it, which end in logs; give them by the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the machine's role)"
        )


def redacted(text: str) -> str:
    """`text` without the credentials of URIs in it."""
    # What stands before a bucket is never its name; elsewhere, a number before a slash is a port.
    text = re.sub(r"\b((?:s3|gs)://)(?=[^\s/]*[:@])[^\s…]*@", r"\1…@", text)
    text = re.sub(r"(\w://)[^\s/@'\"]*:(?!\d+/)[^\s@'\"]*@", r"\1…@", text)
    return re.sub(rf"([?&;][^\s?&;=]*(?:{_SECRETS})[^\s?&;=]*=)[^\s&;'\"…]+", r"\1…", text, flags=re.IGNORECASE)


FILE = "file://"
STORES = ("s3", "gs")
MEMBER = ".tar#"  # TAR#MEMBER is a file in a tar
USE = "use a local path, file:///…, s3://… or gs://…"

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # no host with a port, no user
_WINDOWS = re.compile(r"(file:///)?[A-Za-z]:[\\/]|\\\\")  # a drive or a share
_MISSPELT = re.compile(r"\s*(file|s3|gs):(?!//)", re.IGNORECASE)
# A name like this is sound: `parts` needn't be asked about each of millions.
SOUND = (
    r"^[^:\\\x00]*$"
    rf"|^(s3|gs)://{_BUCKET.pattern}/([^:\\\x00?&;@/]+/)*[^:\\\x00?&;@/]*$"
    r"|^file:///([^:\\\x00%]|%[2-7][0-9A-Fa-f])*$"
)
_PARAMETERS = re.compile(r"\?(access_key|secret_key|endpoint_override|region|scheme|retry_limit_seconds)=")


def parts(uri: str) -> tuple[str, str]:
    """The scheme of `uri`, "" of a local path, and what it names: an absolute path, decoded, or bucket and key.

    Raises UserError for what names nothing that dim reads, and for credentials in the URI.
    """
    scheme, separator, rest = uri.partition("://")
    if separator and not uri.startswith(f"{FILE}/"):  # a file's name may have what looks like a parameter
        require_no_secret(uri)
    _require_text(uri, uri)
    _require_spelling(uri)
    if not separator:
        return "", _absolute(os.path.expanduser(uri))
    if scheme == "file":
        return scheme, _decoded(rest, uri)
    if scheme not in STORES:
        raise UserError(f"cannot open {quoted(uri)}: no storage is called {quoted(scheme)}; {USE}")
    if not _BUCKET.fullmatch(bucket := rest.partition("/")[0]):
        raise UserError(f"cannot open {quoted(uri)}: {quoted(bucket)} is not a bucket; write {scheme}://BUCKET/KEY")
    if _PARAMETERS.search(rest):
        raise UserError(f"{quoted(uri)} has parameters; set AWS_ENDPOINT_URL and AWS_REGION in the environment instead")
    if "//" in rest.rstrip("/"):
        raise UserError(f"cannot open {quoted(uri)}: its key has an empty part, //; copy it to a key without")
    return scheme, rest


def _require_text(name: str, uri: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{uri!r} is not UTF-8; rename it") from error
    if "\0" in name:
        raise UserError(f"{uri!r} has a NUL in it, which no file name can have")


def _require_spelling(uri: str) -> None:
    if _WINDOWS.match(uri):
        raise UserError(f"{quoted(uri)} is a Windows path; name the file as this machine does, such as /mnt/a.jpg")
    if misspelt := _MISSPELT.match(uri):
        right = f"{misspelt[1].lower()}://"
        raise UserError(f"cannot open {quoted(uri)}: it must begin with {right + '/' if right == FILE else right}")


def _decoded(rest: str, uri: str) -> str:
    if host := rest.partition("/")[0]:
        raise UserError(f"{quoted(uri)} names the host {quoted(host)}; write file:///…, the path on this machine")
    path = unquote(rest, errors="surrogateescape")
    _require_text(path, uri)
    return _absolute(path)


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
