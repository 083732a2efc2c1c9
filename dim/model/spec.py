"""What a network is, without building it: the off-the-shelf names and `model.json`. Needs no TensorFlow.

Whether a weights file can be read at all, told before a job begins. Needs no TensorFlow.
"""

import dataclasses
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dim
from dim.app import config
from dim.data.config import Resize
from dim.errors import UserError, quoted
from dim.io import files, local_files, seal
from dim.model import hdf5
from dim.model.backbones import BACKBONES

FORMAT_VERSION = 1
SPEC_FILE, WEIGHTS_FILE = "model.json", "model.weights.h5"
_WEIGHTS_SHA256 = "weights_sha256"  # in model.json
SHIPPED_WEIGHTS = Path(dim.__file__).parent / "assets" / "vgg16" / "vgg16_imagenet_notop_fp16.npz"

DEEPEST = 8  # levels of what a whitening was fitted on: copying it and writing it as JSON recurse
WORDS = ("random", "imagenet")  # in place of a weights file

POOLINGS = ("mac", "spoc", "spoc-prior", "gem", "crow", "rmac")
PREPROCESSINGS = ("caffe", "unit", "symmetric", "torch")


@dataclass(frozen=True)
class Spec:
    """The network's structure and input.

    `dimension` is the PCA layer's output, None without one; `region_dimension` that of the whitening of R-MAC's
    regions, None where they are only normalised. `whitening` and `region_whitening` say what these were fitted on
    ({"kind": …, "power": …, "learned_on": …}).
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
        """Channels of the layer that is pooled."""
        return BACKBONES[self.backbone].layers[self.layer]

    @property
    def pooled_dimension(self) -> int:
        """Values of the pooled vector, which the PCA layer takes."""
        return self.region_dimension or self.channels

    def checked(self, where: str) -> "Spec":
        """This spec, if all of it is known. Raises UserError naming `where`, the field and the nearest known value."""
        known = {
            "backbone": list(BACKBONES),
            "pooling": list(POOLINGS),
            "preprocessing": list(PREPROCESSINGS),
            "resize": ["squash", "long-side"],
        }
        for name, values in known.items():
            config.one_of(f"{name} in {where}", str(getattr(self, name)), values)
        config.one_of(f"layer in {where}", str(self.layer), list(BACKBONES[self.backbone].layers))
        self._check_number("image_size", 65536, where)
        for name, most in (("region_dimension", self.channels), ("dimension", self.pooled_dimension)):
            if getattr(self, name) is not None:
                self._check_number(name, most, where)
        if self.region_dimension is not None and self.pooling != "rmac":
            raise UserError(f"region_dimension in {where} is for pooling rmac only, not {self.pooling}")
        for name in ("whitening", "region_whitening"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, dict) and "learned_on" in value):
                raise UserError(f"{name} in {where} must be an object that has learned_on, not {quoted(value)}")
            if _nested(value, DEEPEST):
                raise UserError(f"{name} in {where} is nested more than {DEEPEST} deep; make the model again")
        return self

    def _check_number(self, name: str, most: int, where: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise UserError(f"{name} in {where} must be a whole number from 1 to {most}, not {quoted(value)}")


def _nested(value: Any, levels: int) -> bool:
    """Whether `value` is nested deeper than so many levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_nested(part, levels - 1) for part in inner)


@dataclass(frozen=True)
class Source:
    """A network to load: its spec, its weights (a file, "random" or "imagenet"), and the spec that these were saved
    with, None where they are the backbone's alone. The two specs differ where a model is changed, such as its pooling.
    `sha256` is that of the weights file, which must still be the same when it is loaded, by whatever process; None
    where that isn't known, or there is no file.
    """

    spec: Spec
    weights: str
    saved: Spec | None
    sha256: str | None = None

    def fingerprint(self) -> str:
        """sha256 of the weights file; for "random" and "imagenet" the word itself."""
        if self.weights in WORDS:
            return self.weights
        return self.sha256 or seal.sha256_of_file(self.weights)


