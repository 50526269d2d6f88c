"""A network that leads nowhere: whoever looks a name up, or sends to the world, is noticed.

A network namespace with the loopback device, a name server of our own that answers every question, and a default route
into a cable (a veth pair, which every kernel has that has namespaces; the dummy device is not everywhere) whose other
end nobody holds.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from server.telemetry import OFF
from tests.conftest import wait_for

WHY_NOT = "network namespaces need Linux, root with its rights (not a container's), and the `ip` of iproute2"
ADDRESS = "198.51.100.1"
HIDES = OFF.keys() | {"CI", "GITHUB_ACTIONS", "TF_BUILD", "CIRCLECI", "JENKINS_URL", "TEAMCITY_VERSION"}
"""Variables that keep a library silent; none of them is set in here, so that the silence is the program's own doing."""
NAME_SERVER = """
import socket, struct
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
print("listens", flush=True)
while True:
    asked, sender = server.recvfrom(2048)
    at, labels = 12, []
    while asked[at]:
        labels.append(asked[at + 1 : at + 1 + asked[at]].decode("ascii", "replace"))
        at += asked[at] + 1
    print(".".join(labels), flush=True)
    question = asked[12 : at + 5]
    is_v4 = question[-4:-2] == b"\\0\\1"
    answer = b"\\xc0\\x0c" + struct.pack(">HHIH4B", 1, 1, 60, 4, 203, 0, 113, 1) if is_v4 else b""
    server.sendto(asked[:2] + struct.pack(">5H", 0x8180, 1, is_v4, 0, 0) + question + answer, sender)
"""


def possible() -> bool:
    """True if namespaces can be made and entered here: in a chroot without a mount of its own the second fails."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip"):
        return False
    name = f"gpt2d-{secrets.token_hex(3)}"
    commands = (["netns", "add", name], ["-n", name, "link", "set", "lo", "up"], ["netns", "del", name])
    tries = [subprocess.run(["ip", *words], capture_output=True, timeout=10) for words in commands]
    return not any(done.returncode for done in tries)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10, text=True).stdout


class Trap:
    """The namespace; what runs in it has a home of its own."""

    def __init__(self, folder: Path) -> None:
        tag = secrets.token_hex(3)
        self._name, self._cable = f"gpt2d-{tag}", f"v{tag}"
        self._files = Path("/etc/netns") / self._name
        self.home, self._looked_up = folder / "home", folder / "looked-up"
        self.home.mkdir(parents=True)
        self._started: list[subprocess.Popen[str]] = []
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        self._files.mkdir(parents=True)  # `ip netns exec` puts these over those of /etc
        (self._files / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        (self._files / "nsswitch.conf").write_text("hosts: files dns\n")
        ip("netns", "add", self._name)
        self._ip("link", "set", "lo", "up")
        self._ip("link", "add", self._cable, "type", "veth", "peer", "name", f"{self._cable}p")
        for end in (self._cable, f"{self._cable}p"):
            # Nothing that the system itself would send.
            setting = f"/proc/sys/net/ipv6/conf/{end}/disable_ipv6"
            self.run("sh", "-c", f"test ! -e {setting} || echo 1 > {setting}")
            self._ip("link", "set", end, "arp", "off", "up")
        self._ip("address", "add", f"{ADDRESS}/24", "dev", self._cable)
        self._ip("route", "add", "default", "dev", self._cable)
        with self._looked_up.open("w") as file:
            self.start(sys.executable, "-c", NAME_SERVER, stdout=file)
        wait_for(lambda: self._looked_up.read_text() != "")

    def _ip(self, *words: str) -> str:
        return ip("-n", self._name, *words)

    def _environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in HIDES and not k.startswith(("XDG_", "HF_"))}
        return kept | {"HOME": str(self.home)} | more

    def start(self, *command: str, stdout: int | object = None, **environment: str) -> subprocess.Popen[str]:
        """Start something in here; it is killed at the end."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self._name, *command],
            env=self._environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=stdout,  # type: ignore[arg-type]
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, *command: str, seconds: float = 60) -> str:
        """Run something in here; return what it prints. Raises: AssertionError if it fails."""
        done = subprocess.run(
            ["ip", "netns", "exec", self._name, *command],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def looked_up(self) -> list[str]:
        """Return the names that were asked for."""
        return self._looked_up.read_text().split("\n")[1:-1]

    def packets(self) -> int:
        """Return the number of packets that were sent to the world."""
        (link,) = json.loads(self._ip("-j", "-s", "link", "show", self._cable))
        return int(link["stats64"]["tx"]["packets"])

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait(10)
        subprocess.run(["ip", "netns", "del", self._name], capture_output=True, timeout=10)
        shutil.rmtree(self._files, ignore_errors=True)
