"""Tables of photos between the steps of an extraction: rows of a manifest → decoded photos → rows of the store."""

from collections.abc import Callable, Generator
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from dim.data.decode import Decoded
from dim.data.limits import DecodeError
from dim.data.prefetch import Prefetched, prefetch
from dim.extract import store
from dim.io import files

# The columns of a decoded photo. `width` and `height` are those of the upright photo, before it is resized.
DECODED = pa.schema(
    [(name, pa.string()) for name in ("image_id", "content", "shard", "status", "error")]
    + [("pixels", pa.struct({"data": pa.large_binary(), "height": pa.int32(), "width": pa.int32()}))]
    + [("width", pa.int32()), ("height", pa.int32()), ("several", pa.bool_())]
)

# A function that augments a photo: (pixels (H, W, 3), content fingerprint) → pixels of the same shape.
Change: TypeAlias = Callable[[np.ndarray, str], np.ndarray]


def decode(
    table: pa.Table, decoder: Callable[..., Decoded], step: int, change: Change | None = None
) -> Generator[pa.Table, None, None]:
    """Decodes the photos of `table` (image_id, path, box, content, shard).

    Args:
        decoder: Decodes the content of a file, and crops it to the box `box`. See `dim.data.isolated`.
        step: The number of photos of each table that is yielded.
        change: Augments each decoded photo.

    Yields:
        Tables with the columns DECODED. A photo that cannot be decoded becomes an error row that gives the reason.
    """
    rows, found = table.to_pylist(), {}
    for photo in prefetch(table["path"].to_pylist()):
        found[photo.position] = _decode_row(rows[photo.position], photo, decoder, change)
        if len(found) == step:
            yield _as_table(found)
            found = {}
    if found:
        yield _as_table(found)


def _as_table(found: dict[int, dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([found[position] for position in sorted(found)], schema=DECODED)


def _decode_row(
    row: dict[str, Any], photo: Prefetched, decode: Callable[..., Decoded], change: Change | None
) -> dict[str, Any]:
    outcome = {name: row[name] for name in ("image_id", "content", "shard")}
    try:
        image = decode(photo.read(), box=row["box"] and tuple(row["box"]))
    except (DecodeError, OSError) as error:
        reason = str(error) if isinstance(error, DecodeError) else f"cannot read the file: {files.reason(error)}"
        return outcome | {"status": store.ERROR, "error": reason}
    made = change(image.pixels, row["content"]) if change else image.pixels
    height, width, _ = made.shape
    pixels = {"data": made.tobytes(), "height": height, "width": width}
    found = {"width": image.width, "height": image.height, "several": image.several}
    return outcome | found | {"pixels": pixels, "status": store.OK}


def images(table: pa.Table) -> list[np.ndarray]:
    """The decoded photos, uint8 (H, W, 3), of a table with the columns DECODED. Error rows are left out.

    The arrays are read-only views of the table's memory. Copying a photo takes as long as embedding it on a GPU.
    """
    found: list[np.ndarray] = []
    for chunk in table["pixels"].chunks:
        data, heights, widths = (chunk.field(name) for name in ("data", "height", "width"))
        _, offsets, values = data.buffers()
        ends = np.frombuffer(offsets, np.int64)[data.offset : data.offset + len(data) + 1]
        for row in np.flatnonzero(chunk.is_valid().to_numpy(zero_copy_only=False)):
            pixels = np.frombuffer(values, np.uint8, ends[row + 1] - ends[row], ends[row])
            found.append(pixels.reshape(heights[row].as_py(), widths[row].as_py(), 3))
    return found


def embedded(table: pa.Table, vectors: np.ndarray, dtype: str) -> pa.Table:
    """Makes the store's rows from a table with the columns DECODED. The columns `shard` and `several` are kept, too.

    `vectors` (n, D) are the descriptors of the n decoded photos. They become `dtype`, "float32" or "float16".
    """
    schema = store.schema(vectors.shape[1], dtype)
    ok = table["status"].to_numpy() == store.OK
    values = np.zeros((len(ok), vectors.shape[1]), dtype)
    values[ok] = vectors
    flat = pa.array(values.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(~ok))
    columns = [column if name == "descriptor" else table[name] for name in schema.names]
    found = pa.Table.from_arrays(columns, schema=schema)
    return found.append_column("shard", table["shard"]).append_column("several", table["several"])
