"""Each random change of a photo against what a few lines of NumPy or the mathematics say of it."""

import colorsys
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

from dim.errors import UserError
from dim.train.augmentation import (
    PRESET,
    Augmentation,
    CachedViews,
    FreshViews,
    augmentation_of,
    hue_shifted,
    perspective_from,
)
from dim.train.config import TrainConfig
from dim.train.training_set import TrainingPhotos

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
LARGE = {"rotation": 90.0, "aspect": 2.0, "blur": 3.0, "hue": 0.5, "perspective": 0.4}
EACH = [Augmentation(**{field.name: LARGE.get(field.name, 0.8)}) for field in fields(Augmentation)]
# A crop of the whole area has no room for another shape.
CHANGING = [Augmentation(crop=0.5, aspect=2.0) if made.aspect > 1 else made for made in EACH]


class Drawn:
    """A generator whose draws are the given shares of their ranges, in turn, then the middles."""

    def __init__(self, *shares):
        self._shares = list(shares)

    def uniform(self, low=0.0, high=1.0, size=None):
        shares = [self._shares.pop(0) if self._shares else 0.5 for _ in range(int(np.prod(size or 1)))]
        drawn = low + (high - low) * np.array(shares)
        return drawn.reshape(size) if size else float(drawn[0])


def view(augmentation, seed, pixels=PIXELS):
    return augmentation.apply(pixels, np.random.default_rng(seed))


def sampled(pixels, x, y):
    """Linear interpolation of `pixels` at a point; pixel (i, j) has its middle at x = j + ½, y = i + ½."""
    x, y = x - 0.5, y - 0.5
    column, row = int(np.floor(x)), int(np.floor(y))
    found = 0.0
    for i, weight_i in ((row, row + 1 - y), (row + 1, y - row)):
        for j, weight_j in ((column, column + 1 - x), (column + 1, x - column)):
            inside = np.clip((i, j), 0, (pixels.shape[0] - 1, pixels.shape[1] - 1))
            found = found + weight_i * weight_j * pixels[tuple(inside)].astype(float)
    return found


def warped(pixels, into):
    """The view whose point (x, y) is the photo's point into(x, y); black outside of the photo."""
    height, width = pixels.shape[:2]
    found = np.zeros(pixels.shape)
    for i in range(height):
        for j in range(width):
            x, y = into(j + 0.5, i + 0.5)
            if 0 <= x < width and 0 <= y < height:
                found[i, j] = sampled(pixels, x, y)
    return found


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[:1, :1], PIXELS[:3, :2], PIXELS.transpose(1, 0, 2).copy()])
@pytest.mark.parametrize("augmentation", [Augmentation(), PRESET, *EACH])
def test_a_view_has_the_shape_and_type_of_the_photo(augmentation, pixels):
    found = view(augmentation, 1, pixels)
    assert (found.shape, found.dtype) == (pixels.shape, np.uint8)


def test_no_augmentation_is_none():
    np.testing.assert_array_equal(view(Augmentation(), 1), PIXELS)


@pytest.mark.parametrize("augmentation", [PRESET, *CHANGING])
def test_views_depend_on_the_generator_only(augmentation):
    np.testing.assert_array_equal(view(augmentation, 1), view(augmentation, 1))
    assert (view(augmentation, 1) != view(augmentation, 2)).any()


def test_a_rotation_turns_about_the_middle():
    found = Augmentation(rotation=30).apply(PIXELS, Drawn(1.0))
    cos, sin = np.cos(np.radians(30)), np.sin(np.radians(30))

    def turned(x, y):
        return cos * (x - 30) - sin * (y - 20) + 30, sin * (x - 30) + cos * (y - 20) + 20

    np.testing.assert_allclose(found, warped(PIXELS, turned), atol=1)


