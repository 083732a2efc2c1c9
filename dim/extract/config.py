"""The flags of an extraction, and the way from them to the embedding identity:

1. `Extraction` holds the flags as given; None follows the model. `ExtractConfig` adds those of extract.py alone.
2. `Extraction.source` → `model.spec.Source`: the weights, and the `Spec`, the structure that model.json holds.
3. `extract.job.recipe_of` → `extract.embedder.Recipe`: the source, the precision chosen for "auto" and the whitening's
   arrays. An actor needs nothing else.
4. `extract.job.embedding_of` → `extract.identity.Embedding`: the flat record in run.json, with checksums in place of
   the weights and the whitening. Descriptors may be compared if their records are equal.
"""

import typing
from dataclasses import dataclass, fields
from typing import Any, Literal

from dim.app.config import flag_name, option
from dim.data.config import Resize
from dim.data.limits import MEGAPIXELS, MEGAPIXELS_HELP, Limited
from dim.errors import UserError
from dim.model.devices import Precision

if typing.TYPE_CHECKING:
    from dim.model.spec import Source

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class Extraction(Limited):
    """The flags of every job that turns photos into descriptors. Raises UserError for a value out of range."""

    root: str | None = option(
        None, help="refuse photos outside this folder, links resolved", metavar="DIR", group="input and output"
    )
    weights: str | None = option(
        None,
        help="weights of an off-the-shelf network: .npz or .h5, imagenet (a download) or random",
        metavar="FILE",
        group="network",
    )
    pooling: str | None = option(
        None, help="mac, spoc, spoc-prior, gem, crow or rmac; of the model if not given", group="network"
    )
    preprocessing: Literal["caffe", "unit", "symmetric", "torch"] | None = option(
        None, help="what the weights expect of the input; of the model if not given", group="network"
    )
    image_size: int | None = option(
        None, help="side, or longest side, in pixels; of the model if not given", group="network"
    )
    resize: Resize | None = option(
        None, help="squash to a square or keep the aspect; of the model if not given", group="network"
    )
    scales: tuple[float, ...] = option((1.0,), help="image scales to combine, such as 1,0.7071,0.5", group="network")
    scales_mean: Literal["mean", "gem"] = option("mean", help="how scales are combined", group="network")
    scaled_decode: bool = option(
        False,
        help="decode large JPEGs at a fraction of their size: several times as fast, descriptors within a cosine of "
        "0.999; they are another embedding",
        group="network",
    )
    precision: Precision = option(
        "auto", help="bfloat16 where the hardware is made for it, else float32", group="machine"
    )
    workers: int | None = option(
        None, help="network actors; one a GPU, or one a node, if not given; fewer for few photos", group="machine"
    )
    gpus_per_worker: float | None = option(None, help="GPUs, or a share of one; 1 where there are any", group="machine")
    batch_size: int | None = option(
        None,
        help="images a forward pass; on a GPU as many up to 256 as its memory holds, on a CPU 8 of 224 pixels",
        group="machine",
    )
    max_megapixels: float = option(MEGAPIXELS, help=MEGAPIXELS_HELP, group="machine")
    shard_rows: int = option(1024, help="photos a Parquet file", group="machine")

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_rows", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{flag_name(name)} must be at least 1, not {value}")
        if self.gpus_per_worker is not None and not 0 <= self.gpus_per_worker <= 1:
            raise UserError(
                f"--gpus-per-worker must be from 0 to 1, not {self.gpus_per_worker:g}: an actor computes on one GPU, "
                "and there are as many actors as GPUs"
            )
        if not self.scales or not all(0 < scale <= 4 for scale in self.scales):
            raise UserError(f"--scales must be above 0 and at most 4, not {', '.join(map(str, self.scales))}")
        super().__post_init__()

    def source(self, model: str) -> "Source":
        """The network that `model` names, changed as these flags say. Raises UserError as `spec.resolve` does."""
        from dim.model import spec  # noqa: PLC0415  (--help does not need it)

        changes = ("pooling", "preprocessing", "image_size", "resize")
        return spec.resolve(model, self.weights, **{name: getattr(self, name) for name in changes})

    def extraction_settings(self) -> dict[str, Any]:
        """The values of these flags alone, without those that a job's own class adds."""
        return {field.name: getattr(self, field.name) for field in fields(Extraction)}


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(Extraction):
    """The flags of `jobs/extract.py`."""

    manifest: str = option(help="Parquet or CSV of the photos", metavar="FILE", group="input and output")
    model: str = option(help="model folder, or a name such as vgg16-gem@block5_conv3", group="input and output")
    out: str = option(
        help="folder for the descriptors; the same command resumes", metavar="DIR", group="input and output"
    )
    split: Split | None = option(None, help="only this split; all rows if not given", group="input and output")
    whitening: str | None = option(None, help="whitening file to apply", metavar="FILE", group="input and output")
    retry_failed: bool = option(False, help="try the rows again that ended in an error", group="input and output")
    store: Literal["float32", "float16"] = option(
        "float32", help="type of the stored descriptors", group="input and output"
    )
