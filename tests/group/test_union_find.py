"""The union-find against the components of SciPy, whatever the blocks and the order of the edges."""

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dim.group.union_find import UnionFind


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("blocks", [1, 7, 300])
def test_components_are_those_of_scipy(seed, blocks):
    generator = np.random.default_rng(seed)
    edges = generator.integers(0, 500, (300, 2))
    union = UnionFind(500)
    for block in np.array_split(generator.permutation(edges), blocks):
        union.join(*block.T)
    _, labels = connected_components(coo_array((np.ones(300), edges.T), shape=(500, 500)), directed=False)
    first = {}
    for node, label in enumerate(labels):
        first.setdefault(label, node)
    assert union.roots().tolist() == [first[label] for label in labels]


def test_a_chain_that_arrives_backwards():
    union = UnionFind(10_000)
    for block in np.array_split(np.arange(10_000 - 1)[::-1], 50):
        union.join(block, block + 1)
    assert not union.roots().any()


def test_no_edge():
    union = UnionFind(3)
    union.join(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert union.roots().tolist() == [0, 1, 2]


def test_edges_of_tasks_that_were_joined_apart():
    generator = np.random.default_rng(0)
    edges = generator.integers(0, 200, (150, 2))
    whole, merged = UnionFind(200), UnionFind(200)
    whole.join(*edges.T)
    for share in np.array_split(edges, 4):
        own = UnionFind(200)
        own.join(*share.T)
        merged.join(np.arange(200), own.roots())
    assert (merged.roots() == whole.roots()).all()
