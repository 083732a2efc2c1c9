"""Extraction under `kill -9`: the same command again ends with the rows of an undisturbed run, none lost, none twice.

`pytest tests/faults -m slow` runs the whole matrix, process × moment.
"""

import itertools

import pytest

# Each process, and the whole machine.
VICTIMS = ("driver", "raylet", "gcs", "decoder", "network", "machine")
CARRIED_ON = ("decoder", "network")  # whose death Ray itself makes good
MOMENTS = {
    "start": lambda job: (job.out / "run.json").exists(),
    "middle": lambda job: len(job.shards()) >= 2,
    "write": lambda job: job.shards() and list(job.out.glob("part-*.tmp")),
    "end": lambda job: len(job.shards()) == 6,
}
KILLS = [pytest.param(kill, id="-".join(kill)) for kill in itertools.product(VICTIMS, MOMENTS)]
ALL = {"images": 48, "ok": 48, "errors": 0}


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kill", KILLS)
def test_killed(extract, photos, assert_whole, out, kill):
    victim, moment = kill
    job = extract(photos, out, decode_seconds=0.4, write_seconds=0.5)
    if job.until(lambda: MOMENTS[moment](job) and job.pids(victim)):
        assert job.kill(victim)
    else:  # the network has no more to do while the last shards are written, and may be gone
        assert kill == ("network", "end"), job.said()
    status, result = job.end()
    if victim not in CARRIED_ON:
        assert status != 0 or moment == "end"  # all that remains then may need none of Ray's processes
        finished = job.shards()
        again = extract(photos, out)
        status, result = again.end()
        assert again.shards().items() >= finished.items(), "a finished shard was written again"
        assert result["computed"] == 48 - 8 * len(finished)
    assert status == 0, job.said()
    assert result.items() >= ALL.items()
    assert_whole(out)
