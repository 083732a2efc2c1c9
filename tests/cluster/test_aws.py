"""cluster/aws.yaml and cluster/config.yaml against a mocked AWS: what they ask for is granted, node by node."""

import copy
import importlib.metadata
import json
import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")


def cluster_config():
    return yaml.safe_load((CLUSTER / "config.yaml").read_text())


@pytest.fixture(scope="module")
def aws(tmp_path_factory):
    """A mocked AWS account behind an HTTP server, with the stack of cluster/aws.yaml."""
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", cluster_config()["provider"]["region"])
        home = tmp_path_factory.mktemp("home")  # Ray leaves its key pair in ~/.ssh
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text("0" * 64)
        patch.setenv("HOME", str(home))
        patch.chdir(CLUSTER.parent)
        _make_roles(boto3.client("iam"))
        yield
    server.stop()


class _Template(yaml.SafeLoader):
    """Reads a CloudFormation template, `!Ref X` and `!Sub X` as the text X."""


_Template.add_multi_constructor("!", lambda loader, _, node: loader.construct_scalar(node))


def template():
    region = cluster_config()["provider"]["region"]
    text = (CLUSTER / "aws.yaml").read_text().replace("${AWS::Region}", region)
    return yaml.load(text, _Template)["Resources"]


def _make_roles(iam):
    """What CloudFormation would make of the template's roles: moto's own needs a score of packages more."""
    resources = {name: (part["Type"], part["Properties"]) for name, part in template().items()}
    for kind, role in resources.values():
        if kind == "AWS::IAM::Role":
            trust = json.dumps(role["AssumeRolePolicyDocument"])
            iam.create_role(RoleName=role["RoleName"], AssumeRolePolicyDocument=trust)
    for kind, profile in resources.values():
        if kind == "AWS::IAM::InstanceProfile":
            iam.create_instance_profile(InstanceProfileName=profile["InstanceProfileName"])
            (role,) = profile["Roles"]
            iam.add_role_to_instance_profile(
                InstanceProfileName=profile["InstanceProfileName"], RoleName=resources[role][1]["RoleName"]
            )


@pytest.fixture(scope="module")
def config(aws):
    """The configuration as `ray up` completes it."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster_config())
    validate_config(prepared)
    return AWSNodeProvider.bootstrap_config(prepared)


@pytest.fixture(scope="module")
def launched(config):
    """One instance of each node type, as EC2 describes it."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, kind in config["available_node_types"].items():
        provider.create_node(copy.deepcopy(kind["node_config"]), {TAG_RAY_USER_NODE_TYPE: name}, 1)
    found = {}
    for reservation in boto3.client("ec2").describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            found[tags[TAG_RAY_USER_NODE_TYPE]] = instance
    return found


def test_every_node_type_is_launched_as_the_file_says(config, launched):
    assert launched.keys() == cluster_config()["available_node_types"].keys()
    for name, kind in cluster_config()["available_node_types"].items():
        for field in ("InstanceType", "ImageId"):
            assert launched[name][field] == kind["node_config"][field]


def test_the_head_and_the_fallback_are_on_demand_and_the_rest_spot(launched):
    spot = {name for name, instance in launched.items() if instance.get("InstanceLifecycle") == "spot"}
    assert spot == {"gpu-spot", "decoders"}
    kinds = cluster_config()["available_node_types"]
    assert kinds["gpu-spot"]["priority"] > kinds["gpu-on-demand"]["priority"]
    assert kinds["gpu-spot"]["resources"] == kinds["gpu-on-demand"]["resources"]


