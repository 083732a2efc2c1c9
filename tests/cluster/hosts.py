"""Hosts on one machine: each with a network, processes, a /tmp, a home and an sshd of its own. Needs root.

They are Linux namespaces on a switch that leads nowhere else. `user` is one more: the machine in front of a person.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

NET = "10.77.0"
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
    for program in ("ip", "unshare", "nsenter", "ssh-keygen", "ssh", "rsync"):
        if shutil.which(program) is None:
            return f"{program} (Debian: iproute2, openssh-server, rsync)"
    if not Path("/usr/sbin/sshd").exists():
        return "sshd (Debian: openssh-server)"
    if Path(sys.prefix).is_relative_to("/tmp"):
        return "a virtual environment outside /tmp, of which each host has its own"
    done = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if done.returncode == 0 else "the right to make namespaces"


def _run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, **options)


class Host:
    """One host: `address`, and `pid`, its first process as this machine counts."""

    def __init__(self, lan, name, number, environment):
        self.lan, self.name, self.address = lan, name, f"{NET}.{number}"
        self.netns = f"{lan.prefix}{name}"
        self.home = lan.folder / name
        self._make_home(environment)
        _run("ip", "netns", "add", self.netns)
        port = f"{lan.prefix}{name}"
        _run("ip", "-n", lan.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", self.netns)
        _run("ip", "-n", lan.switch, "link", "set", port, "master", "switch", "up")
        for command in (
            ("addr", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", f"{NET}.254"),  # by which Ray learns its own address
        ):
            _run("ip", "-n", self.netns, *command)
        self._port = port
        self._process = None
        self.start()

    def _make_home(self, environment):
        Path(f"{self.home}.work").mkdir()
        (self.home / ".ssh").mkdir(parents=True)
        (self.home / ".ray").mkdir()
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.home / ".ssh" / "host_key")
        shutil.copy(self.lan.folder / "key.pub", self.home / ".ssh" / "authorized_keys")
        exports = [f"export {name}={value}" for name, value in environment.items()]
        (self.home / ".bashrc").write_text(
            "\n".join([*exports, f"export PATH={Path(sys.executable).parent}:$PATH", ""])
        )
        (self.home / "sshd_config").write_text(SSHD)

    def start(self):
        """Boots: nothing of before runs, and /tmp is empty."""
        script = START.format(home=self.home, name=self.name)
        self._log = open(self.lan.folder / f"{self.name}.log", "a")  # noqa: SIM115
        self._process = subprocess.Popen(
            [
                *("ip", "netns", "exec", self.netns, "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork"),
                *("--kill-child", "--mount-proc", "--propagation", "private", "bash", "-ec", script),
            ],
            stdout=self._log,
            stderr=self._log,
            cwd="/",
            start_new_session=True,
        )

    def unplug(self):
        """Takes the cable out."""
        _run("ip", "-n", self.lan.switch, "link", "set", self._port, "down")

    def plug(self):
        """Puts the cable back."""
        _run("ip", "-n", self.lan.switch, "link", "set", self._port, "up")

    def off(self):
        """Cuts the power."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def command(self, *command):
        """`command` as run on this host's network, on this machine's disks."""
        return ["ip", "netns", "exec", self.netns, *map(str, command)]

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
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return children[0] if children else self._process.pid


class Lan:
    """Hosts and the user's machine, on one switch."""

    def __init__(self, folder, hosts, environment):
        self.folder, self.prefix, self.environment = folder, f"d{os.getpid() % 100000}", environment
        self.switch = f"{self.prefix}sw"
        self.hosts = {}
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key")
        _run("ip", "netns", "add", self.switch)
        try:
            _run("ip", "-n", self.switch, "link", "add", "switch", "type", "bridge")
            _run("ip", "-n", self.switch, "addr", "add", f"{NET}.254/24", "dev", "switch")
            _run("ip", "-n", self.switch, "link", "set", "switch", "up")
            for number, name in enumerate(("user", *hosts), start=1):
                self.hosts[name] = Host(self, name, number, environment)
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self):
        end = time.monotonic() + 60
        for host in self.hosts.values():
            probe = f"import socket; socket.create_connection(('{host.address}', 22), timeout=2)"
            while subprocess.run(self.user.command(sys.executable, "-c", probe), capture_output=True).returncode:  # noqa: PLW1510
                if time.monotonic() > end:
                    raise TimeoutError(f"{host.name}: {(self.folder / f'{host.name}.log').read_text()}")
                time.sleep(0.5)

    @property
    def user(self):
        return self.hosts["user"]

    def close(self):
        """Ends everything that was started here."""
        for host in self.hosts.values():
            host.off()
        for name in (*(host.netns for host in self.hosts.values()), self.switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
