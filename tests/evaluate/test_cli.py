import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from terminal import messages

JOB = Path(__file__).resolve().parents[2] / "jobs" / "evaluate.py"


@pytest.fixture
def run(write_manifest, write_descriptors, tmp_path):
    ids = [f"{number}" for number in range(12)]
    manifest = write_manifest(image_id=ids, label=[str(number % 3) for number in range(12)])
    folder = write_descriptors(ids, np.random.default_rng(0).standard_normal((12, 4)))

    def command(*flags):
        known = ("--manifest", manifest, "--descriptors", folder, "--out", str(tmp_path / "out"))
        return subprocess.run([sys.executable, JOB, *known, *flags], capture_output=True, text=True, check=False)

    return command


def test_the_last_line_is_the_metrics_and_the_terminal_says_how_they_came_about(run, tmp_path):
    done = run("--split", "test")
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last.pop("seconds") > 0
    assert last == json.loads((tmp_path / "out" / "metrics.json").read_text())
    for said in (
        f"labels: map {last['map']:.4f}",
        "12 queries in 12 photos",
        "network vgg16-gem@block5_conv3, photos 224 px squash, caffe, scales 1, precision float32",
        "not whitened",
        "query in the database: no",
    ):
        assert said in done.stderr


def test_a_gate_that_is_not_met_ends_in_status_3_and_still_prints_the_metrics(run, tmp_path):
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps({"protocol": "labels", "map": 1.0}))
    done = run("--baseline", str(baseline), "--max-drop", "0.01")
    assert done.returncode == 3
    assert "gate not met: mAP" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["protocol"] == "labels"


def test_wrong_usage_ends_in_status_2_with_one_line(run, tmp_path):
    done = run("--protocol", "oxford")
    assert done.returncode == 2
    assert messages(done.stderr) == ["error: --protocol oxford needs --ground-truth FILE (query_id, image_id, grade)"]
    assert not (tmp_path / "out").exists()
