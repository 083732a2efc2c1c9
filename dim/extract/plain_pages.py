"""Reads the descriptors of a shard straight from the pages of its Parquet file, ten times as fast as a Parquet reader.

In Parquet, a value of a list has two levels beside it, which say where lists begin and which values are null. A reader
decodes them value by value, and that takes longer than searching the rows. But where each row has a descriptor, the
levels say nothing, and the values stand as they are at the end of each page, if pages are plain and not compressed, as
`store.write_shard` writes them. `read` returns None for any other file, which pyarrow then reads or refuses.

The footer and the headers of pages are structs in Thrift's compact protocol. Here they are dicts: number of the field →
value. The numbers are those of https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

import zlib
from typing import Any

import numpy as np

from dim.extract.halves import to_float32

_MAGIC = b"PAR1"
_FLOAT, _FIXED_BYTES, _FLOAT16 = 4, 7, 15  # physical types, and a logical type
_UNCOMPRESSED = _DATA_PAGE = _PLAIN = 0


def read(content: bytes, dimension: int) -> np.ndarray | None:
    """The column `descriptor` of the Parquet file with this `content`, float32 (N, `dimension`).

    Returns None if the file is damaged or if it differs from what `store.write_shard` writes for rows without errors.
    """
    try:
        if content[-4:] != _MAGIC:
            return None
        footer, _ = _struct(content, len(content) - 8 - int.from_bytes(content[-8:-4], "little"))
        (place,) = [number for number, element in enumerate(footer[2]) if element[4] == b"descriptor"]
        kind = _type_of(footer[2][place + 2])  # the leaf: descriptor → list → element
        groups = [_values(content, group, kind, dimension) for group in footer[4]]
        return np.concatenate(groups).reshape(-1, dimension)
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):  # not a Parquet file as expected
        return None


def _type_of(leaf: dict[int, Any]) -> str:
    if leaf[1] == _FLOAT:
        return "<f4"
    if leaf[1] == _FIXED_BYTES and leaf[2] == 2 and _FLOAT16 in leaf[10]:
        return "<f2"
    raise ValueError("not a column of floats")


def _values(content: bytes, group: dict[int, Any], kind: str, dimension: int) -> np.ndarray:
    """The values of a row group, one after the other, float32."""
    (chunk,) = [column[3] for column in group[1] if column[3][3][0] == b"descriptor"]
    count, at, nulls = chunk[5], chunk[9], chunk[12][3]
    _require(chunk[4] == _UNCOMPRESSED and nulls == 0 and 11 not in chunk and count == group[3] * dimension)
    _require(0 <= count <= len(content))
    found = np.empty(count, np.float32)
    done = 0
    while done < count:
        header, at = _struct(content, at)
        page = memoryview(content)[at : at + header[3]]
        about = header[5]
        size = about[1] * np.dtype(kind).itemsize
        _require(header[1] == _DATA_PAGE and about[2] == _PLAIN and 0 < size <= len(page) == header[3])
        _require(zlib.crc32(page) == header[4] % 2**32)
        values = np.frombuffer(page[len(page) - size :], kind)
        found[done : done + len(values)] = to_float32(values) if kind == "<f2" else values
        done += len(values)
        at += header[3]
    return found


def _require(expected: bool) -> None:
    if not expected:
        raise ValueError("not a page as expected")


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """The struct at the offset `at` of `data`, and the offset after it."""
    fields: dict[int, Any] = {}
    number = 0
    while header := data[at]:
        at += 1
        if step := header >> 4:
            number += step
        else:
            number, at = _integer(data, at)
        fields[number], at = _value(data, at, header & 15)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true and false, which need no bytes
        return kind == 1, at
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind in (3, 7):  # a byte and a double, which no field that is read here has
        return None, at + (1 if kind == 3 else 8)
    if kind == 8:
        size, at = _unsigned(data, at)
        return data[at : at + size], at + size
    if kind == 9:
        header, at = data[at], at + 1
        size = header >> 4
        if size == 15:
            size, at = _unsigned(data, at)
        _require(size <= len(data))
        items = []
        for _ in range(size):
            item, at = _value(data, at, header & 15)
            items.append(item)
        return items, at
    if kind == 12:
        return _struct(data, at)
    raise ValueError("not a type of Parquet's structs")


def _integer(data: bytes, at: int) -> tuple[int, int]:
    number, at = _unsigned(data, at)
    return (number >> 1) ^ -(number & 1), at


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte, at = data[at], at + 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        _require(shift < 64)
