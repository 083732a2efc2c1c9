"""JSON as its standard has it: no NaN and infinity, which Python writes, and no text that is not Unicode."""

import json
from typing import Any


def dumps(document: object, **options: Any) -> str:
    """`document` as JSON, in which each NaN and infinity is null."""
    return json.dumps(json.loads(json.dumps(document), parse_constant=lambda _: None), **options)


def loads(content: bytes | str) -> Any:
    """The JSON document in `content`.

    Raises ValueError or RecursionError where it is none, or holds half a surrogate pair: JSON can escape it, but it can
    be neither written nor shown.
    """
    document = json.loads(content)
    json.dumps(document, ensure_ascii=False).encode()
    return document
