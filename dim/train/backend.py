"""How the training workers find each other: Ray Train's part of `tf.distribute.MultiWorkerMirroredStrategy`.

`ray.train.tensorflow` does the same. But its import loads TensorFlow, which only the workers need, in the driver and in
Ray Train's controller, too: seconds and hundreds of megabytes for each of them.
"""

import json
import os
from dataclasses import dataclass

import ray
from ray._common.network_utils import build_address
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig


@dataclass
class MultiWorkerTensorFlow(BackendConfig):  # type: ignore[misc]
    """Tells each worker the addresses of all workers, in TF_CONFIG, before it trains."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray Train calls when workers start."""
        return _Backend


class _Backend(Backend):  # type: ignore[misc]
    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:  # noqa: ARG002
        addresses = worker_group.execute(_address)
        calls = [
            worker_group.execute_single_async(rank, _set_tf_config, addresses, rank) for rank in range(len(addresses))
        ]
        ray.get(calls)


def _address() -> str:
    """An address of this worker, with a free port."""
    address: str = build_address(*get_address_and_port())
    return address


def _set_tf_config(addresses: list[str], rank: int) -> None:
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
