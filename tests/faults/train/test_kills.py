"""Training under `kill -9`: it goes on from the last whole checkpoint, with the updates of an undisturbed run.

`pytest tests/faults -m slow` runs the whole matrix, process × moment.
"""

import itertools

import pytest

EPOCHS = 3  # of conftest's TRAIN
# Each process, and the whole machine.
VICTIMS = ("driver", "raylet", "worker", "machine")
CARRIED_ON = "worker"  # whose death Ray Train makes good
MOMENTS = {
    "start": lambda job: (job.out / "run.json").exists(),
    "middle": lambda job: job.epochs() == [1],
    "write": lambda job: job.epochs() == [1] and list(job.out.glob("checkpoints/epoch-0002.*.tmp")),
    "end": lambda job: EPOCHS in job.epochs(),
}
FAST = [("machine", "middle")]
KILLS = [pytest.param(kill, id="-".join(kill)) for kill in itertools.product(VICTIMS, MOMENTS)]


@pytest.mark.slow
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
        assert status != 0 or moment == "end"  # all that remains then may need none of Ray's processes
        done = job.epochs()
        job = train(out)
        status, result = job.end()
    assert status == 0, job.said()
    if done:
        assert f"resumed after epoch {done[-1]}" in job.said()
    assert_same(result, out)
