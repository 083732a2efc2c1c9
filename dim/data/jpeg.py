"""A JPEG without its end marker: whether anything of the picture is missing."""

import io
import re

import numpy as np
from PIL import Image

_END = b"\xff\xd9"
# Two pieces of entropy-coded data that no decoder takes for the same. Neither holds a marker.
_TAILS = (b"\x55\x2c\xe1\x07" * 64 + _END, b"\xb3\x9a\x0f\x48" * 64 + _END)
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # no restart (D0 to D7), no stuffed byte


def ended(content: bytes) -> bytes | None:
    """The JPEG in `content`, which has no end marker, with one; None where rows are missing, or scans that refine them.

    What comes after the last block changes nothing of the picture, but would be taken for blocks that are missing. So
    the picture is whole if it is the same with either of two tails.
    """
    content = content.rstrip(b"\xff")
    if not _has_all_scans(content):
        return None
    one, other = (np.asarray(Image.open(io.BytesIO(content + tail), formats=("JPEG",))) for tail in _TAILS)
    return content + _END if np.array_equal(one, other) else None


def _has_all_scans(content: bytes) -> bool:
    """Whether there is a scan for each bit of each coefficient of each component (ITU T.81, B.2.3)."""
    components: bytes = b""
    missing: dict[tuple[int, int], int] = {}  # bits of (component, coefficient) that are to come
    place = 2
    while found := _MARKER.search(content, place):
        marker, start = found[1][0], found.end()
        length = int.from_bytes(content[start : start + 2])
        segment = content[start + 2 : start + length]
        place = start + length
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            components = segment[6 : 6 + 3 * segment[5] : 3]
            missing = {(component, number): 16 for component in components for number in range(64)}
        elif marker == 0xDA:
            count = segment[0]
            first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
            for component in segment[1 : 1 + 2 * count : 2]:
                missing |= {(component, number): bits & 15 for number in range(first, last + 1)}
    return bool(missing) and not any(missing.values())
