"""The settings of an export."""

from dataclasses import dataclass
from typing import Literal

from dim.app.config import option
from dim.data.config import Resize

ExportFormat = Literal["npy", "autofaiss", "clip-retrieval", "keras", "onnx"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What `jobs/export.py` does; each field is a flag."""

    format: ExportFormat = option(
        help="of descriptors: npy (descriptors.npy, names.txt), autofaiss (embeddings/*.parquet), clip-retrieval "
        "(img_emb/*.npy, metadata/*.parquet); of a model: keras (model.keras), onnx (model.onnx)"
    )
    out: str = option(help="folder for the exported files", metavar="DIR")
    descriptors: str | None = option(None, help="folder that extract.py made", metavar="DIR")
    model: str | None = option(None, help="model folder, or a name such as vgg16-gem", metavar="X")
    weights: str | None = option(
        None, help="weights of an off-the-shelf network, as for extract.py", metavar="FILE", group="of a model"
    )
    image_size: int | None = option(None, help="side in pixels; of the model if not given", group="of a model")
    resize: Resize | None = option(
        None, help="squash: photos of that size only; long-side: of any; of the model if not given", group="of a model"
    )
