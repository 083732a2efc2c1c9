"""Extraction under `kill -9`: the same command again ends with the rows of an undisturbed run, none lost, none twice.

`pytest tests/faults --all-kills` runs the whole matrix, process × moment.
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
FAST = [("machine", "middle")]
ALL = {"images": 48, "ok": 48, "errors": 0}


@pytest.mark.parametrize("kill", list(itertools.product(VICTIMS, MOMENTS)), ids="-".join)
def test_killed(request, start, photos, assert_whole, kill):
    if kill not in FAST and not request.config.getoption("--all-kills", default=False):
        pytest.skip("needs --all-kills")
    victim, moment = kill
    out = request.getfixturevalue("tmp_path") / "out"
    job = start(photos, out, decode_seconds=0.4, write_seconds=0.5)
    assert job.until(lambda: MOMENTS[moment](job) and job.pids(victim)), job.said()
    assert job.kill(victim)
    status, result = job.end()
    if victim not in CARRIED_ON:
        assert status != 0
        finished = job.shards()
        again = start(photos, out)
        status, result = again.end()
        assert again.shards().items() >= finished.items(), "a finished shard was written again"
        assert result["computed"] == 48 - 8 * len(finished)
    assert status == 0, job.said()
    assert result.items() >= ALL.items()
    assert_whole(out)
