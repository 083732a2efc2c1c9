"""`dim.Index`: search from Python, in this process and without Ray."""

import os
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dim.errors import UserError
from dim.extract import identity
from dim.extract.embedding import Embedding
from dim.extract.model import Model
from dim.search import read_index
from dim.search.descriptor_folder import LONGEST


class Found(NamedTuple):
    """The rows found for Q queries, best first: `ids`, strings (Q, k), and `scores`, float64 (Q, k).

    Where an approximate index found fewer than k rows for a query, the id is None and the score −inf.
    """

    ids: np.ndarray
    scores: np.ndarray


class Index:
    """An index to search, or a folder of descriptors, which is searched exactly.

        import dim

        model = dim.Model("runs/mine/model")
        index = dim.Index("runs/index", model)
        ids, scores = index.search(model.embed("photo.jpg"), 10)

    Args:
        folder: A folder that index.py or extract.py made.
        model: The model whose descriptors are searched for. It must have made the descriptors of the index, with the
            same settings. By default, this is not checked.
        parameters: FAISS's search parameters, such as "nprobe=16".

    Attributes:
        embedding: The identity of the descriptors. Descriptors may be compared if their identities are equal.
        dimension: The number of values of a descriptor.

    Raises:
        UserError: The folder has neither an index nor descriptors, or is damaged; another model or other settings made
            its descriptors; or `parameters` can't be set.
    """

    def __init__(
        self, folder: str | os.PathLike[str], model: Model | None = None, *, parameters: str | None = None
    ) -> None:
        name = os.fspath(folder)
        target = read_index.read(name, None, parameters)
        if model is not None:
            identity.require_equal(target.embedding, name, model.embedding, model.name)
        self.embedding: Embedding = target.embedding
        self.dimension: int = target.dimension
        self._database, self._ids = target.database, target.ids

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._ids)

    def search(self, queries: np.ndarray, k: int = 10) -> Found:
        """Finds the nearest rows of each query.

        Args:
            queries: L2-normalised descriptors, (Q, D), such as those of `dim.Model.embed`.
            k: The number of rows to find; all rows if the index has fewer.

        Returns:
            The image ids, strings (Q, k), and the scores, float64 (Q, k), which are cosines. The best rows come first.
            Rows with equal scores are ordered by their ids.

        Raises:
            UserError: The queries have another shape, or are not normalised, or `k` is less than 1.
        """
        if k < 1:
            raise UserError(f"k must be at least 1, not {k}")
        vectors = np.asarray(queries, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            shape = " × ".join(map(str, vectors.shape))
            raise UserError(f"queries must be an array of N × {self.dimension} values, not {shape}")
        lengths = np.linalg.norm(vectors, axis=1)
        if not (lengths <= LONGEST).all():  # the comparison is false for NaN, too
            row = int(np.flatnonzero(~(lengths <= LONGEST))[0])
            raise UserError(f"queries must be L2-normalised; the length of row {row} is {lengths[row]:g}, not 1")
        rows, scores = self._database.nearest(vectors, min(k, len(self)))
        ids = self._ids.take(pa.array(rows.reshape(-1), mask=rows.reshape(-1) < 0))
        return Found(ids.to_numpy(zero_copy_only=False).reshape(rows.shape), scores)
