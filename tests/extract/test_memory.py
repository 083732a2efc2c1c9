"""A batch that does not fit into memory is halved until it does; later batches are no larger."""

import numpy as np
import pytest
import ray

from dim.extract.embedder import Embedder, Forward
from dim.extract.resources import resources


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
        made._forward, made._whitening, made.dimension = Forward(Small(most), batch_size, streams=1), None, 1
        return made

    return of


def test_batches_shrink_to_what_fits_and_stay_there(embedder):
    small = embedder(most=6, batch_size=32)
    images = [np.full((2, 2, 3), number, np.uint8) for number in range(40)]
    assert small.embed(images)[:, 0].tolist() == list(range(40))
    sizes = small._forward._function.sizes
    del sizes[:]
    small.embed(images)
    assert sizes == [4] * 10


def test_one_image_that_does_not_fit_is_an_error(embedder):
    import tensorflow as tf

    with pytest.raises(tf.errors.ResourceExhaustedError):
        embedder(most=0, batch_size=4).embed([np.zeros((2, 2, 3), np.uint8)])


@pytest.mark.parametrize(
    ("gpus", "asked", "side", "expected"),
    [(0, None, 224, 8), (0, None, 1024, 1), (0, None, 32, 32), (1, None, 224, 256), (1, 8, 224, 8), (0, 8, 1024, 8)],
)
def test_a_gpu_starts_with_more_and_a_cpu_with_what_keeps_it_busy(monkeypatch, gpus, asked, side, expected):
    node = {"CPU": 8.0} | ({"GPU": float(gpus)} if gpus else {})
    monkeypatch.setattr(ray, "cluster_resources", lambda: node)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node}])
    assert resources(None, None, asked, side, images=10**6).batch_size == expected


@pytest.mark.parametrize("streams", [1, 2, 5])
def test_passes_at_once_give_what_one_after_the_other_give(streams):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (2, width, 3), np.uint8) for width in random.choice([2, 3, 4], 50)]
    network = Small(most=50)
    parts, order = Forward(network, 4, streams)(images)
    assert sorted(order) == list(range(50)) and max(network.sizes) <= 4
    found = np.concatenate(parts)[np.argsort(order), 0]
    assert found.tolist() == [image[0, 0, 0] for image in images]
