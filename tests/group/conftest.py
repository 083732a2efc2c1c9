"""A pile of photos in which what belongs together is known."""

import numpy as np
import pytest

from dim.group import components, corrections, neighbours
from dim.search.database import from_array


@pytest.fixture
def pile():
    """Descriptors of 40 objects with 1 to 6 photos each, float32 (N, 24), and the object of each, (N,)."""

    def make(seed=0, noise=0.12, objects=40):
        generator = np.random.default_rng(seed)
        truth = np.repeat(np.arange(objects), generator.integers(1, 7, objects))
        vectors = generator.standard_normal((objects, 24))[truth] / 24**0.5
        vectors += noise * generator.standard_normal((len(truth), 24))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), truth

    return make


@pytest.fixture
def grouper():
    """Makes a grouper of `vectors`, whose ids are in the order of the rows."""

    def make(vectors, count=10, corrected=None, most_rows=10**6):
        database = from_array(vectors, np.arange(len(vectors)))
        found = neighbours.by_comparison(database, neighbours.unknown(len(vectors), min(count, len(vectors) - 1)))
        return components.Grouper(database, found, 0.0, corrected or corrections.none(), most_rows)

    return make
