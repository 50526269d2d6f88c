"""Two hosts: daemon and client in network namespaces of their own, joined by a cable (a veth pair) that can be cut."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from protocol.keys import Address, CurveKeys
from tests.conftest import wait_for
from tests.test_readme import README, ROOT, blocks
from tests.trap import WHY_NOT, ip, possible

pytestmark = [pytest.mark.skipif(not possible(), reason=WHY_NOT), pytest.mark.alone]
SERVER, CLIENT = "10.213.7.1", "10.213.7.2"
STREAM = """
import sys, time
from protocol import Client, Gpt2dError
with Client(sys.argv[1]) as client:
    stream = client.stream("x", max_new_tokens=1000, ignore_eos=True, n=16)
    print("began", len(next(stream).ids), flush=True)
    try:
        for piece in stream:
            pass
        print("whole", flush=True)
    except Gpt2dError as e:
        print("lost", type(e).__name__, flush=True)
    while True:
        try:
            client.ping(timeout=1)
            break
        except Gpt2dError as e:
            print("away", type(e).__name__, flush=True)
    print("back", len(client.generate("x", max_new_tokens=5, ignore_eos=True).ids), flush=True)
"""


class Hosts:
    """The two namespaces. `log` is what the server's terminal showed."""

    def __init__(self, folder: Path) -> None:
        tag = secrets.token_hex(3)
        self.server, self.client = f"gpt2d-{tag}-s", f"gpt2d-{tag}-c"
        self._cable = f"v{tag}s"
        self.folder, self.log = folder, ""
        self._daemon: subprocess.Popen[str] | None = None
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        tag = self._cable[1:-1]
        ip("netns", "add", self.server)
        ip("netns", "add", self.client)
        ip(
            "-n",
            self.server,
            "link",
            "add",
            self._cable,
            "type",
            "veth",
            "peer",
            "name",
            f"v{tag}c",
            "netns",
            self.client,
        )
        for host, device, address in ((self.server, self._cable, SERVER), (self.client, f"v{tag}c", CLIENT)):
            ip("-n", host, "address", "add", f"{address}/24", "dev", device)
            ip("-n", host, "link", "set", "lo", "up")
            ip("-n", host, "link", "set", device, "up")
        self._daemon = self.start(self.server, *blocks(README, "bash serve")[0].split(), SERVER)
        threading.Thread(target=self._read, daemon=True).start()
        wait_for(lambda: "run.py --connect" in self.log and "loaded demo" in self.log, 60)
        self.line = re.findall(r"--connect '(\S+)'", self.log)[0]

    def _read(self) -> None:
        assert self._daemon and self._daemon.stdout
        for line in self._daemon.stdout:
            self.log += line

    def start(self, host: str, *command: str) -> subprocess.Popen[str]:
        """Run something on a host that has a home of its own."""
        home = self.folder / host
        home.mkdir(exist_ok=True)
        environment = os.environ | {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "XDG_CACHE_HOME": str(home / ".cache"),
        }
        return subprocess.Popen(
            ["ip", "netns", "exec", host, *command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ask(self, host: str, *command: str) -> tuple[int, str]:
        process = self.start(host, *command)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def connect(self, line: str) -> tuple[int, str]:
        """Paste the README's line on the client's host, with this connect line."""
        words = blocks(README, "bash connect")[0].split()
        return self.ask(
            self.client,
            *[line if "#" in word else word for word in words],
            "--prompt",
            "Shall I",
            "--max-new-tokens",
            "9",
        )

    def plug(self, state: str) -> None:
        ip("-n", self.server, "link", "set", self._cable, state)

    def close(self) -> None:
        if self._daemon:
            self._daemon.terminate()
            self._daemon.wait(20)
        for host in (self.server, self.client):
            subprocess.run(["ip", "netns", "del", host], capture_output=True, timeout=10)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if not (ROOT / ".venv").exists():
        pytest.skip("run.py would install everything into a new .venv")
    hosts = Hosts(tmp_path_factory.mktemp("hosts"))
    yield hosts
    hosts.close()


def test_namespace_the_two_lines_of_the_readme(hosts: Hosts) -> None:
    assert f"tcp://{SERVER}:5757#" in hosts.line
    code, said = hosts.connect(hosts.line)
    assert code == 0 and re.search(r"\[inference \d+ ms: .* 2 \+ 9 tokens", said), said
    assert re.search(rf"next time `.*gpt2d-client'? {SERVER}` is enough", said)
    code, said = hosts.ask(
        hosts.client, "python3", "scripts/run.py", "--connect", SERVER, "--prompt", "x", "--max-new-tokens", "3"
    )
    assert code == 0 and "1 + 3 tokens" in said, said


def _has_logged(hosts: Hosts, text: str) -> bool:
    return text in hosts.log


def test_namespace_strangers_get_nowhere(hosts: Hosts) -> None:
    address = Address.parse(hosts.line)
    stranger = Address(address.endpoint, address.server_key, CurveKeys.new())
    other_server = Address(address.endpoint, CurveKeys.new().public, address.key)
    last = 0.0
    for line, said, logged in (
        (stranger.line(), "refuses this key", f"refused {CLIENT}: unknown key"),
        (other_server.line(), "has a different key than the one given", "it has another server's key"),
        (address.endpoint, "wants a key", "it has no key"),
    ):
        time.sleep(max(0.0, last + 1.1 - time.monotonic()))  # refusals are logged once a second
        code, printed = hosts.ask(hosts.client, "python3", "scripts/run.py", "--connect", line, "--prompt", "x")
        assert code == 1 and said in printed and "kept" not in printed, printed
        wait_for(partial(_has_logged, hosts, logged))
        last = time.monotonic()
    assert "unauthorised" not in hosts.log and "generate demo/native/int8 length: prompt 1, new 25" not in hosts.log


def test_namespace_a_cable_that_is_cut_and_plugged_in_again(hosts: Hosts) -> None:
    client = hosts.start(hosts.client, sys.executable, "-c", STREAM, hosts.line)
    assert client.stdout
    assert client.stdout.readline().startswith("began")
    hosts.plug("down")
    cut = time.monotonic()
    assert client.stdout.readline() in {"lost ServerStuck\n", "lost ConnectionLost\n"}
    assert time.monotonic() - cut < 7
    time.sleep(max(0.0, cut + 8 - time.monotonic()))
    hosts.plug("up")
    plugged = time.monotonic()
    while (line := client.stdout.readline()).startswith("away"):
        pass
    assert line == "back 5\n" and time.monotonic() - plugged < 5
    client.wait(10)
