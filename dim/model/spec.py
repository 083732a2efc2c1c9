"""Describes a network without building it, so that a job can check its model before it starts TensorFlow.

`Spec` describes the structure and the input of a network. A model folder stores it as `model.json`. `Source` adds the
weights to load. `resolve` turns the flags `--model` and `--weights` into a `Source`.
"""

import dataclasses
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import dim
from dim.app import config
from dim.data.config import Resize
from dim.errors import UserError, quoted
from dim.io import files, local_copies, seal
from dim.model import hdf5_check
from dim.model.backbones import BACKBONES

FORMAT_VERSION = 1
SPEC_FILE, WEIGHTS_FILE = "model.json", "model.weights.h5"
_WEIGHTS_SHA256, _TRAINING = "weights_sha256", "training"  # keys of model.json that are not in `Spec`
SHIPPED_WEIGHTS = Path(dim.__file__).parent / "assets" / "vgg16" / "vgg16_imagenet_notop_fp16.npz"
NAMED_WEIGHTS = ("random", "imagenet")  # accepted in place of a weights file

# The keys of `dim.model.pooling.POOLINGS` and `dim.model.layers.PREPROCESSINGS`, copied so as not to import Keras.
POOLINGS = ("mac", "spoc", "spoc-prior", "gem", "crow", "rmac")
PREPROCESSINGS = ("caffe", "unit", "symmetric", "torch")

DEEPEST = 8  # the most levels of nesting in `Spec.whitening` and in "training"; copying and writing recurse at each


@dataclass(frozen=True)
class Spec:
    """The structure and the input of a network.

    Args:
        backbone: A key of `dim.model.backbones.BACKBONES`.
        layer: The layer of the backbone that is pooled.
        pooling: One of `POOLINGS`.
        preprocessing: One of `PREPROCESSINGS`.
        image_size: The side, in pixels, of a squashed photo; if `resize` is "long-side", the longer side.
        resize: "squash" (to a square) or "long-side" (which keeps the aspect ratio).
        dimension: The number of outputs of the PCA layer; None if there is no such layer.
        whitening: The kind, power and training data of the PCA layer: {"kind": …, "power": …, "learned_on": …}. If the
            layer was fitted again after training, this is the last fit, and "earlier" lists those before it.
        region_dimension: The number of outputs of the whitening of R-MAC's regions; None without this whitening.
        region_whitening: The kind, power and training data of the whitening of the regions, as in `whitening`.
    """

    backbone: str = "vgg16"
    layer: str = "block5_conv3"
    pooling: str = "gem"
    preprocessing: str = "caffe"
    image_size: int = 224
    resize: Resize = "squash"
    dimension: int | None = None
    whitening: dict[str, Any] | None = None
    region_dimension: int | None = None
    region_whitening: dict[str, Any] | None = None

    @property
    def channels(self) -> int:
        """The number of channels of the pooled layer."""
        return BACKBONES[self.backbone].layers[self.layer]

    @property
    def pooled_dimension(self) -> int:
        """The length of the pooled vector, which is the input of the PCA layer."""
        return self.region_dimension or self.channels

    def checked(self, where: str) -> "Spec":
        """Returns this spec. Raises UserError if a field is not valid; `where` names the spec in the message."""
        known = {"backbone": BACKBONES, "pooling": POOLINGS, "preprocessing": PREPROCESSINGS}
        for name, values in (known | {"resize": get_args(Resize)}).items():
            config.one_of(name, str(getattr(self, name)), list(values), where)
        config.one_of("layer", str(self.layer), list(BACKBONES[self.backbone].layers), where)
        limits = {"image_size": 65536, "region_dimension": self.channels, "dimension": self.pooled_dimension}
        for name, most in limits.items():
            value = getattr(self, name)
            if value is None and name != "image_size":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise UserError(f"{name} in {where} must be a whole number from 1 to {most}, not {quoted(value)}")
        if self.region_dimension is not None and self.pooling != "rmac":
            raise UserError(f"region_dimension in {where} is for pooling rmac only, not {self.pooling}")
        for name in ("whitening", "region_whitening"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, dict) and "learned_on" in value):
                raise UserError(f"{name} in {where} must be an object that has learned_on, not {quoted(value)}")
            if _nested(value, DEEPEST):
                raise UserError(f"{name} in {where} is nested more than {DEEPEST} deep; make the model again")
        return self