@pytest.mark.parametrize("left", [0.0, 0.3, 1.0])
def test_a_crop_is_a_part_of_the_photo_brought_back_to_its_size(left):
    found = Augmentation(crop=0.75).apply(PIXELS, Drawn(0.5, 0.0, 0.5, left, 1.0))  # a quarter: half of each side
    np.testing.assert_allclose(found, warped(PIXELS, lambda x, y: (30 * left + x / 2, 20 + y / 2)), atol=1)


def test_area_and_aspect_of_crops_stay_within_their_bounds_and_reach_them():
    """The photo shows its own coordinates, so that a view tells where it is from."""
    y, x = np.mgrid[:200, :200]
    pixels = np.stack([x, y, x], axis=-1).astype(np.uint8)
    augmentation = Augmentation(crop=0.8, aspect=1.5)
    areas, aspects = [], []
    for seed in range(300):
        found = view(augmentation, seed, pixels).astype(float)
        sides = [(found[..., 0].max() - found[..., 0].min()) / 199, (found[..., 1].max() - found[..., 1].min()) / 199]
        areas.append(sides[0] * sides[1])
        aspects.append(sides[0] / sides[1])
    assert 0.18 < min(areas) < 0.23 and 0.95 < max(areas) <= 1
    assert 0.65 < min(aspects) < 0.7 and 1.44 < max(aspects) < 1.54
    assert np.mean(areas) == pytest.approx(0.6, abs=0.05)  # uniform in the area
    assert np.mean(np.log(aspects)) == pytest.approx(0, abs=0.05)


def test_a_projective_transformation_meets_its_four_points():
    generator = np.random.default_rng(4)
    for _ in range(20):
        one, two = np.array([(0, 0), (9, 0), (9, 7), (0, 7)]) + generator.uniform(0, 2, (2, 4, 2))
        a, b, c, d, e, f, g, h = perspective_from(one, two)
        for (x, y), expected in zip(one, two, strict=True):
            scale = g * x + h * y + 1
            np.testing.assert_allclose(((a * x + b * y + c) / scale, (d * x + e * y + f) / scale), expected)


def test_a_perspective_brings_a_quadrangle_of_the_photo_to_the_corners():
    # The left corners move inwards by the whole share of both sides, the right ones not at all.
    found = Augmentation(perspective=0.2).apply(PIXELS, Drawn(0.5, 0, 0.5, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1))
    a, b, c, d, e, f, g, h = perspective_from(
        np.array([(0, 0), (60, 0), (60, 40), (0, 40)]), np.array([(12, 8), (60, 0), (60, 40), (12, 32)])
    )

    def projected(x, y):
        scale = g * x + h * y + 1
        return (a * x + b * y + c) / scale, (d * x + e * y + f) / scale

    np.testing.assert_allclose(found, warped(PIXELS, projected), atol=1)
    assert (found.sum(axis=2) > 0).all()  # no part of the view lies outside of the photo


GREY = PIXELS @ (0.299, 0.587, 0.114)
OTHERS = {
    "brightness": np.zeros((1, 1, 3)),
    "contrast": np.full((1, 1, 3), GREY.mean()),
    "saturation": GREY[..., None],
}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", OTHERS)
def test_light_and_colour_move_between_the_photo_and_another(name, share):
    shares = {"brightness": (share,), "contrast": (0.5, share), "saturation": (0.5, 0.5, share)}[name]
    geometry = [0.5] * 13  # rotation, area, aspect, place and corners
    found = Augmentation(**{name: 0.4}).apply(PIXELS, Drawn(*geometry, *shares))
    factor = 0.6 + 0.8 * share
    expected = np.clip(OTHERS[name] + factor * (PIXELS - OTHERS[name]), 0, 255)
    np.testing.assert_allclose(found, expected, atol=2)


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.25])
def test_a_shift_of_the_hue_is_that_of_colorsys(shift):
    found = np.asarray(hue_shifted(Image.fromarray(PIXELS), shift))

    def shifted(red, green, blue):
        hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
        return [255 * part for part in colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)]

    expected = np.array([[shifted(*pixel) for pixel in row] for row in PIXELS.tolist()])
    # Pillow's circle has 256 hues; from one to the next, a channel changes by up to 6.
    np.testing.assert_allclose(found, expected, atol=12)
    assert np.abs(found - expected).mean() < 2


