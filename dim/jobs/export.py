r"""Write descriptors, or a network, in a format that other tools read.

    python jobs/export.py --descriptors runs/descriptors --format npy --out runs/npy
    python jobs/export.py --model vgg16-gem --format onnx --out runs/onnx
    ray job submit --working-dir . -- python jobs/export.py --descriptors s3://bucket/descriptors \
        --format clip-retrieval --out s3://bucket/clip

Formats for descriptors; they leave out the photos that could not be decoded:

    npy             descriptors.npy and names.txt; row and line n belong to the same photo
    autofaiss       embeddings/*.parquet, for build_index with file_format="parquet",
                    embedding_column_name="embedding" and id_columns=["image_id"]
    clip-retrieval  img_emb/*.npy and metadata/*.parquet, for `clip-retrieval index --embeddings_folder`

Formats for a network:

    keras           model.keras, which keras.models.load_model opens without dim
    onnx            model.onnx, for ONNX Runtime; VGG, ResNet and EfficientNetV2 only; needs `pip install ".[export]"`

Both networks take uint8 RGB (N, H, W, 3) and return the descriptors that extract.py makes with --precision float32. The
input has a fixed size with --resize squash, and any size with --resize long-side.
"""

from typing import Any, NoReturn

from dim.app import cli
from dim.export.config import ExportConfig


def run(config: ExportConfig) -> dict[str, Any]:
    from dim.export.job import export

    return export(config)


def main() -> NoReturn:
    cli.main(run, ExportConfig, __doc__)
