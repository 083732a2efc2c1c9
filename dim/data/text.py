"""How a column of a table, whatever its type, becomes text: ids, paths, labels."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

# The smallest whole number that is not the only one that rounds to its float.
_INEXACT = {pa.float16(): 2**11, pa.float32(): 2**24, pa.float64(): 2**53}


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` as strings: a whole number without decimals whatever its type (3, 3.0 and the decimal 3.00 are "3"),
    NaN null.

    Raises an Arrow error for a type that has no text, for text that is not UTF-8, and for a number that is infinite, or
    too large for its type to hold exactly: two of these could be one text.
    """
    column = plain(column)
    if pat.is_floating(column.type):
        return _of_floats(column)
    text = column.cast(pa.string())
    return pc.replace_substring_regex(text, r"\.0+$", "") if pat.is_decimal(column.type) else text


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column`, the values of a dictionary written out, as of pandas' categories."""
    return column.cast(column.type.value_type) if pat.is_dictionary(column.type) else column


def empty_as_null(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """`text`, null where there is nothing or nothing but spaces."""
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(text), ""), pa.scalar(None, pa.string()), text)


def _of_floats(column: pa.ChunkedArray) -> pa.ChunkedArray:
    limit = _INEXACT[column.type]
    values = column.cast(pa.float64())
    values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
    large = pc.greater_equal(pc.abs(values), limit)
    if (row := pc.index(large, True).as_py()) >= 0:
        raise pa.ArrowInvalid(
            f"row {row + 1} has {values[row]}, which {column.type} can't hold exactly; store it as text"
        )
    whole = pc.equal(values, pc.floor(values))
    numbers = pc.if_else(whole, values, 0).cast(pa.int64()).cast(pa.string())
    return pc.if_else(whole, numbers, column.cast(pa.string()))
