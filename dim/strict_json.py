"""JSON as its standard has it: without NaN and infinity, which Python writes and other readers stop at."""

import json
from typing import Any


def dumps(document: object, **options: Any) -> str:
    """`document` as JSON, in which each NaN and infinity is null."""
    return json.dumps(json.loads(json.dumps(document), parse_constant=lambda _: None), **options)
