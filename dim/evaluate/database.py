"""The descriptors that are searched: those of the manifest in memory, those of distractors streamed."""

from dataclasses import dataclass, replace

import numpy as np

from dim.data.manifest import Manifest
from dim.errors import UserError
from dim.extract import descriptors
from dim.extract.descriptors import Descriptors
from dim.model.whitening import Whitening
from dim.search import stored
from dim.search.database import slices
from dim.search.nearest import Part
from dim.search.stored import Stored, prepared


@dataclass(frozen=True)
class Database:
    """Rows of the database by column: first those of the manifest (`rows` are their rows there), then distractors."""

    rows: np.ndarray
    vectors: np.ndarray
    distractors: Stored | None = None

    def __len__(self) -> int:
        return len(self.rows) + (len(self.distractors) if self.distractors else 0)

    @property
    def parts(self) -> list[Part]:
        """The descriptors of all columns."""
        more = self.distractors.parts if self.distractors else []
        return slices(self.vectors) + [replace(part, start=part.start + len(self.rows)) for part in more]

    def ids(self, manifest: Manifest) -> np.ndarray:
        """The image_id of each column."""
        own = manifest.image_ids[self.rows]
        return np.concatenate([own, self.distractors.ids.to_numpy()]) if self.distractors else own


def read(folder: str, manifest: Manifest, whitening: Whitening | None) -> Descriptors:
    """The descriptors of the manifest's rows that could be decoded, whitened where asked.

    Raises UserError as `descriptors.read` does, and where a descriptor is not a unit vector.
    """
    found = descriptors.read(folder, manifest)
    return Descriptors(found.embedding, found.rows, prepared(found.vectors, whitening, folder))


def read_distractors(folder: str, manifest: Manifest, whitening: str | None) -> Stored:
    """The distractors of `manifest`, their vectors left on disk. Raises UserError where `folder` lacks one of them."""
    found = stored.read(folder, whitening, manifest.image_ids)
    if missing := {*manifest.image_ids} - {*found.ids.to_pylist()} - found.errors.keys():
        raise UserError(
            f"{folder!r} lacks {len(missing)} of the distractors of {manifest.uri!r}, such as {min(missing)!r}"
        )
    return found
