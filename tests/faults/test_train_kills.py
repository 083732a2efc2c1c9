"""Training under `kill -9`: it goes on from the last whole checkpoint, with the updates of an undisturbed run.

`pytest tests/faults --all-kills` runs the whole matrix, process × moment.
"""

import itertools

import numpy as np
import pytest

EPOCHS = 3
TRAIN = (
    *("--epochs", str(EPOCHS), "--image-size", "32", "--precision", "float32", "--dimension", "32"),
    *("--top", "64", "--batch-size", "16", "--learning-rate", "1e-4"),
)
# Each process, and the whole machine.
VICTIMS = ("driver", "raylet", "controller", "worker", "machine")
CARRIED_ON = "worker"  # whose death Ray Train makes good
MOMENTS = {
    "start": lambda job: (job.out / "run.json").exists(),
    "middle": lambda job: job.epochs() == [1],
    "write": lambda job: job.epochs() == [1] and list(job.out.glob("checkpoints/epoch-0002.*.tmp")),
    "end": lambda job: EPOCHS in job.epochs(),
}
FAST = [("machine", "middle")]
KILLS = [
    pytest.param(kill, id="-".join(kill), marks=() if kill in FAST else pytest.mark.all_kills)
    for kill in itertools.product(VICTIMS, MOMENTS)
]


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


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kill", KILLS)
def test_killed(train, assert_same, out, kill):
    victim, moment = kill
    job = train(out, write_seconds=0.3)
    assert job.until(lambda: MOMENTS[moment](job) and job.pids(victim)), job.said()
    assert job.kill(victim)
    done = job.epochs()
    status, result = job.end()
    if victim != CARRIED_ON:
        assert status != 0
        done = job.epochs()
        job = train(out)
        status, result = job.end()
    assert status == 0, job.said()
    if done:
        assert f"resumed after epoch {done[-1]}" in job.said()
    assert_same(result, out)
