"""Average linkage against SciPy's, and what keeps pairs apart."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from dim.group.linkage import average_linkage

NONE = np.zeros((0, 2), np.int64)


def scipys(vectors, threshold):
    """The first row of each row's group, by SciPy on all pairs."""
    distances = 1 - (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    labels = fcluster(linkage(distances, "average"), 1 - threshold, "distance")
    return np.array([np.flatnonzero(labels == label)[0] for label in labels])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8, 0.95])
def test_groups_are_those_of_scipy(pile, seed, threshold):
    vectors = pile(seed)[0].astype(np.float64)
    found = average_linkage(vectors, np.ones(len(vectors), np.int64), threshold, NONE)
    assert (found == scipys(vectors, threshold)).all()


def test_a_chain_is_split():
    angles = np.arange(12) * 0.25  # neighbours are similar by 0.97, the ends by −0.92
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = average_linkage(vectors, np.ones(12, np.int64), 0.9, NONE)
    similarities = vectors @ vectors.T
    for group in np.unique(found):
        members = np.flatnonzero(found == group)
        assert len(members) < 5
        assert similarities[np.ix_(members, members)].min() > 0.7


def test_groups_count_by_their_sizes():
    vectors = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    sums, sizes = vectors * [[10], [1], [1]], np.array([10, 1, 1])
    assert average_linkage(sums, sizes, 0.7, NONE).tolist() == [0, 0, 2]


def test_what_is_apart_stays_apart(pile):
    vectors, _ = pile(1)
    vectors = vectors.astype(np.float64)
    ones = np.ones(len(vectors), np.int64)
    before = average_linkage(vectors, ones, 0.4, NONE)
    members = next(np.flatnonzero(before == group) for group in np.unique(before) if (before == group).sum() > 2)
    pair = np.array([[members[0], members[1]]])
    after = average_linkage(vectors, ones, 0.4, pair)
    assert after[members[0]] != after[members[1]]
    assert sum(len(np.unique(after[before == group])) for group in np.unique(before)) <= len(np.unique(before)) + 2


def test_equal_rows_are_one_group():
    vectors = np.tile([[0.6, 0.8]], (50, 1))
    assert not average_linkage(vectors, np.ones(50, np.int64), 1.0, NONE).any()
