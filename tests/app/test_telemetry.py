"""The metrics of a job reach Prometheus: the tests ask Ray's exporter as Prometheus does."""

import json
import re
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

from dim import train
from dim.app import progress
from dim.app.progress import Progress
from dim.train import job as task


def exported(ray):
    address = ray.nodes()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{address['MetricsExportPort']}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return [line for line in lines if line.startswith("ray_dim_") and f'JobId="{job_id(ray)}"' in line]


def job_id(ray):
    return ray.get_runtime_context().get_job_id()


def tags(line):
    return dict(re.findall(r'(\w+)="([^"]*)"', line))


def test_photos_errors_and_what_is_left_are_exported_for_each_job_and_stage(ray_session, monkeypatch):
    import ray

    monkeypatch.setattr(sys, "argv", ["jobs/a_test.py"])
    progress = Progress("embedding", 10, errors=True)
    progress.add(3, errors=1)
    progress.add(2)
    for epoch in (1, 2):
        Progress("fitting", 7, "triplets", epoch=epoch).add(4)
    end = time.monotonic() + 60
    while len(found := [line for line in exported(ray) if tags(line)["program"] == "a_test"]) < 5:
        assert time.monotonic() < end, found
        time.sleep(1)
    values = {(line.partition("{")[0], tags(line)["stage"]): float(line.rpartition(" ")[2]) for line in found}
    assert len(found) == len(values) == 5  # an epoch is no series of its own
    assert values == {
        ("ray_dim_done_total", "embedding"): 5,
        ("ray_dim_errors_total", "embedding"): 1,
        ("ray_dim_waiting", "embedding"): 5,
        ("ray_dim_done_total", "fitting"): 8,
        ("ray_dim_waiting", "fitting"): 3,
    }


def test_the_dashboard_tells_jobs_and_stages_apart():
    dashboard = json.loads((Path(__file__).resolve().parents[2] / "cluster" / "grafana.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"] if "ray_dim" in target["expr"]]
    assert targets
    for target in targets:
        assert re.search(r"by \((.*?)\)", target["expr"])[1].split(", ") == list(progress.TAGS)
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) == set(progress.TAGS)


def test_a_training_worker_counts_for_its_job(monkeypatch):
    told = []
    ray = SimpleNamespace(
        is_initialized=lambda: True, get_runtime_context=lambda: SimpleNamespace(get_job_id=lambda: "02000000")
    )
    instrument = SimpleNamespace(inc=lambda _, tags: told.append(tags), set=lambda _, tags: told.append(tags))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(progress, "_instruments", lambda: (instrument,) * 3)
    monkeypatch.setattr(sys, "argv", ["default_worker.py"])
    loop = SimpleNamespace(run=lambda job: Progress("fitting", 9, epoch=job.epoch).add())
    monkeypatch.setitem(sys.modules, "dim.train.loop", loop)
    monkeypatch.setattr(train, "loop", loop, raising=False)
    task.train_worker({"job": SimpleNamespace(claims=(), epoch=3)})
    assert told == [{"program": "train", "JobId": "02000000", "stage": "fitting"}] * 2
