"""What the set-up and start commands of cluster/ find and leave on a new node, run as Ray runs them over ssh."""

import importlib.metadata
import re
import subprocess

import aws_templates
import pytest
import yaml
from aws_templates import CLUSTER
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PARENT = "base-oss-nvidia-driver-gpu-ubuntu-22.04"  # of cluster/image.yaml
LOCKS = ("requirements.lock", "requirements-gpu.lock")
# Ubuntu's own begins so; a shell that isn't interactive reads no further.
BASHRC = """
case $- in *i*) ;; *) return;; esac
export PATH=$HOME/stubs:/usr/bin:/bin LD_LIBRARY_PATH=/usr/local/cuda/lib64
"""
SAY = 'echo "$(basename $0) $* index=$UV_DEFAULT_INDEX,$PIP_INDEX_URL proxy=$HTTPS_PROXY" >> ~/said\n'
MAKES_A_VENV = SAY + "case $* in *venv\\ *) mkdir -p ~/venv/bin; cp ~/stubs/pip-python ~/venv/bin/python;; esac\n"
STUBS = {
    "curl": SAY + "while [ $# -gt 1 ]; do [ $1 = -o ] && cp ~/stubs/install-uv $2; shift; done\n",
    "install-uv": "mkdir -p ~/.local/bin; cp ~/stubs/uv ~/.local/bin/uv\n",
    "uv": MAKES_A_VENV,
    "python3": MAKES_A_VENV,
    "pip-python": SAY,
    "ray": 'echo "ray $*" >> ~/said; env > ~/environment\n',
}


def settings(name):
    return yaml.safe_load((CLUSTER / name).read_text())


def node_commands():
    """The set-up commands of each kind of machine."""
    aws = settings("config.yaml")
    for node, kind in aws["available_node_types"].items():
        head = node == aws["head_node_type"]
        yield node, kind.get("worker_setup_commands") or aws["head_setup_commands" if head else "worker_setup_commands"]
    yield "own", settings("onprem.yaml")["setup_commands"]


def image_script():
    """What cluster/image.yaml runs on the machine that becomes the image, as the user ubuntu."""
    return re.search(r"<<'END'\n(.*?)\n\s*END\n", (CLUSTER / "image.yaml").read_text(), re.DOTALL)[1]


@pytest.fixture
def home(tmp_path):
    """The home of a new Ubuntu machine, after Ray's file_mounts."""
    for name, text in STUBS.items():
        (tmp_path / "stubs").mkdir(exist_ok=True)
        (tmp_path / "stubs" / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / "stubs" / name).chmod(0o755)
    (tmp_path / ".bashrc").write_text(BASHRC)
    (tmp_path / "dim").mkdir()
    (tmp_path / "dim" / "environment.sh").write_text((CLUSTER / "environment.sh").read_text())
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch(0o644)
    return tmp_path


def run(home, command, *shell):
    environment = {"HOME": str(home), "PATH": f"{home}/stubs:/usr/bin:/bin"}
    done = subprocess.run(
        shell or command,
        shell=not shell,
        input=command if shell else "",
        env=environment,
        cwd=home,
        text=True,
        capture_output=True,
        start_new_session=True,  # an interactive shell would take the terminal
        check=False,
    )
    assert done.returncode == 0, (command, done.stderr)


def run_as_ray(home, *commands):
    """Runs them as `ray up` and the head do on a machine; returns what uv, pip, curl and Ray were asked for."""
    from ray.autoscaler._private.command_runner import _with_interactive

    (home / "said").write_text("")
    for command in commands:
        run(home, " ".join(_with_interactive(command)))
    return (home / "said").read_text().splitlines()


def named(commands):
    return [pytest.param(made, id=name) for name, made in commands]


@pytest.mark.parametrize("commands", named(node_commands()))
def test_a_new_node_has_the_locks_packages_after_its_set_up(home, commands):
    said = run_as_ray(home, *commands)
    assert (home / "venv" / "bin" / "python").exists()
    assert "pip install" in said[-1] and re.search(r"--require-hashes -r \S+/dim/requirements(-gpu)?\.lock", said[-1])
    assert sum("pip install" in line for line in said) == 1  # nothing beside the lock
    again = run_as_ray(home, *commands)
    assert [line for line in again if "pip install" not in line] == []
    assert (home / ".bashrc").read_text().count("environment.sh") == 1
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("commands", named(node_commands()))
def test_a_private_index_and_a_proxy_are_set_in_one_place(home, commands):
    text = (CLUSTER / "environment.sh").read_text()
    (home / "dim" / "environment.sh").write_text(re.sub(r"^# export", "export", text, flags=re.MULTILINE))
    said = run_as_ray(home, *commands)
    index, proxy = "https://pypi.example.org/simple", "http://proxy.example.org:3128"
    assert said and all(line.endswith(f"index={index},{index} proxy={proxy}") for line in said)


def test_a_node_of_the_image_has_nothing_left_to_do_but_to_compare_with_the_lock(home):
    run(home, image_script(), "bash", "-e")
    for _, commands in node_commands():
        said = run_as_ray(home, *commands)
        assert len(said) == 1 and "pip install" in said[0]


def test_the_image_is_set_up_as_a_gpu_node_is():
    lines = [line.strip() for line in image_script().splitlines()]
    _, *commands = dict(node_commands())["gpu-spot"]  # the token is the cluster's
    first = lines.index(commands[0])
    assert lines[first : first + len(commands)] == commands


