"""Splits a path or URI into what it names: a local path, or a bucket and a key in a store.

A name is a local path, `file:///…`, `s3://BUCKET/KEY` or `gs://BUCKET/KEY`. A file:// URI is percent-encoded, as
`Path.as_uri()` encodes it; local paths and keys are literal. `TAR#MEMBER` names a file in a tar archive, where TAR is
any of these names and ends in .tar. It is split at the last `.tar#`. A stranger may have written the names in a
manifest. A name may choose a bucket, but not the host that serves the bucket. So dim doesn't use Arrow's parser of
URIs: some schemes that it accepts send this machine's credentials to a host in the URI. A URI with credentials in it is
refused, and `redacted` removes credentials from text for logs.
"""

import functools
import os
import re
from collections.abc import Callable
from urllib.parse import quote, unquote

from dim.errors import UserError, quoted

FILE = "file://"
STORES = ("s3", "gs")
MEMBER = ".tar#"  # `TAR#MEMBER` names a file in a tar archive
USE = "use a local path, file:///…, s3://… or gs://…"

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # without : and @, so that no port, user or password matches
_WINDOWS = re.compile(r"(file:///)?[A-Za-z]:[\\/]|\\\\")  # a drive or a share
_MISSPELT = re.compile(r"\s*(file|s3|gs):(?!//)", re.IGNORECASE)
# `parts` accepts each name that matches this pattern. So one call can check a whole column of a table.
SOUND = (
    r"^[^:\\\x00]*$"
    rf"|^(s3|gs)://{_BUCKET.pattern}/([^:\\\x00?&;@/]+/)*[^:\\\x00?&;@/]*$"
    r"|^file:///([^:\\\x00%]|%[2-7][0-9A-Fa-f])*$"
)
_PARAMETERS = re.compile(r"\?(access_key|secret_key|endpoint_override|region|scheme|retry_limit_seconds)=")


def parts(uri: str) -> tuple[str, str]:
    """Splits `uri` into ("", absolute path), ("file", absolute decoded path), or ("s3" or "gs", "BUCKET/KEY").

    The path of a tar's member is the path of the tar, a # and the decoded name of the member. Raises UserError if `uri`
    is malformed, names a storage that dim doesn't know, or has credentials in it.
    """
    tar, member = tar_and_member(uri)
    if member is not None:
        _require_text(member, uri)
        scheme, path = parts(tar)
        return scheme, f"{path}#{member}"
    scheme, separator, rest = uri.partition("://")
    if separator and not uri.startswith(f"{FILE}/"):  # a local file's name may look like a parameter
        require_no_secret(uri)
    _require_text(uri, uri)
    _require_spelling(uri)
    if not separator:
        return "", _absolute(os.path.expanduser(uri))
    if scheme == "file":
        return scheme, _decoded(rest, uri)
    if scheme not in STORES:
        raise UserError(f"cannot open {quoted(uri)}: unknown scheme {quoted(scheme)}; {USE}")
    if not _BUCKET.fullmatch(bucket := rest.partition("/")[0]):
        raise UserError(f"cannot open {quoted(uri)}: {quoted(bucket)} is not a bucket; write {scheme}://BUCKET/KEY")
    if _PARAMETERS.search(rest):
        raise UserError(f"{quoted(uri)} has parameters; set AWS_ENDPOINT_URL and AWS_REGION in the environment instead")
    if "//" in rest.rstrip("/"):
        raise UserError(f"cannot open {quoted(uri)}: its key has an empty part, //; copy it to a key without one")
    return scheme, rest


def tar_and_member(uri: str) -> tuple[str, str | None]:
    """Splits `TAR#MEMBER` into the URI of the tar and the decoded name of the member. Others have no member (None)."""
    above, mark, member = uri.rpartition(MEMBER)
    if not mark:
        return uri, None
    return f"{above}{MEMBER[:-1]}", unquote(member, errors="surrogateescape") if uri.startswith(FILE) else member


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
    return f"/{os.path.abspath(path).lstrip('/')}"  # abspath keeps two leading slashes


def is_plain(name: str) -> bool:
    """Whether `name` is a relative path: not absolute, and nothing like a URI or a Windows path."""
    return not (name.startswith("/") or "://" in name or _WINDOWS.match(name) or _MISSPELT.match(name))


def encoded(name: str) -> str:
    """Percent-encodes `name`, a path or a part of a path, for a file:// URI."""
    return _around_member_mark(name, lambda part: quote(part, errors="surrogatepass"))


@functools.lru_cache(maxsize=64)  # `files.join` repeats the call for each file in a folder
def canonical(uri: str) -> str:
    """Encodes the file:// `uri` as `Path.as_uri()` does, but keeps the # before a tar's member. Raises as `parts`."""
    parts(uri)
    return FILE + _around_member_mark(uri.removeprefix(FILE), lambda part: quote(unquote(part)))


def _around_member_mark(name: str, change: Callable[[str], str]) -> str:
    tar, mark, member = name.rpartition(MEMBER)
    return change(tar) + mark + change(member)


def require_no_secret(uri: str) -> None:
    """Raises UserError if `uri` has a password or secret key in it. The message leaves out the secret."""
    if uri != redacted(uri):
        raise UserError(
            f"{redacted(uri)!r} has credentials in it, which would end up in logs; give them by the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the machine's role)"
        )


def redacted(text: str) -> str:
    """`text` with … in place of each credential in a URI."""
    # Text before an @ is never part of a bucket's name. In other URIs, a number between : and / is a port.
    text = re.sub(r"\b((?:s3|gs)://)(?=[^\s/]*[:@])[^\s…]*@", r"\1…@", text)
    text = re.sub(r"(\w://)[^\s/@'\"]*:(?!\d+/)[^\s@'\"]*@", r"\1…@", text)
    secrets = "key|secret|token|sig|credential|password"  # words in the names of parameters that hold credentials
    return re.sub(rf"([?&;][^\s?&;=]*(?:{secrets})[^\s?&;=]*=)[^\s&;'\"…]+", r"\1…", text, flags=re.IGNORECASE)
