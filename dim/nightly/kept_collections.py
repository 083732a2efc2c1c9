"""What is kept from night to night: one collection of descriptors, index and network per manifest and embedding.

`refresh` brings the collection of tonight's network up to date. It copies the network into the collection, because a
training run overwrites its best model: on a later night, the model's folder may contain another network. With the copy,
the last accepted network can extract photos that were added later, so that it is compared with tonight's network on the
same photos. A copy of VGG16 has 60 MB.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from dim.app import output_folder
from dim.errors import UserError
from dim.extract import identity, store
from dim.extract import job as extraction
from dim.extract.config import ExtractConfig, Extraction
from dim.extract.embedding import Embedding, NetworkEmbedding
from dim.io import files, local_copies, seal
from dim.model import spec
from dim.nightly.config import NightlyConfig
from dim.search import build_index
from dim.search.config import IndexConfig

ROOT, DESCRIPTORS, INDEX_INPUTS = "collections", "descriptors", "index_made_of.json"
NETWORK, MODEL, WHITENING = "network.json", "model", "whitening.npz"
# The settings that belong to a network. All other settings, such as the number of workers, come from tonight's config.
_SETTINGS = (
    "weights", "pooling", "preprocessing", "image_size", "resize", "scales", "scales_mean", "scaled_decode",
)  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collection:
    """The descriptors, the index and the network of one manifest and embedding, in `folder`."""

    folder: str
    embedding: Embedding
    rows: str  # a sha256 that changes if the descriptors change
    counts: dict[str, Any]  # the contents of result.json of tonight's extraction

    @property
    def descriptors(self) -> str:
        """The folder of the descriptors."""
        return files.join(self.folder, DESCRIPTORS)

    @property
    def index(self) -> str:
        """The folder of the index."""
        return files.join(self.folder, "index")


def refresh(config: NightlyConfig, model: str, manifest: str) -> Collection:
    """Extracts new and changed photos of `manifest`, and brings the index up to date. Ray must be running.

    The index keeps the sample that it was first trained on. No figure of a night depends on it: nights search exactly.
    """
    settings = config.extraction_settings()
    network = ExtractConfig(manifest=manifest, model=model, whitening=config.whitening, out="", **settings)
    collection = extract(config.out, network)
    _index(collection, config.factory, config.memory)
    return collection


def extract(out: str, network: ExtractConfig) -> Collection:
    """Extracts new and changed photos of `network.manifest`, and copies the network into the collection.

    The index of the collection isn't updated. Ray must be running.
    """
    embedding = identity.embedding_of(extraction.recipe_of(network, network.source(network.model)))
    of_manifest = f"{PurePosixPath(network.manifest).stem}-{seal.sha256(files.absolute(network.manifest).encode())[:8]}"
    folder = files.join(out, f"{ROOT}/{of_manifest}/{embedding.id[:16]}")
    descriptors = files.join(folder, DESCRIPTORS)
    local_copies.sweep(folder)
    counts = extraction.extract(replace(network, out=descriptors))
    identity.require_equal(embedding, network.model, identity.of_folder(descriptors), f"{network.model}, as it is now")
    keep_network(folder, network, embedding)
    return Collection(folder, embedding, seal.sha256("\n".join(store.shards(descriptors)).encode()), counts)


def current_folder(out: str, recorded: str) -> str:
    """The folder in `out` of a collection whose folder was `recorded` on an earlier night; `out` may have moved."""
    return files.join(out, f"{ROOT}/{files.name(files.parent(recorded))}/{files.name(recorded)}")


def _index(collection: Collection, factory: str, memory: str | None) -> None:
    note = files.join(collection.folder, INDEX_INPUTS)
    made_of = {"rows": collection.rows, "factory": factory}
    if files.exists(note) and files.read_json(note) == made_of and _is_whole(collection.index):
        log.info("the index of %s is up to date", collection.descriptors)
        return
    build_index.build(
        IndexConfig(descriptors=collection.descriptors, out=collection.index, factory=factory, memory=memory)
    )
    files.write_json(note, made_of)


def _is_whole(index: str) -> bool:
    try:
        return bool(output_folder.verified_seal(index)) or files.exists(files.join(index, output_folder.RESULT))
    except UserError:  # damaged or unfinished: build it again
        return False


def keep_network(folder: str, network: ExtractConfig, embedding: NetworkEmbedding) -> None:
    """Copies a network into the collection in `folder`, unless the collection already has one.

    Raises UserError if the network no longer makes `embedding`.
    """
    if files.exists(files.join(folder, NETWORK)):
        return
    settings = {name: getattr(network, name) for name in _SETTINGS} | {"precision": embedding.precision}
    settings |= {"model": network.model, "whitening": network.whitening}
    if network.weights and network.weights not in spec.NAMED_WEIGHTS:
        settings["weights"] = files.absolute(network.weights)
    if files.exists(files.join(network.model, spec.SPEC_FILE)):
        settings["model"] = None
        parts = (spec.SPEC_FILE, spec.WEIGHTS_FILE)
        _copy(folder, {f"{MODEL}/{name}": files.join(network.model, name) for name in parts})
    if network.whitening:
        _copy(folder, {WHITENING: network.whitening})
    _require_embedding(_network(folder, settings, network), embedding, network.model)
    files.write_json(files.join(folder, NETWORK), settings)  # written last: load_network needs this file


def load_network(folder: str, tonight: Extraction) -> ExtractConfig:
    """Reads the network in the collection in `folder`. The result has no manifest and no out. Ray must be running.

    Settings that don't belong to the network, such as the number of workers, come from `tonight`. Raises UserError if
    the collection has no network, or its network no longer makes the collection's embedding.
    """
    note = files.join(folder, NETWORK)
    if not files.exists(note):
        raise UserError(f"no {note!r}: it was deleted, or an earlier dim made the collection and kept no network")
    embedding = identity.of_folder(files.join(folder, DESCRIPTORS))
    network = _network(folder, files.read_json(note), tonight)
    _require_embedding(network, embedding, folder)
    return network


def _network(folder: str, settings: dict[str, object], tonight: Extraction) -> ExtractConfig:
    how = tonight.extraction_settings()
    how |= {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    how["model"] = how["model"] or files.join(folder, MODEL)
    how["whitening"] = how["whitening"] and files.join(folder, WHITENING)
    return ExtractConfig(manifest="", out="", **how)


def _require_embedding(network: ExtractConfig, embedding: Embedding, where: str) -> None:
    made = identity.embedding_of(extraction.recipe_of(network, network.source(network.model)))
    identity.require_equal(embedding, where, made, network.model)


def _copy(folder: str, sources: dict[str, str]) -> None:
    """Copies files into `folder`. `sources` maps the name of each copy to the file to copy."""
    for name, source in sources.items():
        target = files.join(folder, name)
        files.make_folder(files.parent(target))
        local_copies.sweep(files.parent(target))
        files.write_bytes(target, files.read_bytes(source))


def delete_others(out: str, needed: set[str]) -> None:
    """Deletes all collections whose folder is not in `needed`."""
    for name in files.folders(files.join(out, ROOT)):
        of_manifest = files.join(out, f"{ROOT}/{name}")
        collections = {files.join(of_manifest, embedding) for embedding in files.folders(of_manifest)}
        for folder in sorted(collections - needed):
            files.delete(files.join(folder, NETWORK))  # deleted first: load_network needs this file
            files.delete_folder(folder)
        if not collections & needed:
            files.delete_folder(of_manifest)