def test_a_blur_spreads_a_point_as_a_gaussian_does():
    point = np.zeros((31, 31, 3), np.uint8)
    point[15, 15] = 255
    found = Augmentation(blur=4.0).apply(point, Drawn(*[0.5] * 17, 0.5)).astype(float)[..., 0]
    y, x = np.mgrid[-15:16, -15:16]
    expected = np.exp(-(x**2 + y**2) / (2 * 2.0**2))
    np.testing.assert_allclose(found, 255 * expected / expected.sum(), atol=1.5)
    edge = np.zeros((31, 31, 3), np.uint8)
    edge[:, 15:] = 255
    variances = [view(Augmentation(blur=2.0), seed, edge).astype(float).var() for seed in range(40)]
    assert min(variances) < 0.95 * edge.var() and max(variances) > 0.99 * edge.var()  # up to the radius, and down to 0


def test_a_flag_wins_over_the_preset_and_nothing_is_changed_unasked():
    assert augmentation_of(TrainConfig()) is None
    assert augmentation_of(TrainConfig(rotation=0.0, aspect=1.0, variants=3)) is None
    assert augmentation_of(TrainConfig(rotation=5.0)) == Augmentation(rotation=5.0)
    assert augmentation_of(TrainConfig(augment=True)) == PRESET
    assert augmentation_of(TrainConfig(augment=True, hue=0.0, crop=0.1)) == replace(PRESET, hue=0.0, crop=0.1)
    for field in fields(Augmentation):  # the preset has all of them, within the bounds of the flags
        assert getattr(PRESET, field.name) != field.default
    TrainConfig(**{field.name: getattr(PRESET, field.name) for field in fields(Augmentation)})


@pytest.mark.parametrize("wrong", [{"aspect": 0.5}, {"crop": 1.0}, {"hue": 0.6}, {"blur": -1.0}, {"rotation": 181.0}])
def test_a_change_out_of_range_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=f"--{name} must be .*, not {wrong[name]}"):
        TrainConfig(**wrong)


@pytest.mark.parametrize("name", [field.name for field in fields(Augmentation)])
def test_stored_views_have_another_key_for_each_setting(name):
    photo = "ab" * 16
    keys = {CachedViews(made, 1, 0).key(photo, 0) for made in (PRESET, replace(PRESET, **{name: 0.015625}))}
    assert len(keys) == 2


def test_a_photo_has_the_same_view_wherever_it_is_made():
    views = CachedViews(PRESET, 4, seed=3)
    assert len({views.key("ab" * 16, epoch) for epoch in range(40)}) == 4
    key = views.key("ab" * 16, 5)
    np.testing.assert_array_equal(views.apply(PIXELS, key), CachedViews(PRESET, 4, 3).apply(PIXELS, key))
    fresh = [FreshViews(PRESET, (3, epoch)).apply(PIXELS, "photo") for epoch in (1, 1, 2)]
    np.testing.assert_array_equal(fresh[0], fresh[1])
    assert (fresh[0] != fresh[2]).any()


def test_a_run_uses_the_rows_of_a_split_and_mines_those_of_train_that_have_a_label():
    splits = np.array(["train", None, "train", "val", "test", "train"], dtype=object)
    labels = np.array(["a", "a", None, None, "b", "b"], dtype=object)
    photos = TrainingPhotos(np.arange(6), labels, splits, [], [], [], 32, "squash")
    assert photos.used().tolist() == [0, 2, 3, 4, 5]
    assert photos.mined().tolist() == [0, 5]
