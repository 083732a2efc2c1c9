"""Random variants of a photo, and photos decoded ahead in their order."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dim.errors import JobFailed
from dim.train.photos import Augmentation, Photos, fetched_ahead

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def variant(augmentation, seed):
    return augmentation.apply(PIXELS, np.random.default_rng(seed))


def test_no_augmentation_is_none():
    np.testing.assert_array_equal(variant(Augmentation(0, 0), 1), PIXELS)


def test_variants_keep_the_shape_and_depend_on_the_generator_only():
    augmentation = Augmentation(rotation=20, crop=0.3)
    assert variant(augmentation, 1).shape == PIXELS.shape
    np.testing.assert_array_equal(variant(augmentation, 1), variant(augmentation, 1))
    assert (variant(augmentation, 1) != variant(augmentation, 2)).any()


def test_a_crop_is_a_part_of_the_photo_brought_back_to_its_size():
    bright = np.zeros((80, 80, 3), np.uint8)
    bright[30:50, 30:50] = 255
    shares = [Augmentation(0, 0.5).apply(bright, np.random.default_rng(seed)).mean() / 255 for seed in range(20)]
    assert min(shares) >= 20 * 20 / 80**2 * 0.95  # the middle is in every crop, and magnified
    assert max(shares) > 20 * 20 / 80**2 * 1.5


def test_photos_come_decoded_in_order_with_the_unreadable_marked(demo, tmp_path):
    paths = sorted(map(str, demo.glob("*/0[0-2].jpg")))[:7]
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    paths[3] = str(tmp_path / "broken.jpg")
    names = np.array([str(row) for row in range(7)], dtype=object)
    photos = Photos(names, names, names, paths, [None] * 7, paths, 48, "squash")
    with ThreadPoolExecutor(2) as pool:
        windows = list(fetched_ahead([[0, 1, 2], [3, 4, 5], [6]], photos.decode, pool))
    assert [list(window) for window in windows] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [row for window in windows for row, pixels in window.items() if pixels is None] == [3]
    np.testing.assert_array_equal(windows[1][5], photos.decode(5))


def test_a_photo_that_is_stuck_ends_the_run(monkeypatch):
    monkeypatch.setattr("dim.train.photos.STUCK_SECONDS", 0.2)
    free = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(JobFailed, match=r"row 8 of the manifest took longer than 0 s.*take them out"):
            list(fetched_ahead([[7]], lambda _: free.wait(), pool))
        free.set()