def test_nodes_get_the_roles_of_the_stack_and_no_keys(launched):
    for name, instance in launched.items():
        profile = instance["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        region = cluster_config()["provider"]["region"]
        assert profile == f"dim-{'head' if name == 'head' else 'worker'}-{region}"
    assert "Policies" not in template()["WorkerRole"]["Properties"]  # it reads and writes the bucket, no more


def test_nothing_but_ssh_is_reachable_from_outside(launched):
    groups = {group["GroupId"] for instance in launched.values() for group in instance["SecurityGroups"]}
    for group in boto3.client("ec2").describe_security_groups(GroupIds=sorted(groups))["SecurityGroups"]:
        public = [rule for rule in group["IpPermissions"] if rule.get("IpRanges")]
        assert [(rule["FromPort"], rule["ToPort"]) for rule in public] == [(22, 22)]


def test_the_head_says_what_nodes_may_come():
    config = cluster_config()
    kinds = config["available_node_types"]
    said = {}
    for name in ("gpu-spot", "decoders"):
        size = "".join(f"_{count}{what}" for what, count in kinds[name]["resources"].items())
        said[f"autoscaled{size}"] = kinds[name]["max_workers"]
    assert kinds["gpu-on-demand"]["resources"] == kinds["gpu-spot"]["resources"]
    assert kinds["head"]["resources"] == {"CPU": 0, "GPU": 0, **said}
    assert f"--resources='{json.dumps(said)}'" in config["head_start_ray_commands"][-1]
    assert config["max_workers"] == sum(kind.get("max_workers", 0) for kind in kinds.values())


def test_every_ray_is_started_with_a_token_and_the_head_listens_to_itself():
    config = cluster_config()
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("wrong", [{"InstanceTyp": "m7i.xlarge"}, {"InstanceType": 4}, {"BlockDeviceMappings": {}}])
def test_a_wrong_field_of_a_node_is_refused(config, wrong):
    from botocore.exceptions import ParamValidationError
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    node = copy.deepcopy(config["available_node_types"]["head"]["node_config"]) | wrong
    with pytest.raises(ParamValidationError):
        AWSNodeProvider(config["provider"], config["cluster_name"]).create_node(node, {}, 1)


@pytest.mark.parametrize("wrong", [{"max_worker": 3}, {"auth": {"user": "ubuntu"}}])
def test_a_wrong_field_of_the_file_is_refused(wrong):
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError):
        validate_config(prepare_config(cluster_config() | wrong))


# The python3 of Ubuntu's releases.
UBUNTU = {"20.04": "3.8", "22.04": "3.10", "24.04": "3.12"}


def python_of(commands, image):
    """The Python that these set-up commands install into: the one that uv is told to bring, or the image's own."""
    brought = [found[1] for command in commands if (found := re.search(r"uv venv .*--python (3\.\d+)", command))]
    return brought[0] if brought else UBUNTU[re.search(r"ubuntu-(\d\d\.\d\d)", image)[1]]


def refusing(lock, python):
    """The packages of `lock`, as far as they are installed here, that don't run on this Python."""
    wanted = {}
    for line in lock.read_text().splitlines():
        if "==" in line and not line.startswith((" ", "#")):
            requirement = Requirement(line.rstrip(" \\"))
            environment = {"python_version": python, "python_full_version": f"{python}.0"}
            if requirement.marker is None or requirement.marker.evaluate(environment):
                wanted[requirement.name] = requirement
    refused = set()
    for distribution in importlib.metadata.distributions():
        runs_on = distribution.metadata.get("Requires-Python")
        if distribution.name in wanted and runs_on and f"{python}.99" not in SpecifierSet(runs_on):
            refused.add(distribution.name)
    return refused


@pytest.mark.parametrize("node", cluster_config()["available_node_types"])
def test_each_node_gets_a_python_that_the_lock_is_for(node):
    config = cluster_config()
    kind = config["available_node_types"][node]
    commands = (
        kind.get("worker_setup_commands")
        or config["head_setup_commands" if node == config["head_node_type"] else "worker_setup_commands"]
    )
    python = python_of(commands, kind["node_config"]["ImageId"])
    locks = re.findall(r"~/dim/(requirements\S*\.lock)", " ".join(commands))
    assert len(locks) == 1
    assert refusing(CLUSTER / locks[0], python) == set()


def test_the_images_own_python_would_not_do():
    image = cluster_config()["available_node_types"]["head"]["node_config"]["ImageId"]
    assert "numpy" in refusing(CLUSTER / "requirements.lock", python_of(["python3 -m venv ~/venv"], image))