def _nested(value: Any, levels: int) -> bool:
    """Returns whether `value` has more than `levels` levels of nesting."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_nested(part, levels - 1) for part in inner)


@dataclass(frozen=True)
class Source:
    """A network to load.

    Args:
        spec: The network to build.
        weights: A weights file, "random" or "imagenet".
        saved: The spec that the weights were saved with. It differs from `spec` if flags such as `--pooling`
            change the model. It is None if the weights are for the backbone alone.
        sha256: The hash of the weights file. Each process that loads the file checks it; None accepts any file.
        training: How train.py made the weights, as model.json has it; None if it did not. No identity depends on it.
    """

    spec: Spec
    weights: str
    saved: Spec | None
    sha256: str | None = None
    training: dict[str, Any] | None = None

    def fingerprint(self) -> str:
        """Returns the sha256 of the weights file; or "random" or "imagenet" if these are the weights."""
        if self.weights in NAMED_WEIGHTS:
            return self.weights
        return self.sha256 or seal.sha256_of_file(self.weights)


def resolve(model: str, weights: str | None = None, **changes: Any) -> Source:
    """Finds the network that `--model` names and checks that its weights can be read.

    Args:
        model: A model folder, or the name of an off-the-shelf network, `BACKBONE-POOLING[@LAYER]`.
        weights: A .npz or .h5 file of the backbone, "imagenet" or "random". Only off-the-shelf networks accept it.
        **changes: New values for fields of the spec. A field whose new value is None is kept.

    Raises:
        UserError: The name is unknown, the folder is broken, the weights can't be read, or a field is not valid.
    """
    document = _read(model) if files.exists(files.join(model, SPEC_FILE)) else None
    saved = document and document[0]
    spec = saved or _off_the_shelf(model)
    if saved and weights is not None:
        raise UserError(f"--weights {weights!r} can't replace the weights of model folder {model!r}; drop one of them")
    found = files.join(model, WEIGHTS_FILE) if saved else weights or str(SHIPPED_WEIGHTS)
    digest = None
    if found not in NAMED_WEIGHTS:
        found = files.absolute(found)
        if found == str(SHIPPED_WEIGHTS) and spec.backbone != "vgg16":
            raise UserError(
                f"no weights are shipped for {spec.backbone!r}; give --weights FILE, or imagenet to download them"
            )
        _require_readable(found)
        digest = seal.sha256_of_file(found)
    if document and (document[1] not in (None, digest) or document != _read(model)):
        raise UserError(
            f"{SPEC_FILE} and {WEIGHTS_FILE} in {model!r} were not written together; if a job is writing them now, run "
            "the same command again later, else make the model again"
        )
    changed = dataclasses.replace(spec, **{name: value for name, value in changes.items() if value is not None})
    if changed.pooling != "rmac":
        changed = dataclasses.replace(changed, region_dimension=None, region_whitening=None)
    return Source(changed.checked(f"model {model!r}"), found, saved, digest, document and document[2])


def _off_the_shelf(name: str) -> Spec:
    match = re.fullmatch(r"(?P<backbone>[a-z0-9]+)-(?P<pooling>[a-z-]+)(@(?P<layer>\w+))?", name)
    if not match:
        raise UserError(
            f"no model {name!r}: neither a folder with {SPEC_FILE} nor a name such as vgg16-gem@block5_conv3"
        )
    backbone = config.one_of("backbone", match["backbone"], list(BACKBONES))
    pooling = config.one_of("pooling", match["pooling"], list(POOLINGS))
    known = BACKBONES[backbone]
    return Spec(backbone, match["layer"] or next(iter(known.layers)), pooling, known.preprocessing)


def read(folder: str) -> Spec:
    """Reads the spec in `folder`/model.json. Raises UserError if the file is broken or has another format version."""
    return _read(folder)[0]


def _read(folder: str) -> tuple[Spec, str | None, dict[str, Any] | None]:
    """Returns the spec in `folder`/model.json, the sha256 of its weights, and how they were trained.

    Files of old versions of dim lack the last two, which are then None.
    """
    uri = files.join(folder, SPEC_FILE)
    document = files.read_json(uri)
    if not isinstance(document, dict):
        raise UserError(f"{uri!r} must hold an object; make the model again")
    version = document.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{uri!r} has format version {quoted(version)}, this dim reads {FORMAT_VERSION}; "
            "use the version of dim that wrote it"
        )
    digest, training = document.pop(_WEIGHTS_SHA256, None), document.pop(_TRAINING, None)
    if not isinstance(training, dict | None) or _nested(training, DEEPEST):
        raise UserError(f"training in {uri!r} is not an object of at most {DEEPEST} levels; make the model again")
    known = {field.name: field.default for field in dataclasses.fields(Spec)}
    required = {name for name, default in known.items() if default is not None}
    for fields, what in ((document.keys() - known, "has the unknown"), (required - document.keys(), "lacks the")):
        if fields:
            raise UserError(f"{uri!r} {what} field {quoted(min(fields))}; use the version of dim that wrote it")
    return Spec(**document).checked(repr(uri)), digest, training


def write(spec: Spec, folder: str, sha256: str | None = None, training: dict[str, Any] | None = None) -> None:
    """Writes `folder`/model.json. `sha256` is the hash of the weights, and `training` says how they were trained."""
    document = {"format_version": FORMAT_VERSION, **dataclasses.asdict(spec)}
    if sha256:
        document[_WEIGHTS_SHA256] = sha256
    if training:
        document[_TRAINING] = training
    files.write_json(files.join(folder, SPEC_FILE), document)


def _require_readable(uri: str) -> None:
    """Raises UserError if `uri` is not a readable .npz or .h5. (`weights.load_into` checks the arrays.)"""
    if not files.exists(uri):
        raise UserError(f"no weights file {uri!r}")
    if not uri.endswith((".npz", ".h5")):
        raise UserError(f"weights {uri!r} are neither .npz nor .h5")
    try:
        if uri.endswith(".npz"):
            with files.opened(uri) as file, zipfile.ZipFile(file):
                pass
        else:
            with local_copies.path_to_read(uri) as path:
                hdf5_check.require_whole(path)
    except Exception as error:  # opening a damaged or hostile file can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read the weights {uri!r}: {reason}; get them again") from error
