"""The network that made a collection, kept beside it, so that it can measure the photos of later nights, too.

A training run writes its best model in place: when tonight's is measured, the folder that the last accepted night read
holds another. A copy (VGG16: 60 MB, once an embedding) is what makes the two comparable on the same photos.

What is kept from night to night of one manifest under one embedding: descriptors, their index, and the network.
"""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from dim.app import output
from dim.errors import UserError
from dim.extract import identity, store
from dim.extract import job as extraction
from dim.extract.config import ExtractConfig, Extraction
from dim.extract.identity import Embedding
from dim.io import files, local_files
from dim.model import spec
from dim.nightly.config import NightlyConfig
from dim.search import build_index
from dim.search.config import IndexConfig

KEPT, MODEL, WHITENING = "network.json", "model", "whitening.npz"
# What of a night's settings is part of its network; all others, such as how many workers, are tonight's.
_SETTINGS = (
    "weights", "pooling", "preprocessing", "image_size", "resize", "scales", "scales_mean", "scaled_decode",
)  # fmt: skip


def keep(folder: str, made: ExtractConfig, embedding: Embedding) -> None:
    """Keeps in the collection `folder` the network of `embedding`, as `made` names it, once.

    Raises UserError where it is another by now.
    """
    if files.exists(files.join(folder, KEPT)):
        return
    known = {name: getattr(made, name) for name in _SETTINGS} | {"precision": embedding.precision}
    known |= {"model": made.model, "whitening": made.whitening}
    if made.weights and made.weights not in spec.NAMED_WEIGHTS:
        known["weights"] = files.absolute(made.weights)
    if files.exists(files.join(made.model, spec.SPEC_FILE)):
        known["model"] = None
        _copy(folder, {f"{MODEL}/{name}": files.join(made.model, name) for name in (spec.SPEC_FILE, spec.WEIGHTS_FILE)})
    if made.whitening:
        _copy(folder, {WHITENING: made.whitening})
    _require(_network(folder, known, made), embedding, made.model)
    files.write_json(files.join(folder, KEPT), known)  # last: now it counts


def kept(folder: str, tonight: Extraction) -> ExtractConfig:
    """The network of the collection `folder`, to extract with on the machines of `tonight`, no manifest and no out yet.

    Raises UserError where none was kept, or where it no longer makes what is in the collection. Needs a Ray.
    """
    note = files.join(folder, KEPT)
    if not files.exists(note):
        raise UserError(f"no {note!r}: it is gone, or an earlier dim made the collection, which kept no network")
    embedding = identity.of_folder(files.join(folder, "descriptors"))
    found = _network(folder, files.read_json(note), tonight)
    _require(found, embedding, folder)
    return found


def _network(folder: str, known: dict[str, object], tonight: Extraction) -> ExtractConfig:
    how = tonight.extraction_settings()
    how |= {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    how["model"] = how["model"] or files.join(folder, MODEL)
    how["whitening"] = how["whitening"] and files.join(folder, WHITENING)
    return ExtractConfig(manifest="", out="", **how)


def _require(network: ExtractConfig, embedding: Embedding, where: str) -> None:
    found = extraction.embedding_of(extraction.recipe_of(network, network.source(network.model)))
    identity.require_equal(embedding, where, found, network.model)


def _copy(folder: str, named: dict[str, str]) -> None:
    for name, source in named.items():
        target = files.join(folder, name)
        files.make_folder(files.parent(target))
        local_files.sweep(files.parent(target))
        files.write_bytes(target, files.read_bytes(source))


log = logging.getLogger(__name__)

ROOT, MADE_OF = "collections", "index_made_of.json"


@dataclass(frozen=True)
class Collection:
    """A manifest's descriptors and index in `folder`; `rows` is a sha256 that changes with them."""

    folder: str
    embedding: Embedding
    rows: str
    counts: dict[str, Any]

    @property
    def descriptors(self) -> str:
        """The folder of the descriptors."""
        return files.join(self.folder, "descriptors")

    @property
    def index(self) -> str:
        """The folder of the index."""
        return files.join(self.folder, "index")


def home(out: str, manifest: str) -> str:
    """The folder of all that is kept of `manifest`, one folder an embedding."""
    key = hashlib.sha256(files.absolute(manifest).encode()).hexdigest()[:8]
    return files.join(out, f"{ROOT}/{PurePosixPath(manifest).stem}-{key}")


def placed(out: str, folder: str) -> str:
    """The collection that a night recorded as `folder`, in `out`, which may have moved, or be spelled otherwise."""
    return files.join(out, f"{ROOT}/{files.name(files.parent(folder))}/{files.name(folder)}")


def refreshed(config: NightlyConfig, model: str, manifest: str) -> Collection:
    """Extracts what is new or changed in `manifest` and, if anything is, builds the index again. Needs a Ray."""
    how = config.extraction_settings()
    wanted = ExtractConfig(manifest=manifest, model=model, whitening=config.whitening, out="", **how)
    found = extracted(config.out, wanted)
    _index(found, config.factory)
    return found


def extracted(out: str, wanted: ExtractConfig) -> Collection:
    """The collection of `wanted.manifest` by `wanted.model`, in which what is new or changed is extracted. Needs a Ray.

    The network is kept with it. The index stays as it is.
    """
    embedding = extraction.embedding_of(extraction.recipe_of(wanted, wanted.source(wanted.model)))
    folder = files.join(home(out, wanted.manifest), embedding.id[:16])
    local_files.sweep(folder)
    counts = extraction.extract(replace(wanted, out=files.join(folder, "descriptors")))
    made = identity.of_folder(files.join(folder, "descriptors"))
    identity.require_equal(embedding, wanted.model, made, f"{wanted.model}, as it is now")
    keep(folder, wanted, embedding)
    names = "\n".join(store.shards(files.join(folder, "descriptors")))
    return Collection(folder, embedding, hashlib.sha256(names.encode()).hexdigest(), counts)


def _index(found: Collection, factory: str) -> None:
    note = files.join(found.folder, MADE_OF)
    made_of = {"rows": found.rows, "factory": factory}
    if files.exists(note) and files.read_json(note) == made_of and _is_whole(found.index):
        log.info("the index of %s stays as it is", found.descriptors)
        return
    build_index.build(IndexConfig(descriptors=found.descriptors, out=found.index, factory=factory))
    files.write_json(note, made_of)


def _is_whole(index: str) -> bool:
    try:
        return bool(output.verified_seal(index)) or files.exists(files.join(index, output.RESULT))
    except UserError:  # it is made again
        return False


def forget_others(out: str, kept: set[str]) -> None:
    """Deletes the collections whose folders are not in `kept`: of networks and manifests that no night needs."""
    for name in files.folders(files.join(out, ROOT)):
        of_manifest = files.join(out, f"{ROOT}/{name}")
        made = {files.join(of_manifest, embedding) for embedding in files.folders(of_manifest)}
        for folder in sorted(made - kept):
            files.delete(files.join(folder, KEPT))  # first: half a network doesn't count
            files.delete_folder(folder)
        if not made & kept:
            files.delete_folder(of_manifest)
