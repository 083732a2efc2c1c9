"""Batches hold the triplets that they are made of, whatever the shares, each distinct image once."""

import collections
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.train import batches

TRIPLETS = st.lists(st.tuples(*[st.integers(0, 12)] * 3), max_size=60)


def made(triplets, batch_size, replicas, seed=0, *, photos=3, owners=None):
    """The batches, where `photos` rows each, one after the other, show one object; `replicas` is how many of one
    machine, or the machine of each.
    """
    array = np.array(triplets, np.int64).reshape(-1, 3)
    rows = np.arange(array.max(initial=-1) + 1)
    labels = (rows // photos).astype(str).astype(object)
    machines = np.zeros(replicas, int) if isinstance(replicas, int) else np.array(replicas)
    owners = np.zeros(len(rows), int) if owners is None else np.array(owners)[: len(rows)]
    generator = np.random.default_rng(seed)
    return list(batches.epoch(array, labels, batch_size, machines=machines, owners=owners, generator=generator))


def mined(objects, photos, negatives, hubs):
    """Triplets of each photo with one of the same object and `negatives` others, of which `hubs` are hard for many."""
    random = np.random.default_rng(0)
    rows = np.arange(objects * photos)
    hard = random.permutation(rows)[:hubs]
    return [
        (row, int(row // photos * photos + (row + 1) % photos), int(negative))
        for row in rows
        for negative in random.permutation(hard[hard // photos != row // photos])[:negatives]
    ]


def images(found):
    """How many images the batches embed."""
    return sum(len(share.rows) for batch in found for share in batch)


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


@given(
    TRIPLETS.filter(lambda triplets: len(triplets) >= 4),
    st.lists(st.integers(0, 2), min_size=2, max_size=4),
    st.lists(st.integers(0, 2), min_size=13, max_size=13),
)
def test_whoever_owns_what_the_batches_are_the_same_and_replicas_get_equally_many(triplets, machines, owners):
    found, alone = made(triplets, 8, machines, owners=owners), made(triplets, 8, 1)
    for batch, (whole,) in zip(found, alone, strict=True):
        sizes = [share.indices.shape[1] for share in batch]
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
        told_once = [tuple(t) for share in batch for t in share.rows[share.indices].T.tolist()]
        assert sorted(told_once) == sorted(map(tuple, whole.rows[whole.indices].T.tolist()))


@given(TRIPLETS, st.lists(st.integers(0, 1), min_size=13, max_size=13))
def test_no_triplet_is_elsewhere_while_its_owner_has_another_s(triplets, owners):
    for batch in made(triplets, 8, [0, 1], owners=owners):
        astray = [
            np.count_nonzero(np.array(owners)[share.rows[share.indices[0]]] != machine)
            for machine, share in enumerate(batch)
        ]
        assert min(astray) == 0


@given(TRIPLETS)
def test_each_distinct_image_stands_once_in_a_share(triplets):
    for batch in made(triplets, 8, 2):
        for share in batch:
            assert len(set(share.rows.tolist())) == len(share.rows)
            assert set(share.indices.ravel().tolist()) == set(range(len(share.rows)))


@settings(deadline=None)
@given(
    TRIPLETS,
    st.lists(st.integers(0, 2), min_size=1, max_size=6),
    st.lists(st.integers(0, 2), min_size=13, max_size=13),
)
def test_each_photo_of_a_batch_is_on_one_replica_if_a_loss_is_of_all_photos(triplets, machines, owners):
    for batch in made(triplets, 8, machines, owners=owners):
        parts = batches.distinct(batch, machines=np.array(machines), owners=np.array(owners))
        assert len(parts) == len(machines)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        together = np.concatenate(parts).tolist()
        assert sorted(together) == sorted({row for share in batch for row in share.rows.tolist()})


def test_triplets_of_one_anchor_stand_together():
    triplets = [(anchor, 10 + k, 20 + k) for k in range(8) for anchor in range(4)]
    for (share,) in made(triplets, 8, 1):
        assert len(set(share.rows[share.indices[0]].tolist())) == 1


def test_anchors_stand_with_those_that_share_their_images():
    triplets = mined(objects=60, photos=3, negatives=5, hubs=60)
    shuffled = np.random.default_rng(1).permutation(sorted({anchor for anchor, _, _ in triplets})).tolist()
    by_anchor = sorted(triplets, key=lambda triplet: shuffled.index(triplet[0]))
    at_random = sum(len({row for t in by_anchor[k : k + 32] for row in t}) for k in range(0, len(triplets) - 31, 32))
    assert images(made(triplets, 32, 1)) < 0.85 * at_random


@given(st.integers(0, 2**32))
def test_objects_stay_mixed(seed):
    triplets = mined(objects=10, photos=8, negatives=4, hubs=80)
    for batch in told(made(triplets, 32, 1, seed, photos=8)):
        of_object = collections.Counter(anchor // 8 for anchor, _, _ in batch)
        # Only where the last anchors are of few objects may there be more; the anchor before may reach into the batch.
        assert len(of_object) >= 3


def test_images_that_are_hard_for_all_do_not_make_it_slow():
    triplets = [(anchor, anchor ^ 1, 20_000 + k) for anchor in range(20_000) for k in range(2)]
    assert len(told(made(triplets, 32, 1))) == 1250


def test_order_depends_on_the_generator_only():
    triplets = [(k % 5, k, 2 * k) for k in range(40)]
    first, again, other = (made(triplets, 8, 2, seed) for seed in (1, 1, 2))
    flat = [[s.rows[s.indices].tolist() for batch in found for s in batch] for found in (first, again, other)]
    assert flat[0] == flat[1] != flat[2]
