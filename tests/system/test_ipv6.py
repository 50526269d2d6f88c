"""Two hosts that have IPv6 alone: what `--serve` prints is pasted on the other, and a name does as well."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.test_run import RUN
from tests.trap import WHY_NOT, ip, possible

pytestmark = [pytest.mark.skipif(not possible(), reason=WHY_NOT), pytest.mark.alone]
ROOT = Path(__file__).resolve().parents[2]
SERVER, CLIENT = "fd5e:77::1", "fd5e:77::2"
SERVER_V4, CLIENT_V4 = "10.213.8.1", "10.213.8.2"
NAMES = f"{SERVER} served\n{SERVER} both\n192.0.2.77 both\n"
ADDRESSES = "import sys; sys.path.insert(0, 'scripts'); from own_addresses import *; print(own_addresses())"

CUT = """
import sys
from protocol import Client, Gpt2dError
with Client(sys.argv[1]) as client:
    client.ping(timeout=10)
    print("there", flush=True)
    sys.stdin.readline()
    for seconds in (5, 1):  # the second finds out what is known by then
        try:
            client.ping(timeout=seconds)
        except Gpt2dError as e:
            print(e, flush=True)
    sys.stdin.readline()
    client.ping(timeout=20)
    print("back", flush=True)
"""


class Pair:
    """The namespaces of both hosts, joined by a cable (a veth pair), without a default route."""

    def __init__(self, folder: Path) -> None:
        tag = secrets.token_hex(3)
        self.folder = folder
        self.server, self.client = f"gpt2d-{tag}-s", f"gpt2d-{tag}-c"
        self._cable = f"v{tag}"
        self._files = Path("/etc/netns") / self.client
        self._daemon: subprocess.Popen[str] | None = None
        self.said = ""
        try:
            self._join()
        except BaseException:
            self.close()
            raise

    def _join(self) -> None:
        self._files.mkdir(parents=True)
        (self._files / "hosts").write_text(NAMES)
        (self._files / "nsswitch.conf").write_text("hosts: files\n")  # no name server is waited for
        for host in (self.server, self.client):
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
        ends = {self.server: f"{self._cable}s", self.client: f"{self._cable}c"}
        ip("-n", self.server, "link", "add", ends[self.server], "type", "veth", "peer", "name", ends[self.client],
           "netns", self.client)  # fmt: skip
        for host, address in ((self.server, SERVER), (self.client, CLIENT)):
            ip("-n", host, "address", "add", f"{address}/64", "dev", ends[host], "nodad")
            ip("-n", host, "link", "set", ends[host], "up")
        run = ["-c", RUN, str(ROOT / "scripts" / "run.py"), sys.executable, str(self.folder)]
        self._daemon = self.start(self.server, *run, "--serve")
        threading.Thread(target=self._read, daemon=True).start()
        wait_for(lambda: "run.py --connect" in self.said and "loaded demo" in self.said, 60)

    def _read(self) -> None:
        assert self._daemon and self._daemon.stdout
        for line in self._daemon.stdout:
            self.said += line

    def start(self, host: str, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", host, sys.executable, *words],
            cwd=ROOT,
            env=os.environ | {"HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ask(self, host: str, *words: str) -> str:
        return self.start(host, *words).communicate(timeout=60)[0]

    def write(self, *lines: str) -> list[str]:
        """Write a text on the client's host by each of these connect lines, at once; return what is said."""
        words = ("--prompt", "x", "--max-new-tokens", "3")
        clients = [self.start(self.client, "-P", "-m", "client", line, *words) for line in lines]
        return [client.communicate(timeout=60)[0] for client in clients]

    def add_ipv4(self) -> None:
        """Give both hosts an address of the other family, too."""
        for host, end, address in ((self.server, "s", SERVER_V4), (self.client, "c", CLIENT_V4)):
            ip("-n", host, "address", "replace", f"{address}/24", "dev", self._cable + end)

    def plug(self, state: str) -> None:
        ip("-n", self.server, "link", "set", self._cable + "s", state)

    def close(self) -> None:
        if self._daemon:
            self._daemon.terminate()
            self._daemon.wait(20)
        for host in (self.server, self.client):
            subprocess.run(["ip", "netns", "del", host], capture_output=True, timeout=10)
        shutil.rmtree(self._files, ignore_errors=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.close()


def test_ipv6_alone_and_then_both_families(pair: Pair) -> None:
    """`--serve` prints addresses that can be reached, never the host's name, and listens on both families."""
    (line,) = re.findall(r"--connect '(\S+)'", pair.said)
    assert line.startswith(f"tcp://[{SERVER}]:5757#")
    names = [line.replace(f"[{SERVER}]", name) for name in ("served", "both")]
    *written, refused = pair.write(line, *names, "tcp://nowhere:5757")
    assert all("1 + 3 tokens" in said for said in written), written
    assert "the name in tcp://nowhere:5757 cannot be looked up" in refused
    pair.add_ipv4()
    assert pair.ask(pair.server, "-c", ADDRESSES).strip() == str([SERVER_V4, SERVER])
    (said,) = pair.write(line.replace(f"[{SERVER}]", SERVER_V4))
    assert "1 + 3 tokens" in said


def test_while_the_line_is_cut_that_is_what_is_said(pair: Pair) -> None:
    pair.add_ipv4()
    (line,) = re.findall(r"--connect '(\S+)'", pair.said)
    client = pair.start(pair.client, "-c", CUT, line.replace(f"[{SERVER}]", SERVER_V4))
    assert client.stdin and client.stdout and client.stdout.readline() == "there\n"
    pair.plug("down")
    client.stdin.write("\n")
    client.stdin.flush()
    for _ in range(2):
        said = client.stdout.readline()
        assert "cut" in said and "nobody listens" not in said and "start" not in said, said
    pair.plug("up")
    plugged = time.monotonic()
    client.stdin.write("\n")
    client.stdin.flush()
    assert client.stdout.readline() == "back\n"
    assert time.monotonic() - plugged < 10
    client.communicate(timeout=10)
