"""Credentials in URIs, which end in logs and in run.json: they are refused, and left out of messages."""

import re

from dim.errors import UserError

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
