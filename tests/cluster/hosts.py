"""Hosts on one machine: each with a network, processes, a /tmp, a home and an sshd of its own. Needs root.

They are Linux namespaces on a switch that leads nowhere else. `user` is one more: the machine in front of a person.
What is started on a host sees nothing of the machine's own Ray, and ends with the host.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PLACE = "/var/tmp"  # for the hosts' disks; each has a /tmp of its own
NET = "10.77.0"
# What making hosts takes, tried in a folder.
TRIAL = """
cd {folder}
mkdir upper work
ip netns add dim-trial-$$
trap "ip netns delete dim-trial-$$" EXIT
unshare --net --mount --pid --fork bash -ec "
mount -t overlay -o lowerdir=/root,upperdir=upper,workdir=work overlay /root
ip link add switch type bridge
ip link add one type veth peer name other"
"""
SSHD = """
Port 22
HostKey /root/.ssh/host_key
AuthorizedKeysFile /root/.ssh/authorized_keys
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
AllowTcpForwarding yes
"""
# Only this host sees what is mounted here.
START = """
mount -t overlay -o lowerdir=/root,upperdir={home},workdir={home}.work overlay /root
mount -t tmpfs -o size=4g tmpfs /tmp
mount -t tmpfs -o size=1g tmpfs /dev/shm
hostname {name}
mkdir -p /run/sshd
exec /usr/sbin/sshd -D -e -f /root/sshd_config
"""


def missing():
    """What this machine lacks to make hosts, None where it lacks nothing."""
    if os.geteuid() != 0:
        return "root"
    for program in ("ip", "setpriv", "unshare", "nsenter", "ssh-keygen", "ssh", "rsync"):
        if shutil.which(program) is None:
            return f"{program} (Debian: iproute2, openssh-server, rsync)"
    if not Path("/usr/sbin/sshd").exists():
        return "sshd (Debian: openssh-server)"
    if any(path.is_relative_to("/tmp") for path in (REPOSITORY, Path(sys.prefix))):
        return "a repository and a virtual environment outside /tmp, of which each host has its own"
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        tried = ["bash", "-ec", TRIAL.format(folder=folder)]
        done = subprocess.run(tried, capture_output=True, text=True, check=False)
    return f"the right to make namespaces ({done.stderr.strip()})" if done.returncode else None


def _run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, **options)


class Host:
    """One host, at `address`, on which all have `environment`."""

    def __init__(self, lan, name, number, environment):
        self.lan, self.name, self.address = lan, name, f"{NET}.{number}"
        self.environment = environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.netns = f"{lan.prefix}{name}"
        self.home = lan.folder / name
        self._started = []
        self._make_home()
        _run("ip", "netns", "add", self.netns)
        self._port = f"{lan.prefix}{name}"
        peer = ("type", "veth", "peer", "name", "eth0", "netns", self.netns)
        _run("ip", "-n", lan.switch, "link", "add", self._port, *peer)
        _run("ip", "-n", lan.switch, "link", "set", self._port, "master", "switch", "up")
        for command in (
            ("addr", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", f"{NET}.254"),  # by which Ray learns its own address
        ):
            _run("ip", "-n", self.netns, *command)
        self._boot()

    def _make_home(self):
        Path(f"{self.home}.work").mkdir()
        (self.home / ".ssh").mkdir(parents=True)
        (self.home / ".ray").mkdir()
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.home / ".ssh" / "host_key")
        shutil.copy(self.lan.folder / "key.pub", self.home / ".ssh" / "authorized_keys")
        (self.home / ".bashrc").write_text("".join(f"export {name}={it}\n" for name, it in self.environment.items()))
        (self.home / "sshd_config").write_text(SSHD)

    def _boot(self):
        self._log = self.lan.folder / f"{self.name}.log"
        script = START.format(home=self.home, name=self.name)
        with self._log.open("w") as log:
            self._boots = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig=KILL", "ip", "netns", "exec", self.netns),  # it ends with this process
                    *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *("--propagation", "private", "bash", "-ec", script),
                ],
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )

    def wait(self):
        """Waits until the host takes logins."""
        probe = f"import socket; socket.create_connection(('{self.address}', 22), timeout=2)"
        end = time.monotonic() + 60
        on_the_switch = ("ip", "netns", "exec", self.lan.switch, sys.executable, "-c", probe)
        while subprocess.run(on_the_switch, capture_output=True, check=False).returncode:
            if time.monotonic() > end or self._boots.poll() is not None:
                raise RuntimeError(f"{self.name} does not start: {self._log.read_text()}")
            time.sleep(0.2)

    def command(self, *command, **environment):
        """`command` as run on this host, in the repository, with nothing of the machine's environment."""
        environment = {"HOME": "/root"} | self.environment | environment
        return [
            *("nsenter", f"--target={self._first()}", "--mount", "--uts", "--ipc", "--net", "--pid"),
            *("env", "--ignore-environment", f"--chdir={REPOSITORY}"),
            *(f"{name}={value}" for name, value in environment.items()),
            *map(str, command),
        ]

    def start(self, *command, log, **environment):
        """Starts `command` on this host; what it says is in the file `log`."""
        with log.open("w") as said:
            process = subprocess.Popen(self.command(*command, **environment), stdout=said, stderr=said)
        self._started.append(process)
        return process

    def unplug(self):
        """Takes the cable out."""
        _run("ip", "-n", self.lan.switch, "link", "set", self._port, "down")

    def plug(self):
        """Puts the cable back."""
        _run("ip", "-n", self.lan.switch, "link", "set", self._port, "up")

    def off(self):
        """Cuts the power: all that runs on this host ends."""
        self._boots.send_signal(signal.SIGKILL)
        for process in (self._boots, *self._started):
            process.wait(60)

    def rays(self):
        """What runs of Ray on this host: command lines."""
        found = []
        namespace = Path(f"/proc/{self._first()}/ns/pid").readlink()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "ns" / "pid").readlink() == namespace:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if "ray::" in line or "raylet" in line or "gcs_server" in line or "ray/dashboard" in line:
                        found.append(line)
            except OSError:
                continue
        return found

    def _first(self):
        """The number, on this machine, of the host's first process."""
        (first,) = Path(f"/proc/{self._boots.pid}/task/{self._boots.pid}/children").read_text().split()
        return first


class Lan:
    """Hosts and the user's machine, on one switch, all with `environment`; what runs on them ends with the block."""

    def __init__(self, folder, hosts, environment):
        self.folder, self.prefix = folder, f"d{os.getpid() % 100000}"
        self.switch = f"{self.prefix}sw"
        self.hosts = {}
        self._names, self._environment = ("user", *hosts), environment

    def __enter__(self):
        with contextlib.ExitStack() as made:
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "key")
            made.callback(_forget, self.switch)
            _run("ip", "netns", "add", self.switch)
            _run("ip", "-n", self.switch, "link", "add", "switch", "type", "bridge")
            _run("ip", "-n", self.switch, "addr", "add", f"{NET}.254/24", "dev", "switch")
            _run("ip", "-n", self.switch, "link", "set", "switch", "up")
            for number, name in enumerate(self._names, start=1):
                made.callback(_forget, f"{self.prefix}{name}")
                self.hosts[name] = Host(self, name, number, self._environment)
                made.callback(self.hosts[name].off)
            for host in self.hosts.values():
                host.wait()
            self._made = made.pop_all()
        return self

    def __exit__(self, *_):
        self._made.close()


def _forget(network):
    subprocess.run(["ip", "netns", "delete", network], capture_output=True, check=False)
