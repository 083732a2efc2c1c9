"""Batches hold the triplets that they are made of, whatever the shares, each distinct image once."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dim.train import batches

TRIPLETS = st.lists(st.tuples(*[st.integers(0, 12)] * 3), max_size=60)


def made(triplets, batch_size, replicas, seed=0):
    array = np.array(triplets, np.int64).reshape(-1, 3)
    return list(batches.epoch(array, batch_size, replicas, np.random.default_rng(seed)))


def told(found):
    """The triplets of each batch."""
    return [[tuple(t) for share in batch for t in share.rows[share.indices].T.tolist()] for batch in found]


@given(TRIPLETS, st.integers(1, 4), st.integers(4, 32))
def test_batches_hold_the_triplets_once_each(triplets, replicas, batch_size):
    found = made(triplets, batch_size, replicas)
    assert all(len(batch) == replicas for batch in found)
    assert all(share.indices.shape[1] > 0 for batch in found for share in batch)
    left = list(triplets)
    for triplet in itertools.chain.from_iterable(told(found)):
        left.remove(triplet)
    size = min(batch_size, len(triplets))
    assert len(left) == (len(triplets) % size if size >= replicas else len(triplets))


@given(TRIPLETS.filter(lambda triplets: len(triplets) >= 4), st.integers(2, 4), st.integers(4, 32))
def test_batches_are_the_same_for_any_number_of_replicas(triplets, replicas, batch_size):
    assert told(made(triplets, batch_size, replicas)) == told(made(triplets, batch_size, 1))


@given(TRIPLETS)
def test_each_distinct_image_stands_once_in_a_share(triplets):
    for batch in made(triplets, 8, 2):
        for share in batch:
            assert len(set(share.rows.tolist())) == len(share.rows)
            assert set(share.indices.ravel().tolist()) == set(range(len(share.rows)))


def test_triplets_of_one_anchor_stand_together():
    triplets = [(anchor, 10 + k, 20 + k) for k in range(8) for anchor in range(4)]
    for (share,) in made(triplets, 8, 1):
        assert len(set(share.rows[share.indices[0]].tolist())) == 1


def test_order_depends_on_the_generator_only():
    triplets = [(k % 5, k, 2 * k) for k in range(40)]
    first, again, other = (made(triplets, 8, 2, seed) for seed in (1, 1, 2))
    flat = [[s.rows[s.indices].tolist() for batch in found for s in batch] for found in (first, again, other)]
    assert flat[0] == flat[1] != flat[2]
