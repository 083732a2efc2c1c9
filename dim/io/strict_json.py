"""Writes JSON without the NaN and Infinity that Python's json writes, and reads JSON only if it is valid Unicode."""

import json
from typing import Any


def dumps(document: object, **options: Any) -> str:
    """`document` as JSON text, with null in place of NaN and infinity."""
    return json.dumps(json.loads(json.dumps(document), parse_constant=lambda _: None), **options)


def loads(content: bytes | str) -> Any:
    """Parses the JSON document in `content`.

    Raises:
        ValueError, RecursionError: `content` is not JSON, or escapes half a surrogate pair, which is no character.
    """
    document = json.loads(content)
    json.dumps(document, ensure_ascii=False).encode()
    return document
