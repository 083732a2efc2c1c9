"""cluster/aws.yaml and cluster/config.yaml against a mocked AWS: what they ask for is granted, node by node."""

import copy
import json

import aws_templates
import pytest
import yaml
from aws_templates import ACCOUNT, CLUSTER, REGION, SSH_FROM, granted

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
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        home = tmp_path_factory.mktemp("home")  # Ray leaves its key pair in ~/.ssh
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text("0" * 64)
        patch.setenv("HOME", str(home))
        patch.chdir(CLUSTER.parent)
        _make_roles(boto3.client("iam"))
        _make_security_group(boto3.client("ec2"))
        yield
    server.stop()


def template():
    return aws_templates.resources("aws.yaml")


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


def _make_security_group(ec2):
    """The template's security group, in the default VPC."""
    group = template()["SecurityGroup"]["Properties"]
    found = ec2.create_security_group(GroupName=group["GroupName"], Description=group["GroupDescription"])["GroupId"]
    for rule in group["SecurityGroupIngress"]:
        ec2.authorize_security_group_ingress(GroupId=found, **rule)
    among = template()["AmongNodes"]["Properties"]
    assert (among["GroupId"], among["SourceSecurityGroupId"]) == ("SecurityGroup.GroupId",) * 2
    pair = {"IpProtocol": among["IpProtocol"], "UserIdGroupPairs": [{"GroupId": found}]}
    ec2.authorize_security_group_ingress(GroupId=found, IpPermissions=[pair])


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


def test_the_head_and_what_may_stand_in_for_spot_are_on_demand(launched):
    spot = {name for name, instance in launched.items() if instance.get("InstanceLifecycle") == "spot"}
    assert spot == {"gpu-spot", "decoders"}
    kinds = cluster_config()["available_node_types"]
    assert kinds["gpu-spot"]["priority"] > kinds["gpu-on-demand"]["priority"]
    assert kinds["gpu-spot"]["resources"] == kinds["gpu-on-demand"]["resources"]


def test_nodes_get_the_roles_of_the_stack_and_no_keys(launched):
    for name, instance in launched.items():
        profile = instance["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        assert profile == f"dim-{'head' if name == 'head' else 'worker'}-{REGION}"
    assert "Policies" not in template()["WorkerRole"]["Properties"]  # it reads and writes the bucket, no more


def test_nothing_but_ssh_is_reachable_from_outside_and_that_from_ones_own_addresses(launched):
    (group,) = {group["GroupId"] for instance in launched.values() for group in instance["SecurityGroups"]}
    (found,) = boto3.client("ec2").describe_security_groups(GroupIds=[group])["SecurityGroups"]
    public = [rule for rule in found["IpPermissions"] if rule.get("IpRanges")]
    opened = [(rule["FromPort"], rule["ToPort"], [ip["CidrIp"] for ip in rule["IpRanges"]]) for rule in public]
    assert opened == [(22, 22, [SSH_FROM])]
    (among,) = [rule for rule in found["IpPermissions"] if rule["UserIdGroupPairs"]]
    assert (among["IpProtocol"], [pair["GroupId"] for pair in among["UserIdGroupPairs"]]) == ("-1", [group])


def head_policy():
    (policy,) = template()["HeadRole"]["Properties"]["Policies"]
    return policy["PolicyDocument"]["Statement"]


EC2 = f"arn:aws:ec2:{REGION}:{ACCOUNT}"
OWN, OTHER = {"ec2:ResourceTag/ray-cluster-name": "dim-anna"}, {"ec2:ResourceTag/ray-cluster-name": "production"}


@pytest.fixture
def asked_by_the_head(config, monkeypatch):
    """The EC2 actions of a node's life as Ray's provider on the head asks for them."""
    from botocore.client import BaseClient
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.tags import TAG_RAY_NODE_STATUS

    asked, call = set(), BaseClient._make_api_call

    def recorded(client, operation, parameters):
        asked.add(f"{client.meta.service_model.service_name}:{operation}")
        return call(client, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", recorded)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    decoder = copy.deepcopy(config["available_node_types"]["decoders"]["node_config"])
    (node,) = provider.create_node(decoder, {"ray-node-kind": "worker"}, 1)
    assert node in provider.non_terminated_nodes({})
    provider.set_node_tags(node, {TAG_RAY_NODE_STATUS: "up-to-date"})
    provider.internal_ip(node)
    provider.terminate_nodes([node])
    AWSNodeProvider.fillout_available_node_types_resources(config)
    return asked


def test_the_heads_role_grants_what_ray_asks_for(asked_by_the_head):
    assert {"ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances"} <= asked_by_the_head
    for action in asked_by_the_head - {"ec2:RunInstances"}:
        assert granted(head_policy(), action, f"{EC2}:instance/i-1", **OWN), action
    launch = {"aws:RequestTag/ray-cluster-name": cluster_config()["cluster_name"]}
    kinds = ("instance", "subnet", "security-group", "volume", "key-pair", "image", "snapshot", "network-interface")
    for resource in (f"{kind}/*" for kind in (*kinds, "spot-instances-request")):
        assert granted(head_policy(), "ec2:RunInstances", f"{EC2}:{resource}", **launch), resource
    assert granted(head_policy(), "ec2:CreateTags", f"{EC2}:instance/*", **{"ec2:CreateAction": "RunInstances"})
    image = cluster_config()["available_node_types"]["head"]["node_config"]["ImageId"].removeprefix("resolve:ssm:")
    assert granted(head_policy(), "ssm:GetParameters", f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter{image}")


@pytest.mark.parametrize(
    ("action", "context"),
    [
        ("ec2:TerminateInstances", OTHER),
        ("ec2:TerminateInstances", {}),
        ("ec2:CreateTags", OTHER),  # it could call any machine its own, and end it then
        ("ec2:CreateTags", {}),
        ("ec2:RunInstances", {}),
        ("ec2:RunInstances", {"aws:RequestTag/ray-cluster-name": "production"}),
        ("iam:PassRole", {"iam:PassedToService": "lambda.amazonaws.com"}),
    ],
)
def test_the_head_may_touch_no_machine_that_is_not_the_clusters(action, context):
    resource = "WorkerRole.Arn" if action == "iam:PassRole" else f"{EC2}:instance/i-1"
    assert not granted(head_policy(), action, resource, **context)


def test_a_second_cluster_of_an_account_needs_another_name_only():
    for name in ("dim", "dim-anna"):
        for action, key in (("ec2:RunInstances", "aws:RequestTag"), ("ec2:TerminateInstances", "ec2:ResourceTag")):
            assert granted(head_policy(), action, f"{EC2}:instance/i-1", **{f"{key}/ray-cluster-name": name})
    assert cluster_config()["provider"]["security_group"]["GroupName"] == "dim"  # not named after the cluster


def test_what_a_killed_upload_left_is_not_kept():
    (rule,) = template()["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    assert rule["Status"] == "Enabled"
    assert rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] <= 7
    assert "Prefix" not in rule and "Filter" not in rule  # wherever it lies


def test_no_disk_outlives_its_machine():
    for kind in cluster_config()["available_node_types"].values():
        assert [disk["Ebs"]["DeleteOnTermination"] for disk in kind["node_config"]["BlockDeviceMappings"]] == [True]


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