def resolve(model: str, weights: str | None = None, **changes: Any) -> Source:
    """The network that `--model` names: a model folder, or `BACKBONE-POOLING[@LAYER]`, an off-the-shelf network.

    `weights` replaces the weights (a .npz or .h5 file of the backbone, "imagenet", "random"); `changes` that
    are not None replace fields of the spec. Raises UserError for an unknown name, a broken folder or a missing file.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    document = _read(model) if files.exists(files.join(model, SPEC_FILE)) else None
    saved = document and document[0]
    if saved:
        if weights is not None:
            raise UserError(
                f"--weights {weights!r} can't replace those of the model folder {model!r}; drop one of them"
            )
        found = files.join(model, WEIGHTS_FILE)
    else:
        found = weights or str(SHIPPED_WEIGHTS)
    if found not in WORDS:
        found = files.absolute(found)
    spec = saved or _off_the_shelf(model)
    if found == str(SHIPPED_WEIGHTS) and spec.backbone != "vgg16":
        raise UserError(
            f"no weights are shipped for {spec.backbone!r}; give --weights FILE, or imagenet to download them"
        )
    digest = None
    if found not in WORDS:
        require_readable(found)
        digest = seal.sha256_of_file(found)
    if document and (document[1] not in (None, digest) or document != _read(model)):
        raise UserError(
            f"{SPEC_FILE} and {WEIGHTS_FILE} in {model!r} were not written together; if a job is writing them now, run "
            "the same command again later, else make the model again"
        )
    changed = dataclasses.replace(spec, **given)
    if changed.pooling != "rmac":
        changed = dataclasses.replace(changed, region_dimension=None, region_whitening=None)
    return Source(changed.checked(f"model {model!r}"), found, saved, digest)


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
    """The spec in `folder`/model.json. Raises UserError where it is broken or of a later format."""
    return _read(folder)[0]


def _read(folder: str) -> tuple[Spec, str | None]:
    """The spec in `folder`/model.json, and the sha256 of the weights that it was written with, where it says so."""
    uri = files.join(folder, SPEC_FILE)
    document = files.read_json(uri)
    if not isinstance(document, dict):
        raise UserError(f"{uri!r} must hold an object; make the model again")
    version = document.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{uri!r} has format version {quoted(version)}, this dim reads {FORMAT_VERSION}; use the dim that made it"
        )
    digest = document.pop(_WEIGHTS_SHA256, None)
    known = {field.name: field.default for field in dataclasses.fields(Spec)}
    required = {name for name, default in known.items() if default is not None}
    for fields, what in ((document.keys() - known, "has the unknown"), (required - document.keys(), "lacks the")):
        if fields:
            raise UserError(f"{uri!r} {what} field {quoted(min(fields))}; use the dim that made it")
    return Spec(**document).checked(repr(uri)), digest


def write(spec: Spec, folder: str, sha256: str | None = None) -> None:
    """Writes `folder`/model.json, which says which weights it goes with by their `sha256`."""
    document = {"format_version": FORMAT_VERSION, **dataclasses.asdict(spec)}
    if sha256:
        document[_WEIGHTS_SHA256] = sha256
    files.write_json(files.join(folder, SPEC_FILE), document)


def require_readable(uri: str) -> None:
    """Raises UserError where the weights file at `uri` is missing, or no archive of arrays; for which network they are
    is left open.
    """
    if not files.exists(uri):
        raise UserError(f"no weights file {uri!r}")
    if not uri.endswith((".npz", ".h5")):
        raise UserError(f"weights {uri!r} are neither .npz nor .h5")
    try:
        (_require_npz if uri.endswith(".npz") else _require_h5)(uri)
    except Exception as error:  # whatever opening a stranger's file raises, the file is at fault
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read the weights {uri!r}: {reason}; get them again") from error


def _require_npz(uri: str) -> None:
    with files.opened(uri) as file, zipfile.ZipFile(file):
        pass


def _require_h5(uri: str) -> None:
    with local_files.path_to_read(uri) as path:
        hdf5.require_whole(path)
