"""A batch that memory doesn't hold is halved until it does, and what follows is no larger."""

import numpy as np
import pytest

from dim.extract import pipeline
from dim.extract.embedder import Embedder


class Small:
    """A network on a device that holds `most` images; a descriptor is the first pixel."""

    def __init__(self, most):
        self.most, self.sizes = most, []

    def __call__(self, batch):
        import tensorflow as tf

        if len(batch) > self.most:
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
        self.sizes.append(len(batch))
        return tf.constant(batch[:, 0, 0, :1], tf.float32)


@pytest.fixture
def embedder():
    def of(most, batch_size):
        made = Embedder.__new__(Embedder)
        made._forward, made._batch_size, made._whitening, made.dimension = Small(most), batch_size, None, 1
        return made

    return of


def test_batches_shrink_to_what_fits_and_stay_there(embedder):
    small = embedder(most=6, batch_size=32)
    images = [np.full((2, 2, 3), number, np.uint8) for number in range(40)]
    assert small.embed(images)[:, 0].tolist() == list(range(40))
    assert small._batch_size == 4
    del small._forward.sizes[:]
    small.embed(images)
    assert small._forward.sizes == [4] * 10


def test_one_image_that_does_not_fit_is_an_error(embedder):
    import tensorflow as tf

    with pytest.raises(tf.errors.ResourceExhaustedError):
        embedder(most=0, batch_size=4).embed([np.zeros((2, 2, 3), np.uint8)])


@pytest.mark.parametrize(("gpus", "asked", "expected"), [(0, None, 32), (1, None, 256), (1, 8, 8)])
def test_a_gpu_starts_with_more(monkeypatch, gpus, asked, expected):
    resources = {"CPU": 8.0} | ({"GPU": float(gpus)} if gpus else {})
    monkeypatch.setattr(pipeline.ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(pipeline.ray, "nodes", lambda: [{"Alive": True, "Resources": resources}])
    assert pipeline.resources(None, None, asked).batch_size == expected
