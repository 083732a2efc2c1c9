"""A photo that can no longer be read in the midst of an epoch ends the run, which names it and says why."""

import numpy as np
import pytest

from dim.errors import JobFailed
from dim.train.batches import ReplicaBatch
from dim.train.feature_cache import FeatureCache
from dim.train.features import Features
from dim.train.gradient_descent import Fitting
from dim.train.training_set import TrainingPhotos


class Gone:
    """Decodes all photos but those of row 2."""

    def decoded(self, rows, *_):
        for row in rows:
            yield "no such file" if row == 2 else np.zeros((4, 4, 3), np.uint8)


def test_a_photo_that_was_mined_and_is_gone_is_named_with_the_reason(tmp_path):
    names = np.array(["a", "b", "c"], dtype=object)
    photos = TrainingPhotos(
        names, names, names, ["a.jpg", "b.jpg", "c.jpg"], [None] * 3, ["aa", "bb", "cc"], 4, "squash"
    )
    fitting = Fitting.__new__(Fitting)
    cache = FeatureCache(str(tmp_path), "trunk", 10**6)
    fitting._photos, fitting._features = photos, Features(photos, Gone(), cache, None, batch_size=2, threads=1)
    (found,) = fitting._features.read([[0, 1, 2]])
    share = ReplicaBatch(np.arange(3), np.array([[0], [1], [2]]))
    said = "photo 'c' was readable when it was mined and no longer is: no such file; repair 'c.jpg' and run the same"
    with pytest.raises(JobFailed, match=said):
        [fitting._readable(found, row) for row in share.rows.tolist()]
