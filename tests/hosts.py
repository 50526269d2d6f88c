"""Two hosts: network namespaces, `server` and `client`, joined by a cable (a veth pair) that can be cut."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import threading
from pathlib import Path

from tests.conftest import wait_for
from tests.test_run import ROOT
from tests.trap import ip


class Hosts:
    """The hosts, without a default route, and a daemon on the server's. `log` is what its terminal showed."""

    variables: dict[str, str] = {}  # noqa: RUF012 - a subclass has its own
    """Variables of whatever runs on a host, beside those of its home."""

    def __init__(self, folder: Path, server: str, client: str, *serve: str) -> None:
        """Give the hosts these addresses, with their prefixes, and run `serve` until it has printed a connect line."""
        tag = secrets.token_hex(3)
        self.folder, self.log = folder, ""
        self.server, self.client = f"gpt2d-{tag}-s", f"gpt2d-{tag}-c"
        self._ends = {self.server: f"v{tag}s", self.client: f"v{tag}c"}
        self._files = Path("/etc/netns") / self.client
        self._daemon: subprocess.Popen[str] | None = None
        try:
            self._join(server, client)
            self._daemon = self.start(self.server, *serve)
            threading.Thread(target=self._read, daemon=True).start()
            wait_for(lambda: "run.py --connect" in self.log and "loaded demo" in self.log, 60)
            (self.line,) = re.findall(r"--connect '(\S+)'", self.log)
        except BaseException:
            self.close()
            raise

    def _join(self, server: str, client: str) -> None:
        for host in self._ends:
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
        other = ("peer", "name", self._ends[self.client], "netns", self.client)
        ip("-n", self.server, "link", "add", self._ends[self.server], "type", "veth", *other)
        self.add_addresses(server, client)
        for host, end in self._ends.items():
            ip("-n", host, "link", "set", end, "up")

    def add_addresses(self, server: str, client: str) -> None:
        """Give each host another address, unless it has it."""
        for (host, end), address in zip(self._ends.items(), (server, client), strict=True):
            ip("-n", host, "address", "replace", address, "dev", end, "nodad")

    def name(self, names: str) -> None:
        """Let the client's host know these names, by lines of an /etc/hosts, and no others."""
        self._files.mkdir(parents=True)
        (self._files / "hosts").write_text(names)
        (self._files / "nsswitch.conf").write_text("hosts: files\n")  # no name server is waited for

    def _read(self) -> None:
        assert self._daemon and self._daemon.stdout
        for line in self._daemon.stdout:
            self.log += line

    def start(self, host: str, *command: str) -> subprocess.Popen[str]:
        """Run something on a host that has a home of its own."""
        home = self.folder / host
        home.mkdir(exist_ok=True)
        own = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "XDG_CACHE_HOME": str(home / ".cache")}
        return subprocess.Popen(
            ["ip", "netns", "exec", host, *command],
            cwd=ROOT,
            env=os.environ | own | self.variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ask(self, host: str, *command: str) -> tuple[int, str]:
        process = self.start(host, *command)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def plug(self, state: str) -> None:
        ip("-n", self.server, "link", "set", self._ends[self.server], state)

    def close(self) -> None:
        if self._daemon:
            self._daemon.terminate()
            self._daemon.wait(20)
        for host in self._ends:
            subprocess.run(["ip", "netns", "del", host], capture_output=True, timeout=10)
        shutil.rmtree(self._files, ignore_errors=True)
