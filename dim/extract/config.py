"""The flags of an extraction. They become the embedding identity in three steps:

1. `NetworkOptions.source` → `model.spec.Source`: the weights, and the `Spec`, the structure that model.json holds.
2. `extract.job.recipe_of` → `extract.embedder.Recipe`: the source, the precision chosen for "auto" and the whitening's
   arrays. An actor needs nothing else.
3. `extract.identity.embedding_of` → `extract.embedding.NetworkEmbedding`: the flat record in run.json, with checksums
   in place of the weights and the whitening. Descriptors may be compared if their records are equal.
"""

import re
import typing
from dataclasses import dataclass, fields
from typing import Any, Literal

from dim.app.config import option, require_at_least
from dim.data.config import DecodeOptions, Resize
from dim.errors import UserError, quoted
from dim.model.devices import Precision

if typing.TYPE_CHECKING:
    from dim.extract.embedding import NetworkEmbedding
    from dim.model.spec import Source

_PART = re.compile(r"\d{1,6}/\d{1,6}", re.ASCII)

# Settings of which descriptors know with which values they were made.
_FOLLOWED = ("image_size", "resize", "scales", "scales_mean", "precision", "scaled_decode")

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The weights and the input of the network that `--model` names. None stands for the model's own value."""

    weights: str | None = option(
        None,
        help="weights for an off-the-shelf network: a .npz or .h5 file, imagenet (downloads them) or random",
        metavar="FILE",
        group="network",
    )
    image_size: int | None = option(
        None, help="side of the square, or longer side, in pixels (default: the model's)", group="network"
    )
    resize: Resize | None = option(
        None, help="squash to a square, or keep the aspect ratio (default: the model's)", group="network"
    )

    def source(self, model: str, **changes: Any) -> "Source":
        """The network named `model`, with these settings and `changes`. Raises UserError as `spec.resolve` does."""
        from dim.model import spec  # noqa: PLC0415  (--help works without it)

        return spec.resolve(model, self.weights, image_size=self.image_size, resize=self.resize, **changes)


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(ModelOptions, DecodeOptions):
    """The flags of each job that runs a network: they choose the network, and the photos that it may read."""

    root: str | None = option(
        None, help="refuse photos outside this folder, after resolving links", metavar="DIR", group="input and output"
    )
    pooling: str | None = option(
        None, help="mac, spoc, spoc-prior, gem, crow or rmac (default: the model's)", group="network"
    )
    preprocessing: Literal["caffe", "unit", "symmetric", "torch"] | None = option(
        None, help="input format that the weights expect (default: the model's)", group="network"
    )

    def source(self, model: str, **changes: Any) -> "Source":
        """Does the same as `ModelOptions.source`, and sets the pooling and the preprocessing, too."""
        return super().source(model, pooling=self.pooling, preprocessing=self.preprocessing, **changes)


@dataclass(frozen=True, kw_only=True)
class Extraction(NetworkOptions):
    """The flags of each job that turns photos into descriptors. Raises UserError if a value is out of range."""

    scales: tuple[float, ...] = option((1.0,), help="image scales to combine, such as 1,0.7071,0.5", group="network")
    scales_mean: Literal["mean", "gem"] = option("mean", help="mean by which scales are combined", group="network")
    scaled_decode: bool = option(
        False,
        help="decode large JPEGs at a fraction of their size: several times faster; descriptors have a cosine of 0.999 "
        "to those of a full decode, and count as another embedding",
        group="network",
    )
    precision: Precision = option(
        "auto", help="auto: bfloat16 if the hardware accelerates it, else float32", group="machine"
    )
    workers: int | None = option(
        None, help="network actors (default: one per GPU, or one per node; fewer for few photos)", group="machine"
    )
    gpus_per_worker: float | None = option(
        None, help="GPUs per actor, at most 1 (default: 1 if the cluster has GPUs)", group="machine"
    )
    batch_size: int | None = option(
        None,
        help="images per forward pass (default: on a GPU as many as fit, at most 256; on a CPU 8 of 224 pixels)",
        group="machine",
    )
    shard_rows: int | None = option(
        None,
        help="photos per Parquet file (default: a thousandth of the photos, from 1,024 to 65,536)",
        group="machine",
    )

    def __post_init__(self) -> None:
        require_at_least(self, {"batch_size": 1, "shard_rows": 1, "workers": 1})
        if self.gpus_per_worker is not None and not 0 <= self.gpus_per_worker <= 1:
            raise UserError(
                f"--gpus-per-worker must be from 0 to 1, not {self.gpus_per_worker:g}: an actor computes on one GPU; "
                "to use more GPUs, raise --workers"
            )
        if not self.scales or not all(0 < scale <= 4 for scale in self.scales):
            raise UserError(f"--scales must be above 0 and at most 4, not {', '.join(map(str, self.scales))}")
        super().__post_init__()

    def extraction_settings(self) -> dict[str, Any]:
        """The values of the flags of `Extraction`. Flags that a subclass adds for its job are left out."""
        return {field.name: getattr(self, field.name) for field in fields(Extraction)}

    def following(self, embedding: "NetworkEmbedding") -> dict[str, Any]:
        """The same, but flags of `_FOLLOWED` that have their default values are taken from `embedding`."""
        settings = self.extraction_settings()
        for name in _FOLLOWED:
            if settings[name] == getattr(Extraction(), name) and getattr(embedding, name) is not None:
                settings[name] = getattr(embedding, name)
        return settings


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(Extraction):
    """The flags of `jobs/extract.py`."""

    manifest: str = option(help="Parquet or CSV of the photos", metavar="FILE", group="input and output")
    model: str = option(
        help="model folder, or a name such as vgg16-gem@block5_conv3", metavar="X", group="input and output"
    )
    out: str = option(help="folder for descriptors; the same command resumes", metavar="DIR", group="input and output")
    split: Split | None = option(None, help="only this split (default: all rows)", group="input and output")
    whitening: str | None = option(None, help="whitening file to apply", metavar="FILE", group="input and output")
    retry_failed: bool = option(False, help="retry the photos that could not be read", group="input and output")
    store: Literal["float32", "float16"] = option("float32", help="type of the descriptors", group="input and output")
    part: str | None = option(
        None,
        help="do the Ith of N parts of the work, such as 1/4; run all N with the same --out, together or in turn: the "
        "last one finishes the folder",
        metavar="I/N",
        group="machine",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part is not None and not (_PART.fullmatch(self.part) and 1 <= self.share[0] <= self.share[1]):
            raise UserError(f"--part must be I/N with I from 1 to N, such as 1/4, not {quoted(self.part)}")

    @property
    def share(self) -> tuple[int, int]:
        """(I, N) of --part; (1, 1) is the whole."""
        number, _, count = (self.part or "1/1").partition("/")
        return int(number), int(count)
