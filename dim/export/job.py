"""The job of export.py: writes descriptors or a network in a format that other tools read.

To add a format, add its name to `ExportFormat`, and its function to `LAYOUTS` (for descriptors) or `NETWORKS`.
"""

import importlib.util
import io
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dim.app import output_folder
from dim.app.output_folder import Output
from dim.app.progress import step, with_progress
from dim.errors import UserError
from dim.export.config import ExportConfig, ExportFormat
from dim.io import files, local_copies
from dim.model import devices
from dim.model.spec import Source
from dim.search import descriptor_folder
from dim.search.descriptor_folder import DescriptorFolder

_LINES = 2**16  # lines of a text file that are made at a time
_PART = re.compile(r"((img_emb|metadata)_)?[0-9]{6}\.(npy|parquet)")  # the names of the files that `_parts` writes


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes the descriptors or the network that `config` names to `config.out`.

    Returns:
        The numbers of rows, errors and files; or the dimension of the network and the number of files.

    Raises:
        UserError: The format does not suit the input, the folder holds no descriptors, or an id has a line break (npy).
    """
    given = {"model": config.model, "descriptors": config.descriptors}
    wanted = "model" if config.format in NETWORKS else "descriptors"
    if given.pop(wanted) is None or any(given.values()):
        raise UserError(f"--format {config.format} needs --{wanted}, and no other input")
    return _network(config) if config.model else _descriptors(config, str(config.descriptors))


def _network(config: ExportConfig) -> dict[str, Any]:
    with step("building the network"):
        content, dimension = NETWORKS[config.format](config.source(str(config.model)))
    with output_folder.opened(config.out, "export", config, {"model": config.model}) as out:
        files.write_bytes(out.path(f"model.{config.format}"), content)
        return out.finish({"dimension": dimension, "files": 1})


def _keras(source: Source) -> tuple[bytes, int]:
    """Returns the content of the `.keras` file, and the dimension of the descriptors."""
    from dim.export.keras_network import model_of  # noqa: PLC0415  (descriptors need no TensorFlow)

    devices.use_assigned_gpus()
    model = model_of(source)
    with tempfile.TemporaryDirectory() as folder:  # Keras writes only to files, in the format that the ending names
        model.save(f"{folder}/model.keras")
        return Path(f"{folder}/model.keras").read_bytes(), model.output_shape[-1]


def _onnx(source: Source) -> tuple[bytes, int]:
    """Returns the content of the `.onnx` file, and the dimension of the descriptors."""
    if importlib.util.find_spec("onnx") is None:
        raise UserError('--format onnx needs the package onnx; install the extra: pip install ".[export]"')
    from dim.export.onnx_graph import model_of  # noqa: PLC0415  (descriptors need no ONNX)

    devices.use_assigned_gpus()
    model = model_of(source)
    return model.SerializeToString(), model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value


NETWORKS: dict[str, Callable[[Source], tuple[bytes, int]]] = {"keras": _keras, "onnx": _onnx}


def _descriptors(config: ExportConfig, folder: str) -> dict[str, Any]:
    rows = descriptor_folder.read(folder, hashed=True)
    if config.format == "npy" and pc.any(pc.match_substring(rows.ids, "\n")).as_py():
        raise UserError(f"an image_id of {folder!r} has a line break; use --format autofaiss")
    with output_folder.opened(config.out, "export", config, {"descriptors": folder}, rows.embedding.as_json()) as out:
        written = LAYOUTS[config.format](rows, out)
        return out.finish({"rows": len(rows), "errors": len(rows.errors), "files": written})


def npy(rows: DescriptorFolder, out: Output) -> int:
    """Writes `descriptors.npy`, float32 (N, D), and `names.txt`, which has one image_id per line in the same order."""
    written = 0
    with local_copies.path_to_write(out.path("descriptors.npy")) as path, open(path, "wb") as file:
        for number, block in enumerate(with_progress(rows, len, "exporting", len(rows), "rows")):
            if number == 0:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), block.shape[1])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(block.data)
            written += len(block)
    _require_all(rows, written)
    with local_copies.path_to_write(out.path("names.txt")) as path, open(path, "wb") as file:
        for start in range(0, len(rows), _LINES):
            file.writelines(f"{name}\n".encode() for name in rows.ids.slice(start, _LINES).to_pylist())
    return 2


def autofaiss(rows: DescriptorFolder, out: Output) -> int:
    """Writes files `embeddings/NNNNNN.parquet`, whose columns are image_id and embedding (a list of float32).

    Call autofaiss with file_format="parquet", embedding_column_name="embedding" and id_columns=["image_id"].
    """

    def parquet(ids: pa.Array, block: np.ndarray) -> bytes:
        ends = np.arange(len(block) + 1, dtype=np.int32) * block.shape[1]
        return _parquet({"image_id": ids, "embedding": pa.ListArray.from_arrays(ends, block.ravel())})

    return _parts(rows, out, {"embeddings/{:06d}.parquet": parquet})


def clip_retrieval(rows: DescriptorFolder, out: Output) -> int:
    """Writes descriptors to `img_emb/img_emb_NNNNNN.npy`, and their ids to `metadata/metadata_NNNNNN.parquet`.

    Give the folder to `clip-retrieval index` as embeddings_folder. The metadata's column image_path holds the image_id.
    """

    def array(_: pa.Array, block: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.save(stream, block)
        return stream.getvalue()

    def metadata(ids: pa.Array, _: np.ndarray) -> bytes:
        return _parquet({"image_path": ids})

    return _parts(rows, out, {"img_emb/img_emb_{:06d}.npy": array, "metadata/metadata_{:06d}.parquet": metadata})


LAYOUTS: dict[ExportFormat, Callable[[DescriptorFolder, Output], int]] = {
    "npy": npy,
    "autofaiss": autofaiss,
    "clip-retrieval": clip_retrieval,
}


def _parts(rows: DescriptorFolder, out: Output, kinds: dict[str, Callable[[pa.Array, np.ndarray], bytes]]) -> int:
    """Writes each block of `rows` as one file of each kind. Returns the number of files.

    `kinds` maps the pattern of a file name to a function that makes the file's content from a block's ids and vectors.
    """
    for pattern in kinds:
        folder = files.parent(files.join(out.folder, pattern))
        files.make_folder(folder)
        local_copies.sweep(folder)
        # The tools that read these files read whole folders, so no file of an earlier export may remain.
        files.delete_all(files.join(folder, name) for name in files.names(folder) if _PART.fullmatch(name))
    number = start = 0
    for number, block in enumerate(with_progress(rows, len, "exporting", len(rows), "rows"), start=1):
        for pattern, content in kinds.items():
            files.write_bytes(out.path(pattern.format(number)), content(rows.ids.slice(start, len(block)), block))
        start += len(block)
    _require_all(rows, start)
    return number * len(kinds)


def _require_all(rows: DescriptorFolder, written: int) -> None:
    if written != len(rows):
        raise RuntimeError(f"{written} rows of {rows.folder!r} were written, not {len(rows)}")


def _parquet(columns: dict[str, pa.Array]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())
