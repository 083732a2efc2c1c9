"""What train.py does where a flag is not given."""

import pytest

from dim.app.cli import parse
from dim.train.config import PRESETS, TrainConfig


@pytest.mark.parametrize(("photos", "top"), [(2, 4), (150, 300), (799, 1598), (801, 1600), (10**7, 1600)])
def test_an_epoch_has_two_triplets_a_photo_up_to_a_limit(photos, top):
    assert TrainConfig().mining(photos).top == top
    assert TrainConfig(top=7).mining(photos).top == 7


@pytest.mark.parametrize("preset", PRESETS)
def test_each_value_of_a_preset_is_one_that_the_flags_allow(preset):
    found, _ = parse(TrainConfig, "", ["--preset", preset])
    assert found == TrainConfig(preset=preset, **PRESETS[preset])
