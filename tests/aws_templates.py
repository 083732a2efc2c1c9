"""CloudFormation templates of cluster/ as data, and what their policies grant."""

import fnmatch
from pathlib import Path

import yaml

CLUSTER = Path(__file__).resolve().parents[1] / "cluster"
REGION, ACCOUNT = "us-east-1", "123456789012"
SSH_FROM = "203.0.113.7/32"


class _Template(yaml.SafeLoader):
    """Reads a CloudFormation template, `!Ref X` and `!Sub X` as the text X."""


_Template.add_multi_constructor("!", lambda loader, _, node: loader.construct_scalar(node))


def resources(name):
    """The resources of a template, for one account and region, ssh from `SSH_FROM`."""
    text = (CLUSTER / name).read_text().replace("!Ref SshFrom", SSH_FROM)
    for variable, value in (("Region", REGION), ("AccountId", ACCOUNT), ("Partition", "aws")):
        text = text.replace(f"${{AWS::{variable}}}", value)
    return yaml.load(text, _Template)["Resources"]


def granted(statements, action, resource, **context):
    """Whether one of a policy's statements allows `action` on the ARN `resource` in a request of this `context`."""
    assert {statement["Effect"] for statement in statements} == {"Allow"}

    def matches(patterns, text):
        return any(fnmatch.fnmatchcase(text, p) for p in ([patterns] if isinstance(patterns, str) else patterns))

    def holds(statement):
        for operator, keys in statement.get("Condition", {}).items():
            assert operator in ("StringLike", "StringEquals")
            if not all(matches(wanted, context.get(key, "")) for key, wanted in keys.items()):
                return False
        if "NotResource" in statement:
            return not matches(statement["NotResource"], resource)
        return matches(statement["Resource"], resource)

    return any(matches(statement["Action"], action) and holds(statement) for statement in statements)
