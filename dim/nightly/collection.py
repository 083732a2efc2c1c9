"""What is kept from night to night of one manifest under one embedding: descriptors, their index, and the network."""

import hashlib
import logging
from dataclasses import dataclass, fields, replace
from pathlib import PurePosixPath
from typing import Any

from dim import files, leftovers, output
from dim.errors import UserError
from dim.extract import identity, store
from dim.extract import job as extraction
from dim.extract.config import ExtractConfig, Extraction
from dim.extract.identity import Embedding
from dim.nightly import network
from dim.nightly.config import NightlyConfig
from dim.search import index_job
from dim.search.config import IndexConfig

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
    how = {field.name: getattr(config, field.name) for field in fields(Extraction)}
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
    leftovers.sweep(folder)
    counts = extraction.extract(replace(wanted, out=files.join(folder, "descriptors")))
    made = identity.of_folder(files.join(folder, "descriptors"))
    identity.require_equal(embedding, wanted.model, made, f"{wanted.model}, as it is now")
    network.keep(folder, wanted, embedding)
    names = "\n".join(store.shards(files.join(folder, "descriptors")))
    return Collection(folder, embedding, hashlib.sha256(names.encode()).hexdigest(), counts)


def _index(found: Collection, factory: str) -> None:
    note = files.join(found.folder, MADE_OF)
    made_of = {"rows": found.rows, "factory": factory}
    if files.exists(note) and files.read_json(note) == made_of and _is_whole(found.index):
        log.info("the index of %s stays as it is", found.descriptors)
        return
    index_job.build(IndexConfig(descriptors=found.descriptors, out=found.index, factory=factory))
    files.write_json(note, made_of)


def _is_whole(index: str) -> bool:
    try:
        return bool(output.whole(index)) or files.exists(files.join(index, output.RESULT))
    except UserError:  # it is made again
        return False


def forget_others(out: str, kept: set[str]) -> None:
    """Deletes the collections whose folders are not in `kept`: of networks and manifests that no night needs."""
    for name in files.folders(files.join(out, ROOT)):
        of_manifest = files.join(out, f"{ROOT}/{name}")
        made = {files.join(of_manifest, embedding) for embedding in files.folders(of_manifest)}
        for folder in sorted(made - kept):
            files.delete(files.join(folder, network.KEPT))  # first: half a network doesn't count
            files.delete_folder(folder)
        if not made & kept:
            files.delete_folder(of_manifest)
