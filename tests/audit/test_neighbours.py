"""The neighbours that an index in parts proposes."""

import numpy as np
import pyarrow as pa
import pytest

from dim.audit import neighbours, photos
from dim.search.exact import Part

ROWS, DIMENSION, PARTS = 700, 16, 14


def audited(share):
    vectors = np.random.default_rng(0).standard_normal((ROWS, DIMENSION)).astype(np.float32)
    vectors[ROWS // 2 :: 7] = vectors[: ROWS // 2 : 7]  # equal scores
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    size = ROWS // PARTS
    parts = [Part(start, size, vectors[start : start + size].copy) for start in range(0, ROWS, size)]
    ids = pa.chunked_array([pa.array([f"{row * 37 % ROWS:04d}" for row in range(ROWS)])])
    return photos.of(parts, ids, pa.array(["a"] * ROWS), pa.nulls(ROWS, pa.string()), share=share)


def bytes_of_a_row(factory):
    return {"Flat": 4 * DIMENSION, "IVF4,SQ8": DIMENSION + 8, "SQ8": DIMENSION}[factory]


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "IVF4,SQ8"])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_neighbours_do_not_depend_on_the_parts_of_the_index(factory, count):
    whole = neighbours.by_index(audited(2**30), factory, "nprobe=2" if "IVF" in factory else None)
    some = audited(2 * (ROWS // count + 1) * bytes_of_a_row(factory) + 300)
    trained = neighbours._trained(some, factory, None)
    assert len(list(neighbours._index_parts(some, trained))) >= count
    found = neighbours.by_index(some, factory, "nprobe=2" if "IVF" in factory else None)
    assert np.array_equal(found.scores, whole.scores)
    assert np.array_equal(found.rows[:, :5], whole.rows[:, :5])


def test_graphs_in_parts_find_what_an_exact_search_finds():
    exact = neighbours.by_comparison(audited(2**30))
    found = neighbours.by_index(audited(2**16), "HNSW16", None)
    kept = [np.isin(one, other).mean() for one, other in zip(exact.rows, found.rows, strict=True)]
    assert np.mean(kept) > 0.95
