"""What train.py does where a flag is not given."""

import pytest

from dim.train.config import TrainConfig


@pytest.mark.parametrize(("photos", "top"), [(2, 6), (150, 450), (533, 1599), (534, 1600), (10**7, 1600)])
def test_an_epoch_has_three_triplets_a_photo_up_to_a_limit(photos, top):
    assert TrainConfig().mining(photos).top == top
    assert TrainConfig(top=7).mining(photos).top == 7
