"""Groups of whole sets: by any blocks and any order, with giants, and with corrections."""

import numpy as np
import pytest
from piles import database_of
from scipy.cluster.hierarchy import fcluster, linkage

from dim.group import components, corrections, neighbours, threshold
from dim.group.corrections import Corrections

PAIRS = np.zeros((0, 2), np.int64)


def partition(groups, names):
    """The groups as a set of sets of names."""
    by_group = {}
    for group, name in zip(groups.tolist(), names, strict=True):
        by_group.setdefault(group, set()).add(name)
    return {frozenset(members) for members in by_group.values()}


@pytest.mark.parametrize("seed", range(3))
def test_components_split_by_linkage_are_linkage_of_all(pile, grouper, seed):
    vectors, _ = pile(seed)
    found = grouper(vectors).grouped(0.4)
    every = vectors.astype(np.float64)
    distances = 1 - (every @ every.T)[np.triu_indices(len(every), 1)]
    expected = fcluster(linkage(distances, "average"), 1 - 0.4, "distance")
    assert partition(found.groups, range(len(vectors))) == partition(expected, range(len(vectors)))


def test_any_order_of_photos_and_any_blocks_give_the_same(pile, monkeypatch):
    vectors, _ = pile(3, objects=15)
    vectors = np.concatenate([vectors, vectors[:9]])  # ties
    ids = np.array([f"photo {number:03d}" for number in range(len(vectors))])
    found = []
    for seed, (rows, most) in enumerate([(4096, 10**6), (7, 30), (1, 1)]):
        monkeypatch.setattr(components, "UNIT_ROWS", rows)
        monkeypatch.setattr("dim.search.database.PART_ROWS", rows)
        monkeypatch.setattr(neighbours, "_WINDOW", max(5, rows))
        order = np.random.default_rng(seed).permutation(len(vectors))
        database, _ = database_of(vectors[order], ids[order])
        lists = neighbours.by_comparison(database, neighbours.unknown(len(vectors), 10))
        grouper = components.Grouper(database, lists, 0.0, corrections.none(), most)
        curve = threshold.curve(grouper)
        result = grouper.grouped(curve.best)
        named = {ids[order][row]: (ids[order][result.groups[row]], ids[order][result.medoids[row]],
                                   round(float(result.similarity[row]), 9)) for row in range(len(order))}  # fmt: skip
        found.append((curve.best, sorted(named.items())))
    assert found[0] == found[1] == found[2]


def test_figures_of_a_group(pile, grouper):
    vectors, _ = pile(2)
    found = grouper(vectors).grouped(0.4)
    similarities = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    for group in np.unique(found.groups):
        members = np.flatnonzero(found.groups == group)
        assert group == members[0]
        among = similarities[np.ix_(members, members)]
        medoid = members[np.round(among.sum(axis=1) - np.diag(among), 9).argmax()]
        assert (found.medoids[members] == medoid).all()
        assert found.similarity[members] == pytest.approx(similarities[medoid, members], abs=1e-6)
        for row in members if len(members) > 1 else []:
            others = members[members != row]
            assert found.within[row] == pytest.approx(similarities[row, others].mean(), abs=1e-6)


@pytest.mark.parametrize("largest", [40, 60])
def test_giants_are_split_and_their_pieces_merged(pile, grouper, monkeypatch, largest):
    vectors, _ = pile(4, noise=0.05)
    made = grouper(vectors)
    whole = made.grouped(0.4)
    monkeypatch.setattr(components, "LARGEST", largest)
    pieces: list = []
    of_giant = components.Grouper._pieces
    monkeypatch.setattr(components.Grouper, "_pieces", lambda *a: [pieces.append(a), *of_giant(*a)][1:])
    found = made.grouped(0.4)
    assert pieces
    for name in ("groups", "medoids", "similarity"):
        assert (getattr(found, name) == getattr(whole, name)).all()


def test_a_giant_of_equal_photos_is_one_group(grouper, monkeypatch):
    monkeypatch.setattr(components, "LARGEST", 8)
    vectors = np.zeros((30, 4), np.float32)
    vectors[:, 0] = 1
    vectors[25:] = np.eye(4, dtype=np.float32)[1]
    found = grouper(vectors).grouped(0.5)
    assert found.sizes.tolist() == [25] * 25 + [5] * 5


def test_corrections_join_and_part(pile, grouper):
    vectors, _ = pile(5)
    plain = grouper(vectors).grouped(0.4)
    alone = np.flatnonzero(plain.sizes == 1)[:2]
    pair = np.flatnonzero(plain.groups == plain.groups[plain.sizes > 1][0])[:2]
    corrected = grouper(vectors, corrected=Corrections(alone[None], pair[None])).grouped(0.4)
    assert corrected.groups[alone[0]] == corrected.groups[alone[1]]
    assert corrected.groups[pair[0]] != corrected.groups[pair[1]]
    again = grouper(vectors, corrected=Corrections(PAIRS, PAIRS)).grouped(0.4)
    assert (again.groups == plain.groups).all()


def test_the_threshold_finds_the_objects(pile, grouper):
    vectors, truth = pile(6, noise=0.04)
    made = grouper(vectors)
    found = made.grouped(threshold.curve(made).best)
    assert partition(found.groups, range(len(truth))) == partition(truth, range(len(truth)))
