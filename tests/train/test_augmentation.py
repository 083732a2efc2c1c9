"""Augmented views of a photo."""

import numpy as np

from dim.train.augmentation import Augmentation
from dim.train.training_set import TrainingPhotos

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def view(augmentation, seed):
    return augmentation.apply(PIXELS, np.random.default_rng(seed))


def test_no_augmentation_is_none():
    np.testing.assert_array_equal(view(Augmentation(0, 0), 1), PIXELS)


def test_views_keep_the_shape_and_depend_on_the_generator_only():
    augmentation = Augmentation(rotation=20, crop=0.3)
    assert view(augmentation, 1).shape == PIXELS.shape
    np.testing.assert_array_equal(view(augmentation, 1), view(augmentation, 1))
    assert (view(augmentation, 1) != view(augmentation, 2)).any()


def test_a_crop_is_a_part_of_the_photo_brought_back_to_its_size():
    bright = np.zeros((80, 80, 3), np.uint8)
    bright[30:50, 30:50] = 255
    shares = [Augmentation(0, 0.5).apply(bright, np.random.default_rng(seed)).mean() / 255 for seed in range(20)]
    assert min(shares) >= 20 * 20 / 80**2 * 0.95  # the middle is in every crop, and magnified
    assert max(shares) > 20 * 20 / 80**2 * 1.5


def test_a_run_uses_the_rows_of_a_split_and_mines_those_of_train_that_have_a_label():
    splits = np.array(["train", None, "train", "val", "test", "train"], dtype=object)
    labels = np.array(["a", "a", None, None, "b", "b"], dtype=object)
    photos = TrainingPhotos(np.arange(6), labels, splits, [], [], [], 32, "squash")
    assert photos.used().tolist() == [0, 2, 3, 4, 5]
    assert photos.mined().tolist() == [0, 5]
