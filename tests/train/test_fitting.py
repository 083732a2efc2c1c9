"""A photo that can no longer be read in the midst of an epoch ends the run, which names it and says why."""

import numpy as np
import pytest

from dim.errors import JobFailed
from dim.train.augmentation import TrainingPhotos
from dim.train.batches import Share
from dim.train.feature_cache import FeatureCache
from dim.train.features import Trunk
from dim.train.fit import Fitting


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
    fitting._photos, fitting._trunk = photos, Trunk(photos, Gone(), cache, None, batch_size=2, threads=1)
    (found,) = fitting._trunk.read([[0, 1, 2]])
    share = Share(np.arange(3), np.array([[0], [1], [2]]))
    said = "photo 'c' was readable when it was mined and no longer is: no such file; mend 'c.jpg' and run the same"
    with pytest.raises(JobFailed, match=said):
        [fitting._readable(found, row) for row in share.rows.tolist()]
