"""Files of descriptors made elsewhere: .npy arrays with a text file of ids, Parquet files, and the folders that
autofaiss and clip-retrieval read.

`find` says which files there are and which ids their rows have, and checks types and counts. `Piece.blocks` reads the
vectors in blocks, so that a file may be larger than the memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dim.errors import UserError
from dim.extract import vector_ids
from dim.io import files
from dim.io.storage import retried

DTYPES = ("float16", "float32")
BLOCK_BYTES = 2**24  # of the vectors of a block, as float32
_MOST_ROWS = 2**13  # of a block
_BLOCKS = 64  # of a piece of an .npy file
_FOLDERS = ("img_emb", "embeddings")  # of clip-retrieval, and of export.py for autofaiss
_METADATA = "metadata"  # clip-retrieval's folder of ids, beside the first of these


@dataclass(frozen=True)
class Piece:
    """The `rows` vectors from the row `first` of the file `uri`, each with `dimension` values of `dtype`.

    `column` is the column of the vectors in a Parquet file, and "" for an .npy file. A block has at most `block_rows`.
    """

    uri: str
    first: int
    rows: int
    dimension: int
    dtype: str
    block_rows: int
    column: str = ""

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields the vectors in blocks (n, D). Raises UserError if a row of a Parquet file has no whole vector."""
        return self._of_parquet() if self.column else self._of_npy()

    def _of_npy(self) -> Iterator[np.ndarray]:
        size = self.dimension * np.dtype(self.dtype).itemsize
        with files.opened(self.uri) as file:
            content = _npy_header(self.uri, file)[2] + self.first * size
            for row in range(0, self.rows, self.block_rows):
                count = min(self.block_rows, self.rows - row)
                block = retried(file.read_at)(count * size, content + row * size)
                yield np.frombuffer(block, self.dtype).reshape(count, self.dimension)

    def _of_parquet(self) -> Iterator[np.ndarray]:
        row = self.first
        with files.opened(self.uri) as source:
            # Without these two settings, Arrow reads whole row groups, which may be as large as the file.
            file = pq.ParquetFile(source, buffer_size=2**20, pre_buffer=False)
            for batch in file.iter_batches(self.block_rows, columns=[self.column]):
                column = batch.column(0)
                short = pc.fill_null(pc.not_equal(pc.list_value_length(column), self.dimension), True)
                if (wrong := pc.index(pc.or_(short, column.is_null()), True).as_py()) >= 0:
                    found = f"{len(column[wrong])} values" if column[wrong].is_valid else "no vector"
                    raise UserError(f"{self.uri!r}: row {row + wrong + 1} has {found}, not {self.dimension} values")
                values = column.flatten()
                if (wrong := pc.index(values.is_null(), True).as_py()) >= 0:
                    raise UserError(f"{self.uri!r}: row {row + wrong // self.dimension + 1} has an empty value")
                row += len(column)
                yield values.to_numpy(zero_copy_only=False).reshape(len(column), self.dimension)


@dataclass(frozen=True)
class VectorSet:
    """The pieces of a set of descriptors, in order, and the id of each row: strings (N,)."""

    pieces: list[Piece]
    ids: pa.Array

    @property
    def starts(self) -> list[int]:
        """The row of the set that each piece begins with."""
        return [0, *np.cumsum([piece.rows for piece in self.pieces]).tolist()[:-1]]


def find(source: str, ids: str | None, id_column: str | None, vector_column: str | None) -> VectorSet:
    """Finds the files of `source`, an .npy or Parquet file or a folder of them, and reads the ids.

    Args:
        source: The files of a folder are read in the order of their names. A folder may also be one that
            clip-retrieval reads, or that export.py makes.
        ids: A text file with one id a line, for .npy files without metadata.
        id_column: The column of ids in Parquet files. By default, the first of `vector_ids.NAMES` that there is.
        vector_column: The column of vectors. By default, the only one that holds lists of numbers.

    Raises:
        UserError: There is no such file, files are of several kinds or dimensions, a type is not one of `DTYPES`, a
            column is missing or ambiguous, or there are more or fewer ids than rows.
    """
    vectors, metadata = _listed(source)
    if vectors[0].endswith(".npy"):
        if vector_column:
            raise UserError(f"--vector-column {vector_column!r} is for Parquet files; {source!r} holds .npy files")
        whole = [_npy_file(uri) for uri in vectors]
    else:
        whole = [_parquet_file(uri, vector_column) for uri in vectors]
        metadata = vectors
    for piece in whole:
        if (piece.dimension, piece.dtype) != (whole[0].dimension, whole[0].dtype):
            raise UserError(
                f"{piece.uri!r} has {piece.dimension} values a row of {piece.dtype}, and {whole[0].uri!r} "
                f"{whole[0].dimension} of {whole[0].dtype}; import each kind with an --out of its own"
            )
    rows = sum(piece.rows for piece in whole)
    if not rows:
        raise UserError(f"{source!r} holds no row")
    if ids and metadata:
        raise UserError(f"--ids {ids!r} is for .npy files alone; the tables {metadata[0]!r} … have a column of ids")
    if ids:
        known = vector_ids.of_lines(ids)
        vector_ids.require_count(ids, len(known), source, rows)
    elif metadata:
        columns = [vector_ids.of_table(uri, id_column) for uri in metadata]
        for uri, column, piece in zip(metadata, columns, whole, strict=True):
            vector_ids.require_count(uri, len(column), piece.uri, piece.rows)
        known = pa.concat_arrays(columns)
    else:
        raise UserError(f"{source!r} holds .npy files, which have no ids; give --ids FILE, with one id a line")
    return VectorSet([part for piece in whole for part in _split(piece)], known)


