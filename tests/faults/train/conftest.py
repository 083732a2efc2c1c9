"""Training runs that are killed, and what they must give."""

import numpy as np
import pytest

EPOCHS = 3
TRAIN = (
    *("--epochs", str(EPOCHS), "--image-size", "32", "--precision", "float32", "--dimension", "32"),
    *("--top", "64", "--batch-size", "16", "--learning-rate", "1e-4"),
)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def train(start, scratch):
    """Starts a training run that ends with the test."""
    return lambda out, *flags, **options: start("train", out, *TRAIN, "--scratch", scratch, *flags, **options)


def weights(out, epoch=EPOCHS):
    """The trained weights, as one vector, in the checkpoint of `epoch`."""
    with np.load(out / f"checkpoints/epoch-{epoch:04d}.npz") as arrays:
        return np.concatenate([arrays[name].ravel() for name in arrays.files if name.startswith("weight/")])


def finished(job):
    status, result = job.end()
    assert status == 0, job.said()
    return result


@pytest.fixture(scope="session")
def undisturbed(scratch, start_once, tmp_path_factory):
    """What a run gives that nothing disturbs: its result, and its weights before the first step and after the last."""
    still, whole = (tmp_path_factory.mktemp(name) / "run" for name in ("still", "whole"))
    flags = (*TRAIN, "--scratch", scratch)
    finished(start_once("train", still, *flags, "--learning-rate", "0", "--epochs", "1"))
    result = finished(start_once("train", whole, *flags))
    return result, weights(still, 1), weights(whole)


@pytest.fixture
def assert_same(undisturbed):
    """Asserts that a run ended as the undisturbed one did."""
    expected, before, after = undisturbed

    def check(result, out):
        assert (result["epochs"], result["best_epoch"]) == (EPOCHS, expected["best_epoch"])
        for name in ("map_before", "map_fitted", "map_after"):
            assert result[name] == pytest.approx(expected[name], abs=1e-3)
        difference = np.linalg.norm(weights(out) - after) / np.linalg.norm(after - before)
        assert difference <= 1e-3
        assert (out / "history.csv").read_text().count("\n") == EPOCHS + 1
        assert not list(out.glob("checkpoints/*.tmp"))

    return check
