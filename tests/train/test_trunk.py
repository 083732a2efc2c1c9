"""What is frozen is computed once for each photo, and once for each of its stored variants."""

import hashlib

import numpy as np
import pytest

from dim.train.photos import Augmentation, Photos, Variants
from dim.train.trunk import Trunk
from dim.train.trunk_cache import TrunkCache

AUGMENTATION = Augmentation(rotation=20, crop=0.2)


@pytest.fixture
def photos(demo):
    paths = sorted(map(str, demo.glob("*/0[0-2].jpg")))[:6]
    names = np.array([str(row) for row in range(6)], dtype=object)
    keys = [hashlib.sha256(path.encode()).hexdigest()[:32] for path in paths]
    return Photos(names, names, names, paths, [None] * 6, keys, 48, "squash")


class Forward:
    """Stands in for the network, and counts the photos that went through it."""

    def __init__(self):
        self.photos = 0

    def __call__(self, batch):
        self.photos += len(batch)
        return batch.astype(np.float16) / 255


def trunk(photos, folder, forward, limit=10**8):
    return Trunk(photos, TrunkCache(str(folder), "trunk", limit), forward, 4, 2)


def test_each_variant_is_computed_once_and_others_draw_the_same(photos, tmp_path):
    forward = Forward()
    one = trunk(photos, tmp_path / "one", forward)
    variants = Variants(AUGMENTATION, count=3, seed=0)
    epochs = [next(one.read([range(6)], variants, epoch)) for epoch in range(40)]
    assert forward.photos == 3 * 6
    for row in range(6):
        assert len({activations[row].tobytes() for activations in epochs}) == 3
    other = trunk(photos, tmp_path / "other", Forward())
    again = next(other.read([[4, 1]], variants, 7))
    for row in (1, 4):
        np.testing.assert_array_equal(again[row], epochs[7][row])


def test_variants_are_kept_apart_from_photos_and_from_each_other(photos, tmp_path):
    forward = Forward()
    made = trunk(photos, tmp_path, forward)
    plain = next(made.read([[0]]))[0]
    found = [
        next(made.read([[0]], Variants(augmentation, 1, seed)))[0]
        for augmentation, seed in ((AUGMENTATION, 0), (AUGMENTATION, 1), (Augmentation(5, 0), 0))
    ]
    assert len({activations.tobytes() for activations in (plain, *found)}) == 4
    assert forward.photos == 4


def test_what_the_disk_has_no_room_for_is_computed_again(photos, tmp_path):
    forward = Forward()
    small = trunk(photos, tmp_path, forward, limit=2 * 48 * 48 * 3 * 2)
    first, second = next(small.read([range(6)])), next(small.read([range(6)]))
    assert forward.photos == 6 + 4
    assert all(np.array_equal(first[row], second[row]) for row in range(6))