def _listed(source: str) -> tuple[list[str], list[str]]:
    """The files of vectors, all .npy or all Parquet, and clip-retrieval's tables of ids, if there are any."""
    if not files.exists(source):
        raise UserError(f"no file or folder {source!r}; SOURCE is an .npy file, a Parquet file, or a folder of them")
    if not files.is_folder(source):
        found = [source]
    else:
        folder = next((files.join(source, name) for name in _FOLDERS if name in files.folders(source)), source)
        found = [files.join(folder, name) for name in files.names(folder)]
    vectors = [uri for uri in found if uri.endswith((".npy", ".parquet"))]
    kinds = {uri.rpartition(".")[2] for uri in vectors}
    if len(kinds) != 1:
        what = "both .npy and .parquet files" if kinds else "neither an .npy nor a .parquet file"
        raise UserError(f"{source!r} is or holds {what}; name an .npy file, a Parquet file, or a folder of one kind")
    beside = files.join(source, _METADATA)
    if kinds == {"parquet"} or vectors == [source] or not files.is_folder(beside):
        return vectors, []
    return vectors, [files.join(beside, name) for name in files.names(beside) if name.endswith(".parquet")]


def _split(piece: Piece) -> Iterator[Piece]:
    """Yields an .npy file in pieces, which are read in parallel. A Parquet file can be read only from its start."""
    size = piece.rows if piece.column else piece.block_rows * _BLOCKS
    for first in range(0, piece.rows, size or 1):
        yield replace(piece, first=first, rows=min(size, piece.rows - first))


def _npy_file(uri: str) -> Piece:
    with files.opened(uri) as file:
        shape, dtype, start = _npy_header(uri, file)
        missing = start + math.prod(shape) * np.dtype(dtype).itemsize - file.size()
    if missing > 0:
        raise UserError(f"{uri!r} is cut off: {missing:,} bytes are missing; copy it again")
    return Piece(uri, 0, *shape, dtype, _block_rows(shape[1]))


def _npy_header(uri: str, file: Any) -> tuple[tuple[int, int], str, int]:
    """The shape and type of the array in `file`, and the byte at which its values begin."""
    try:
        file.seek(0)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise UserError(f"{uri!r} is not an .npy file: {' '.join(str(error).split())[:200]}") from error
    if dtype.name not in DTYPES or not dtype.isnative:
        raise UserError(f"{uri!r} has values of {dtype.str}; {_conversion(dtype.name)}")
    if len(shape) != 2 or by_column or not shape[1]:
        layout = ", by columns" if by_column else ""
        raise UserError(f"{uri!r} has the shape {shape}{layout}; save one row a descriptor, as numpy.ascontiguousarray")
    return shape, dtype.name, file.tell()


def _conversion(dtype: str) -> str:
    return f"dim reads float16 and float32: convert them, as array.astype('float32') does, from {dtype}"


def _parquet_file(uri: str, vector_column: str | None) -> Piece:
    schema, rows = vector_ids.schema_of(uri)
    lists = [field.name for field in schema if _is_vector(field.type)]
    chosen = [vector_column] if vector_column else lists
    if len(chosen) != 1 or chosen[0] not in schema.names:
        has = f"it has {', '.join(map(repr, lists or schema.names))}"
        raise UserError(f"{uri!r} has no single column of vectors; name it by --vector-column ({has})")
    kind = schema.field(chosen[0]).type
    if not _is_vector(kind) or str(kind.value_type) not in _ARROW:
        raise UserError(f"{uri!r}: column {chosen[0]!r} is {kind}; {_conversion(str(kind))}")
    dimension = kind.list_size if pa.types.is_fixed_size_list(kind) else _first_length(uri, chosen[0])
    if rows and not dimension:
        raise UserError(f"{uri!r}: the vectors in column {chosen[0]!r} have no value")
    return Piece(uri, 0, rows, dimension, _ARROW[str(kind.value_type)], _block_rows(dimension), chosen[0])


def _block_rows(dimension: int) -> int:
    """The most rows of a block. They depend on the dimension alone, so that shards are the same on any machine."""
    return max(1, min(_MOST_ROWS, BLOCK_BYTES // (4 * max(1, dimension))))


_ARROW = {"halffloat": "float16", "float": "float32"}


def _is_vector(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and pa.types.is_floating(kind.value_type))


def _first_length(uri: str, column: str) -> int:
    with files.opened(uri) as file:
        for batch in pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False).iter_batches(1, columns=[column]):
            return len(batch.column(0).flatten())
    return 0
