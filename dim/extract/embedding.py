"""The embedding of descriptors: what made them. Descriptors may be compared only if their embeddings are equal.

`NetworkEmbedding` is the embedding of what extract.py makes, and `NamedEmbedding` that of descriptors made elsewhere.
run.json and each shard hold an embedding as JSON. `dim.extract.identity` finds the embedding of a folder.
"""

import abc
import hashlib
import json
from dataclasses import Field, asdict, dataclass, fields, replace
from typing import Any, cast

from dim.errors import UserError, quoted

VERSION = 2
SRGB, IGNORED = "srgb", "ignored"


class Embedding(abc.ABC):
    """The identity of an embedding. Descriptors may be compared only if their embeddings are equal.

    `whitening` is the sha256 of the file of the whitening that was applied to the descriptors, if any.
    """

    whitening: str | None

    @property
    @abc.abstractmethod
    def network(self) -> str:
        """The name of the network, for messages and pages."""

    @abc.abstractmethod
    def facts(self) -> dict[str, str]:
        """What people should know of the embedding, in words, for logs and pages."""

    @abc.abstractmethod
    def whitened(self, sha256: str | None) -> "Embedding":
        """The embedding of the same descriptors after the whitening whose file has this checksum."""

    @abc.abstractmethod
    def fields(self) -> dict[str, Any]:
        """The fields that the id is made of."""

    @property
    def id(self) -> str:
        """The sha256 of all fields, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.fields(), sort_keys=True).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """The fields and the id, as run.json holds them."""
        return {"id": self.id, **self.fields()}


@dataclass(frozen=True)
class NetworkEmbedding(Embedding):
    """The identity of what extract.py makes. `dim.extract.config` says how flags become one.

    `weights` is the sha256 of a file, "random" or "imagenet". `scales_mean` is None for a single scale. `profiles` says
    what was done with colour profiles: SRGB (applied), or IGNORED, as in version 1 of the identity.
    """

    backbone: str
    layer: str
    pooling: str
    weights: str
    preprocessing: str
    image_size: int
    resize: str
    scales: tuple[float, ...]
    scales_mean: str | None
    whitening: str | None
    precision: str
    scaled_decode: bool = False
    profiles: str = SRGB

    @property
    def network(self) -> str:
        """See `Embedding`; for example vgg16-gem@block5_pool."""
        return f"{self.backbone}-{self.pooling}@{self.layer}"

    def facts(self) -> dict[str, str]:
        """See `Embedding`."""
        return {
            "Network": self.network,
            "Photos": f"{self.image_size} px {self.resize}, {self.preprocessing}",
            "Scales": ", ".join(f"{scale:g}" for scale in self.scales),
            "Precision": self.precision,
        }

    def whitened(self, sha256: str | None) -> "NetworkEmbedding":
        """See `Embedding`."""
        return replace(self, whitening=sha256)

    def fields(self) -> dict[str, Any]:
        """See `Embedding`."""
        values = asdict(self)
        if self.profiles == IGNORED:  # version 1 had neither `profiles` nor `version`, and its ids must not change
            del values["profiles"]
            return values
        return values | {"version": VERSION}


@dataclass(frozen=True)
class NamedEmbedding(Embedding):
    """The identity of descriptors made elsewhere: the `name` that the user gave their network, and their dimension."""

    name: str
    dimension: int
    whitening: str | None = None

    @property
    def network(self) -> str:
        """See `Embedding`."""
        return self.name

    def facts(self) -> dict[str, str]:
        """See `Embedding`."""
        return {"Network": f"{self.name}, made elsewhere", "Dimension": str(self.dimension)}

    def whitened(self, sha256: str | None) -> "NamedEmbedding":
        """See `Embedding`."""
        return replace(self, whitening=sha256)

    def fields(self) -> dict[str, Any]:
        """See `Embedding`."""
        return asdict(self) | {"version": VERSION}


def from_json(document: Any, where: str) -> Embedding:
    """Reads what `Embedding.as_json` wrote.

    Raises UserError, naming `where`, if a field is missing or has a wrong type, or the id or the version is wrong.
    """
    try:
        if not isinstance(document, dict):
            raise TypeError(f"it is {quoted(document)}")
        known = document.get("version", 1)
        if known not in (1, VERSION):
            raise UserError(f"{where} holds an embedding of version {quoted(known)}; this dim reads 1 and {VERSION}")
        found = document | ({"profiles": IGNORED} if known == 1 else {})
        kind: type[NamedEmbedding | NetworkEmbedding] = NamedEmbedding if "name" in document else NetworkEmbedding
        embedding = kind(**{field.name: _typed(field, found[field.name]) for field in fields(kind)})
    except (KeyError, TypeError) as error:
        raise UserError(f"{where} holds no complete embedding ({error}); make this folder again") from error
    if embedding.id != document.get("id"):
        raise UserError(f"{where}: the embedding's fields don't match its id; make this folder again")
    return embedding


def _typed(field: Field[Any], value: Any) -> Any:
    if field.name == "scales":
        fits = isinstance(value, list) and all(isinstance(scale, int | float) for scale in value)
    else:
        fits = isinstance(value, cast(type, field.type))
    if not fits:
        raise TypeError(f"{field.name} is {quoted(value)}")  # `quoted` shortens a long or deeply nested value
    return tuple(value) if field.name == "scales" else value
