"""A writer of TIFF files of any kind, as TIFF 6.0 says, in a plain way."""

import struct
import zlib

import numpy as np

GREY_INVERTED, GREY, RGB, PALETTE, CMYK, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
_SIZES = {2: 1, 3: 2, 4: 4, 7: 1, 16: 8}
_CODES = {2: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}


def packed(values, bits, order):
    """The rows of `values` (H, W), each sample `bits` wide, each row padded to whole bytes."""
    if bits in (8, 16, 32):
        return values.astype(f"{order}u{bits // 8}").tobytes()
    kept = (values[..., None].astype(np.uint32) >> np.arange(bits - 1, -1, -1, dtype=np.uint32)) & 1
    return np.packbits(kept.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def _packbits(data):
    return b"".join(
        struct.pack("B", len(part) - 1) + part for part in (data[i : i + 128] for i in range(0, len(data), 128))
    )


def _lzw(data):
    """Codes of nine bits only: the table is cleared before it needs ten."""
    codes = []
    for start in range(0, len(data), 200):
        codes += [256, *data[start : start + 200]]
    bits = (np.array([*codes, 257])[:, None] >> np.arange(8, -1, -1)) & 1
    return np.packbits(bits.reshape(-1).astype(np.uint8)).tobytes()


COMPRESSIONS = {1: lambda data: data, 5: _lzw, 8: zlib.compress, 32946: zlib.compress, 32773: _packbits}


def tiff(
    samples,
    bits,
    photometric,
    *,
    planar=False,
    order="<",
    big=False,
    tile=None,
    rows_per_strip=7,
    compression=1,
    predictor=False,
    reversed_bits=False,
    tags=(),
):
    """The file of `samples` (H, W, S), unsigned whole numbers of `bits` each; `tags`: (number, type, values) more."""
    height, width, count = samples.shape
    planes = [samples[..., [i]] for i in range(count)] if planar else [samples]
    if tile:
        boxes = [(y, x, tile, tile) for y in range(0, height, tile) for x in range(0, width, tile)]
    else:
        boxes = [(y, 0, min(rows_per_strip, height - y), width) for y in range(0, height, rows_per_strip)]
    pieces = []
    for plane in planes:
        for y, x, rows, columns in boxes:
            part = np.zeros((rows, columns, plane.shape[2]), np.int64)
            found = plane[y : y + rows, x : x + columns]
            part[: found.shape[0], : found.shape[1]] = found
            if predictor:
                part[:, 1:] = (part[:, 1:] - part[:, :-1]) % 2**bits
            data = packed(part.reshape(rows, -1), bits, order)
            data = COMPRESSIONS[compression](data)
            if reversed_bits:
                data = np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, 8)[:, ::-1]).tobytes()
            pieces.append(data)
    return assembled(
        pieces, (width, height), [bits] * count, photometric, planar=planar, order=order, big=big, tile=tile,
        rows_per_strip=rows_per_strip, compression=compression,
        tags=[*tags, *([(317, 3, [2])] if predictor else []), *([(266, 3, [2])] if reversed_bits else [])],
    )  # fmt: skip


def assembled(
    pieces,
    size,
    bits,
    photometric,
    *,
    planar=False,
    order="<",
    big=False,
    tile=None,
    rows_per_strip=2**31,
    compression=1,
    tags=(),
    more=(),
):
    """The file whose strips or tiles are `pieces`, already compressed; `more` are the tags by which further pages, of
    the same strips, differ.
    """
    width, height = size
    entries = {
        256: (4, [width]), 257: (4, [height]), 258: (3, bits), 259: (3, [compression]), 262: (3, [photometric]),
        277: (3, [len(bits)]), 284: (3, [2 if planar else 1]),
    }  # fmt: skip
    if tile:
        entries |= {322: (4, [tile]), 323: (4, [tile])}
    else:
        entries[278] = (4, [min(rows_per_strip, height)])
    start = 16 if big else 8
    offsets = [start + sum(map(len, pieces[:i])) for i in range(len(pieces))]
    entries |= {324 if tile else 273: (4, offsets), 325 if tile else 279: (4, [len(piece) for piece in pieces])}
    entries |= {number: (kind, values) for number, kind, values in tags}
    data = b"".join(pieces)
    data += b"\0" * (len(data) % 2)
    return _file(data, [entries, *(entries | changes for changes in more)], order, big)


def _file(data, directories, order, big):
    mark = b"II" if order == "<" else b"MM"
    room, word, count = (8, "Q", "Q") if big else (4, "I", "H")
    head = mark + (struct.pack(f"{order}HHH", 43, 8, 0) if big else struct.pack(f"{order}H", 42))
    body = head + struct.pack(order + word, len(head) + room + len(data)) + data
    for number, entries in enumerate(directories):
        table = struct.pack(order + count, len(entries))
        after = len(body) + len(table) + len(entries) * (12 if not big else 20) + room
        extra = b""
        for tag, (kind, values) in sorted(entries.items()):
            value = struct.pack(f"{order}{len(values)}{_CODES[kind]}", *values)
            if len(value) > room:
                where, value = after + len(extra), value + b"\0" * (len(value) % 2)
                extra += value
                value = struct.pack(order + word, where)
            table += struct.pack(f"{order}HH{word}", tag, kind, len(values)) + value.ljust(room, b"\0")
        last = number == len(directories) - 1
        body += table + struct.pack(order + word, 0 if last else after + len(extra)) + extra
    return body
