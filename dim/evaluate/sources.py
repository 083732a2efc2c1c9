"""The one or two sets of descriptors that an evaluation measures, each with its distractors."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from dim import files
from dim.data import manifest
from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.evaluate import database, provenance
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.database import Database
from dim.evaluate.task import Task
from dim.extract import content, identity
from dim.extract.config import ExtractConfig, Extraction, Split
from dim.extract.descriptors import Descriptors
from dim.extract.identity import Embedding
from dim.search.stored import whitened


@dataclass(frozen=True)
class Source:
    """`name` is what the user gave; `embedding` is that of `folder`, with the whitening that the evaluation applies;
    `whitenings` are those of `provenance`.
    """

    name: str
    folder: str
    embedding: Embedding
    queries: Descriptors
    database: Database
    whitenings: list[dict[str, Any]]


def read(config: EvaluateConfig, task: Task) -> list[Source]:
    """Reads, or first makes, what `config` names.

    Raises UserError where flags or embeddings don't fit each other, or a folder lacks descriptors that `task` needs.
    """
    if not 1 <= len(config.descriptors) + len(config.model) <= 2:
        raise UserError("give --descriptors DIR or --model X once, or twice to compare two")
    if len(config.distractor_descriptors) != (len(config.descriptors) if config.distractors else 0):
        raise UserError("--distractors FILE needs one --distractor-descriptors DIR for each --descriptors DIR")
    distractors = _distractors(config, task)
    found = []
    for name, folder, beside in _folders(config):
        stored = embedding = identity.of_folder(folder)
        whitening = None
        if config.whitening:
            embedding, whitening = whitened(config.whitening, stored, folder)
        queries = database.read(folder, task.queries, whitening)
        task.require_positive(queries.rows)
        searched = database.read(folder, task.database, whitening)
        more = None
        if distractors and beside:
            identity.require_equal(stored, folder, identity.of_folder(beside), beside)
            more = database.read_distractors(beside, distractors, config.whitening)
            identity.require_equal(embedding, folder, more.embedding, beside)  # the file was read a second time
        searched_in = Database(searched.rows, searched.vectors, more)
        whitenings = provenance.whitenings(folder, whitening)
        found.append(Source(name, folder, embedding, queries, searched_in, whitenings))
    return found


def _distractors(config: EvaluateConfig, task: Task) -> Manifest | None:
    if config.distractors is None:
        return None
    distractors = manifest.read(config.distractors)
    if config.root:
        content.require_under(config.root, distractors)
    if both := {*distractors.image_ids} & {*task.database.image_ids, *task.queries.image_ids}:
        raise UserError(f"{config.distractors!r} and {config.manifest!r} both have the image_id {min(both)!r}")
    return distractors


def _folders(config: EvaluateConfig) -> Iterator[tuple[str, str, str | None]]:
    """The name, the descriptors and the distractors' descriptors of each source."""
    for number, folder in enumerate(config.descriptors):
        yield folder, folder, config.distractor_descriptors[number] if config.distractors else None
    split = None if config.query_split else config.split
    for number, model in enumerate(config.model, start=1):
        folder, beside = (files.join(config.out, f"{kind}-{number}") for kind in ("descriptors", "distractors"))
        _extract(config, model, config.manifest, folder, split)
        if config.distractors:
            _extract(config, model, config.distractors, beside, None)
        yield model, folder, beside if config.distractors else None


def _extract(config: EvaluateConfig, model: str, photos: str, out: str, split: Split | None) -> None:
    from dim.extract.job import extract  # noqa: PLC0415  (descriptors at hand need no Ray)

    how = {field.name: getattr(config, field.name) for field in fields(Extraction)}
    extract(ExtractConfig(manifest=photos, model=model, out=out, split=split, **how))
