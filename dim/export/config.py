"""The flags of export.py."""

from dataclasses import dataclass
from typing import Literal

from dim.app.config import option
from dim.extract.config import ModelOptions

ExportFormat = Literal["npy", "autofaiss", "clip-retrieval", "keras", "onnx"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ModelOptions):
    """The flags of `jobs/export.py`."""

    format: ExportFormat = option(
        help="for descriptors: npy (descriptors.npy, names.txt), autofaiss (embeddings/*.parquet), clip-retrieval "
        "(img_emb/*.npy, metadata/*.parquet); for a model: keras (model.keras), onnx (model.onnx), for photos of one "
        "size, or of any size with --resize long-side"
    )
    out: str = option(help="folder for the exported files", metavar="DIR")
    descriptors: str | None = option(None, help="folder made by extract.py", metavar="DIR")
    model: str | None = option(None, help="model folder, or a name such as vgg16-gem", metavar="X")
