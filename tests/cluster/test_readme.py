"""cluster/README.md names each file, and its command shows what costs money; a command for cron finds all it needs."""

import re
import shlex

import pytest
from aws_templates import ACCOUNT, CLUSTER, REGION, resources

README = CLUSTER / "README.md"


def test_it_names_each_file():
    for path in CLUSTER.iterdir():
        if path not in (README, CLUSTER / "Dockerfile.dockerignore"):
            assert f"`{path.name}" in README.read_text(), path.name
    for path in (CLUSTER / "kubernetes").iterdir():
        assert path.stem in README.read_text(), path.name


@pytest.mark.parametrize("page", ["cluster/README.md", "dim/jobs/nightly.py"])
def test_what_cron_runs_finds_ray_and_has_the_token(page):
    text = (CLUSTER.parent / page).read_text()
    (line,) = re.findall(r"^ +\d+ \d+ \* \* \* +(.+)$", text, re.MULTILINE)
    assert "RAY_AUTH_MODE=token " in line  # without it, a head of cluster/ refuses the job
    assert re.search(r" /\S+/bin/ray job submit\b", line)  # cron's PATH is /usr/bin:/bin


@pytest.mark.parametrize("page", ["cluster/README.md", "cluster/image.yaml"])
def test_the_bucket_is_looked_for_in_the_region_of_the_stacks(page):
    (line,) = re.findall(r"BUCKET=s3://(.+)", (CLUSTER.parent / page).read_text())
    assert line == "dim-$(aws sts get-caller-identity --query Account --output text)-$(aws configure get region)"
    assert resources("aws.yaml")["Bucket"]["Properties"]["BucketName"] == f"dim-{ACCOUNT}-{REGION}"


def test_its_command_lists_the_machines_of_every_cluster(monkeypatch):
    boto3, jmespath = pytest.importorskip("boto3"), pytest.importorskip("jmespath")
    mock_aws = pytest.importorskip("moto").mock_aws
    (block,) = re.findall(r"```bash\n(aws ec2 describe-instances.*?)```", README.read_text(), re.DOTALL)
    words = shlex.split(block.replace("\\\n", ""))
    filters = [re.fullmatch(r"Name=(.+?),Values=(.+)", word) for word in words if word.startswith("Name=")]
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        ec2 = boto3.client("ec2", region_name=REGION)
        image = ec2.describe_images()["Images"][0]["ImageId"]
        started = {}
        for key, value in (("ray-cluster-name", "dim"), ("ray-cluster-name", "dim-anna"), ("Name", "another")):
            tags = [{"Key": "owner", "Value": "us"}, {"Key": key, "Value": value}]
            made = ec2.run_instances(
                ImageId=image,
                MinCount=2,
                MaxCount=2,
                TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
            )["Instances"]
            started[value] = [instance["InstanceId"] for instance in made]
        ended = started["dim"].pop()
        ec2.terminate_instances(InstanceIds=[ended])
        answer = ec2.describe_instances(Filters=[{"Name": f[1], "Values": f[2].split(",")} for f in filters])
    listed = jmespath.search(words[words.index("--query") + 1], answer)
    assert sorted((row[0], row[-1]) for row in listed) == sorted(
        (instance, name) for name in ("dim", "dim-anna") for instance in started[name]
    )
