"""The network that made a collection, kept beside it, so that it can measure the photos of later nights, too.

A training run writes its best model in place: when tonight's is measured, the folder that the last accepted night read
holds another. A copy (VGG16: 60 MB, once an embedding) is what makes the two comparable on the same photos.
"""

from dataclasses import fields

from dim import files, leftovers
from dim.errors import UserError
from dim.extract import identity
from dim.extract import job as extraction
from dim.extract.config import ExtractConfig, Extraction
from dim.extract.identity import Embedding
from dim.model import spec

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
    if made.weights and made.weights not in spec.WORDS:
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
    how = {field.name: getattr(tonight, field.name) for field in fields(Extraction)}
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
        leftovers.sweep(files.parent(target))
        files.write_bytes(target, files.read_bytes(source))
