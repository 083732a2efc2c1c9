"""Which nodes Ray's autoscaler starts for what jobs ask for, by the shipped files, as its own code reads them."""

import copy
import os
import subprocess
import sys

import pytest
import yaml
from aws_templates import CLUSTER

SPOT, ON_DEMAND, DECODERS = "gpu-spot", "gpu-on-demand", "decoders"
GPU, CPUS = {"CPU": 1, "GPU": 1}, {"CPU": 4}


def aws():
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(yaml.safe_load((CLUSTER / "config.yaml").read_text()))


def kubernetes():
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = yaml.safe_load((CLUSTER / "kubernetes" / "raycluster.yaml").read_text())
    cluster["metadata"]["namespace"] = "default"
    return _derive_autoscaling_config_from_ray_cr(cluster)


def started(read, asked, happened=()):
    """The kind of node that is started for a request, after a node of gpu-spot got each of these statuses."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

    config, monitor = AutoscalingConfig(read, skip_content_hash=True), CloudResourceMonitor()
    for status in happened:
        code = Instance.InstanceStatus.Value(status)
        monitor.notify([InstanceUpdateEvent(instance_id="1", instance_type=SPOT, new_instance_status=code)])
    request = SchedulingRequest(
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_worker_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(asked)]),
        disable_launch_config_check=True,
        cloud_resource_availabilities=monitor.get_resource_availabilities(),
        recoverable_resource_availabilities=monitor.get_recoverable_resource_availabilities(),
    )
    (launch,) = ResourceDemandScheduler(None).schedule(request).to_launch
    return launch.instance_type


@pytest.mark.parametrize("read", [aws, kubernetes])
def test_gpus_are_spots_and_what_needs_none_starts_none(read):
    assert started(read(), GPU) == SPOT
    assert started(read(), CPUS) == DECODERS


def test_where_ec2_refuses_spot_the_priority_is_to_be_changed():
    """Ray 2.60 notes a node that hangs, and not one that is refused. Should this fail, config.yaml can say less."""
    read = aws()
    assert started(read, GPU, ["ALLOCATION_FAILED"]) == SPOT
    changed = copy.deepcopy(read)
    changed["available_node_types"][ON_DEMAND]["priority"] = 20
    assert started(changed, GPU) == ON_DEMAND
    assert started(changed, CPUS) == DECODERS


def test_a_pod_that_finds_no_spot_node_makes_way_after_a_quarter_of_an_hour():
    cluster = yaml.safe_load((CLUSTER / "kubernetes" / "raycluster.yaml").read_text())
    (variable,) = cluster["spec"]["autoscalerOptions"]["env"]
    ask = "from ray.autoscaler.v2.instance_manager.config import InstanceReconcileConfig as c; "
    command = [sys.executable, "-c", ask + "print(c().allocate_status_timeout_s)"]
    environment = os.environ | {variable["name"]: variable["value"]}
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "900\n"
    assert started(kubernetes(), GPU, ["ALLOCATION_TIMEOUT"]) == ON_DEMAND
