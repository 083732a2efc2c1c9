"""What is frozen is computed once for each photo, and once for each of its cached views."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dim.data.decode import decode
from dim.data.limits import DecodeError
from dim.train.augmentation import Augmentation, CachedViews, FreshViews
from dim.train.feature_cache import FeatureCache
from dim.train.features import Features
from dim.train.training_set import TrainingPhotos

AUGMENTATION = Augmentation(rotation=20, crop=0.2)
FILE = pa.ipc.get_tensor_size(pa.Tensor.from_numpy(np.zeros((48, 48, 3), np.float16)))


@pytest.fixture
def photos(demo):
    paths = sorted(map(str, demo.glob("*/0[0-2].jpg")))[:6]
    names = np.array([str(row) for row in range(6)], dtype=object)
    keys = [hashlib.sha256(path.encode()).hexdigest()[:32] for path in paths]
    return TrainingPhotos(names, names, names, paths, [None] * 6, keys, 48, "squash")


class Forward:
    """Stands in for the network, and counts the photos that went through it."""

    def __init__(self):
        self.photos = 0

    def __call__(self, batch):
        self.photos += len(batch)
        return batch.astype(np.float16) / 255


class Decoder:
    """Decodes `photos` here, where a run does it by Ray's tasks, and notes which."""

    def __init__(self, photos):
        self.photos, self.decoded_rows = photos, []

    def decoded(self, rows, names, change=None):
        for row, name in zip(rows, names, strict=True):
            self.decoded_rows.append(row)
            try:
                pixels = decode(Path(self.photos.paths[row]).read_bytes(), self.photos.image_size, "squash").pixels
                yield change(pixels, name) if change else pixels
            except DecodeError as error:
                yield str(error)


def features(photos, folder, forward, limit=10**8):
    cache = FeatureCache(str(folder), "trunk", limit)
    return Features(photos, Decoder(photos), cache, forward, batch_size=4, threads=2)


def test_each_cached_view_is_computed_once_and_others_draw_the_same(photos, tmp_path):
    forward = Forward()
    one = features(photos, tmp_path / "one", forward)
    views = CachedViews(AUGMENTATION, count=3, seed=0)
    epochs = [next(one.read([range(6)], views, epoch)) for epoch in range(40)]
    assert forward.photos == 3 * 6
    for row in range(6):
        assert len({activations[row].tobytes() for activations in epochs}) == 3
    other = features(photos, tmp_path / "other", Forward())
    again = next(other.read([[4, 1]], views, 7))
    for row in (1, 4):
        np.testing.assert_array_equal(again[row], epochs[7][row])


def test_cached_views_are_kept_apart_from_photos_and_from_each_other(photos, tmp_path):
    forward = Forward()
    made = features(photos, tmp_path, forward)
    plain = next(made.read([[0]]))[0]
    found = [
        next(made.read([[0]], CachedViews(augmentation, 1, seed)))[0]
        for augmentation, seed in ((AUGMENTATION, 0), (AUGMENTATION, 1), (Augmentation(5, 0), 0))
    ]
    assert len({activations.tobytes() for activations in (plain, *found)}) == 4
    assert forward.photos == 4


def test_what_the_disk_has_no_room_for_is_computed_again(photos, tmp_path):
    forward = Forward()
    small = features(photos, tmp_path, forward, limit=2 * FILE)
    first, second = next(small.read([range(6)])), next(small.read([range(6)]))
    # Two fit; four of the first read were computed until that was known, and four of each read after it.
    assert forward.photos == 4 + 4 + 4
    assert all(np.array_equal(first[row], second[row]) for row in range(6))
    assert (small.read_count, small.computed_count) == (12, 12)


def test_a_photo_of_many_batches_is_decoded_and_computed_once(photos, tmp_path):
    forward = Forward()
    made = features(photos, tmp_path, forward)
    lists = [[0, 1, 2], [1, 2, 3], [0, 3], [], [4, 5, 0]]
    found = list(made.read(lists))
    assert [list(one) for one in found] == lists
    assert forward.photos == 6 and sorted(made._decoder.decoded_rows) == list(range(6))
    list(made.read(lists))
    assert forward.photos == 6 and (made.read_count, made.computed_count) == (22, 6)


def test_what_was_deleted_or_torn_while_it_is_read_is_computed_again(photos, tmp_path):
    forward = Forward()
    made = features(photos, tmp_path, forward)
    (whole,) = made.read([range(6)])
    gone, torn = sorted(tmp_path.rglob("*.arrow"))[:2]
    torn.write_bytes(b"torn")
    lists = made.read([[], range(6)])
    next(lists)
    gone.unlink(missing_ok=True)
    for found in (next(lists), next(made.read([range(6)]))):
        assert found.keys() == whole.keys()
        assert all(np.array_equal(found[row], whole[row]) for row in whole)


def test_an_unreadable_photo_is_left_out_with_its_reason_and_not_tried_again(photos, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    photos.paths[3] = str(tmp_path / "broken.jpg")
    made = features(photos, tmp_path, Forward())
    for _ in range(2):
        assert [list(found) for found in made.read([[0, 3], [3, 4]])] == [[0], [4]]
    assert list(made.unreadable) == [3] and "<html>" in made.unreadable[3]
    assert made._decoder.decoded_rows.count(3) == 1
    (views,) = made.fresh_views([[2, 3]], FreshViews(AUGMENTATION, (0, 1)))
    assert list(views) == [2]


def test_fresh_views_differ_by_photo_and_epoch_only(photos, tmp_path):
    made = features(photos, tmp_path, Forward())

    def views(rows, epoch):
        (found,) = made.fresh_views([rows], FreshViews(AUGMENTATION, (0, epoch)))
        return {row: pixels.tobytes() for row, pixels in found.items()}

    assert views([0, 1, 2], 1) == views([2, 0, 1], 1)
    assert not set(views([0, 1, 2], 1).values()) & set(views([0, 1, 2], 2).values())