START = [
    pytest.param(settings(name)[f"{node}_start_ray_commands"], id=f"{name}-{node}")
    for name in ("config.yaml", "onprem.yaml")
    for node in ("head", "worker")
]


@pytest.mark.parametrize("commands", START)
def test_ray_gets_the_machines_cores_the_locks_cuda_and_a_token(home, commands):
    (home / "dim" / "environment.sh").write_text("export PATH=$HOME/stubs:$PATH")
    said = run_as_ray(home, "echo '. ~/dim/environment.sh' >> ~/.bashrc", *commands)
    assert [line.split()[:2] for line in said] == [["ray", "stop"], ["ray", "start"]]
    environment = dict(line.split("=", 1) for line in (home / "environment").read_text().splitlines() if "=" in line)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert "OMP_NUM_THREADS" not in environment  # 1 of Ray's own, for what it runs over ssh
    assert "LD_LIBRARY_PATH" not in environment  # of the image; it goes before the lock's libraries


def pins(lock):
    """The requirements of a lock."""
    lines = (CLUSTER / lock).read_text().splitlines()
    return [Requirement(line.rstrip(" \\")) for line in lines if "==" in line and not line.startswith((" ", "#"))]


@pytest.mark.parametrize("lock", LOCKS)
def test_what_ray_up_needs_for_aws_is_in_the_lock(lock):
    assert "boto3" in {requirement.name for requirement in pins(lock)}


# The python3 of Ubuntu's releases.
UBUNTU = {"20.04": "3.8", "22.04": "3.10", "24.04": "3.12"}


def python_of(commands, image):
    """The Python that these set-up commands install into: the one that uv is told to bring, or the image's own."""
    brought = [found[1] for command in commands if (found := re.search(r"uv venv .*--python (3\.\d+)", command))]
    return brought[0] if brought else UBUNTU[re.search(r"ubuntu-(\d\d\.\d\d)", image)[1]]


def refusing(lock, python):
    """The packages of `lock`, as far as they are installed here, that don't run on this Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    wanted = {pin.name for pin in pins(lock) if pin.marker is None or pin.marker.evaluate(environment)}
    refused = set()
    for distribution in importlib.metadata.distributions():
        runs_on = distribution.metadata.get("Requires-Python")
        if distribution.name in wanted and runs_on and f"{python}.99" not in SpecifierSet(runs_on):
            refused.add(distribution.name)
    return refused


@pytest.mark.parametrize("commands", named((n, c) for n, c in node_commands() if n != "own"))
def test_each_node_gets_a_python_that_the_lock_is_for(commands):
    assert PARENT in (CLUSTER / "image.yaml").read_text()
    assert PARENT in (CLUSTER / "config.yaml").read_text()  # what may stand in the image's place
    (lock,) = re.findall(r"~/dim/(requirements\S*\.lock)", " ".join(commands))
    assert refusing(lock, python_of(commands, PARENT)) == set()


def test_the_images_own_python_would_not_do():
    assert "numpy" in refusing("requirements.lock", python_of(["python3 -m venv ~/venv"], PARENT))


def component():
    """The document by which Image Builder makes the image."""
    return yaml.safe_load(aws_templates.resources("image.yaml")["Component"]["Properties"]["Data"])


def test_the_folder_of_each_download_is_made_before():
    made = set()
    for step in (step for phase in component()["phases"] for step in phase["steps"]):
        if step["action"] == "S3Download":
            assert {one["destination"].rpartition("/")[0] for one in step["inputs"]} <= made
        else:
            made |= {command.removeprefix("mkdir -p ") for command in step["inputs"]["commands"]}


def test_no_disk_of_a_node_is_smaller_than_the_images():
    (image,) = aws_templates.resources("image.yaml")["Recipe"]["Properties"]["BlockDeviceMappings"]
    for kind in settings("config.yaml")["available_node_types"].values():
        (disk,) = kind["node_config"]["BlockDeviceMappings"]
        assert disk["DeviceName"] == image["DeviceName"]
        assert disk["Ebs"]["VolumeSize"] >= image["Ebs"]["VolumeSize"]


def test_image_builder_knows_all_that_the_template_asks_for():
    session = pytest.importorskip("boto3").session.Session(region_name="us-east-1")
    validate = pytest.importorskip("botocore.validate").validate_parameters
    model = session._session.get_service_model("imagebuilder")
    resources = aws_templates.resources("image.yaml")

    def as_called(part):
        """CloudFormation's names as the service's own."""
        if isinstance(part, list):
            return [as_called(one) for one in part]
        if not isinstance(part, dict):
            return part
        names = {name: name[0].lower() + name[1:] for name in part} | {"Version": "semanticVersion"}
        return {names[name]: as_called(value) for name, value in part.items()}

    built = [part for part in resources.values() if part["Type"].startswith("AWS::ImageBuilder::")]
    assert len(built) == 4
    for part in built:
        operation = model.operation_model("Create" + part["Type"].rpartition("::")[2])
        asked = as_called(part["Properties"])
        assert asked.keys() <= operation.input_shape.members.keys()
        validate(asked | {"clientToken": "once"}, operation.input_shape)
    assert [phase["name"] for phase in component()["phases"]] == ["build", "validate"]
    assert resources["Newest"]["Properties"]["Name"] == "/dim/image"
    nodes = settings("config.yaml")["available_node_types"].values()
    assert {node["node_config"]["ImageId"] for node in nodes} == {"resolve:ssm:/dim/image"}
