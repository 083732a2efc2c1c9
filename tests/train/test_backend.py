"""How training workers find each other."""

import json
import os
import subprocess
import sys

from dim.train.backend import MultiWorkerTensorFlow

PROGRAM = """
import sys
import dim.train.job
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
assert "tensorflow" not in sys.modules
"""


class Group:
    """Two workers in this process; what each of them was told."""

    def __init__(self):
        self.told = {}

    def execute(self, function):
        return [function(), function()]

    def execute_single_async(self, rank, function, *arguments):
        function(*arguments)
        self.told[rank] = json.loads(os.environ["TF_CONFIG"])


def test_each_worker_knows_itself_and_the_others(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "")
    monkeypatch.setattr("dim.train.backend.ray.get", list)
    backend, group = MultiWorkerTensorFlow(), Group()
    backend.backend_cls().on_start(group, backend)
    (addresses,) = {tuple(told["cluster"]["worker"]) for told in group.told.values()}
    assert len(set(addresses)) == 2 and all(address.rpartition(":")[2].isdigit() for address in addresses)
    assert [group.told[rank]["task"] for rank in (0, 1)] == [{"type": "worker", "index": rank} for rank in (0, 1)]


def test_the_driver_and_ray_trains_controller_load_no_tensorflow():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
