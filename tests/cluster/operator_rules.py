"""What KubeRay's operator refuses beside its schemas, and what a namespace of the standard "restricted" refuses.

The first are the rules of ray-operator/controllers/ray/utils/validation.go (KubeRay, Apache License 2.0) for the fields
that cluster/kubernetes uses, written anew; the second are those of Kubernetes' Pod Security Standards.
"""

import re

LONGEST_CLUSTER, LONGEST_JOB = 63, 47  # letters of a name
RAY_WITH_TOKENS = (2, 52, 0)


def refused(document):
    """Why KubeRay's operator would refuse `document`, a list of sentences; empty where it takes it."""
    kind, spec = document["kind"], document["spec"]
    if kind == "RayCronJob":
        return list(_schedule(spec["schedule"])) + list(_job(spec["jobTemplate"]))
    if kind == "RayJob":
        name = document["metadata"].get("name", document["metadata"].get("generateName", "") + "00000")
        return list(_name(name, LONGEST_JOB)) + list(_job(spec))
    metadata = document["metadata"]
    named = list(_name(metadata["name"], LONGEST_CLUSTER))
    return named + list(_cluster(spec)) + list(_fault_tolerance(spec, metadata.get("annotations", {})))


def _name(name, longest):
    if len(name) > longest:
        yield f"the name {name!r} has more than {longest} letters"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"the name {name!r} is no DNS-1035 label"


def _schedule(schedule):
    if len(schedule.split()) != 5:
        yield f"the schedule {schedule!r} has not five fields"


def _job(spec):
    selector = spec.get("clusterSelector", {})
    if not selector and "rayClusterSpec" not in spec:
        yield "neither rayClusterSpec nor clusterSelector"
    if selector and not selector.get("ray.io/cluster"):
        yield "clusterSelector without ray.io/cluster"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    if spec.get("backoffLimit", 0) > 0 and (selector or spec.get("submissionMode") == "InteractiveMode"):
        yield "backoffLimit with clusterSelector or InteractiveMode"
    if spec.get("suspend") and (selector or not spec.get("shutdownAfterJobFinishes")):
        yield "suspend with clusterSelector or without shutdownAfterJobFinishes"
    if selector and spec.get("submissionMode") == "SidecarMode":
        yield "clusterSelector in SidecarMode"
    if "rayClusterSpec" in spec:
        yield from _cluster(spec["rayClusterSpec"])


def _cluster(spec):
    scaled = spec.get("enableInTreeAutoscaling")
    for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])):
        name, parameters = group.get("groupName", "head"), group.get("rayStartParams", {})
        if group.get("resources") and parameters.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
            yield f"{name}: resources both in rayStartParams and beside it"
        if "labels" in parameters:
            yield f"{name}: labels in rayStartParams"
        if scaled and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{name}: a restartPolicy other than Never under autoscaler v2"
        if scaled and group.get("suspend"):
            yield f"{name}: suspend under the autoscaler"
        variables = {variable["name"] for variable in group["template"]["spec"]["containers"][0].get("env", [])}
        if name == "head" and "RAY_enable_autoscaler_v2" in variables:
            yield "RAY_enable_autoscaler_v2 beside autoscalerOptions.version"
        if name == "head" and variables & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}:
            yield "Redis in the environment, not in gcsFaultToleranceOptions"
        if name == "head" and parameters.keys() & {"redis-password", "redis-username"}:
            yield "Redis in rayStartParams, not in gcsFaultToleranceOptions"
    version = tuple(map(int, spec.get("rayVersion", "0").split(".")))
    if spec.get("authOptions", {}).get("mode") == "token" and version < RAY_WITH_TOKENS:
        yield "a token without a rayVersion of 2.52 or later"


def _fault_tolerance(spec, annotations):
    for name in ("ray.io/ft-enabled", "ray.io/external-storage-namespace"):
        if annotations.get(name) and "gcsFaultToleranceOptions" in spec:
            yield f"{name} beside gcsFaultToleranceOptions"


def unrestricted(pod, containers):
    """Which rules of the standard "restricted" the pod of this spec, with these `containers`, breaks."""
    of_pod = pod.get("securityContext", {})
    for container in containers:
        own = of_pod | container.get("securityContext", {})
        name = container.get("name", "autoscaler")
        if not own.get("runAsNonRoot") or own.get("runAsUser") == 0:
            yield f"{name} may run as root"
        if own.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name} has no seccomp profile"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{name} may gain privileges"
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{name} keeps capabilities"
