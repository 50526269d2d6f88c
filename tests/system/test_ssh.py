"""A daemon at the other end of `ssh -L`: a real sshd on this machine, and what is said when the tunnel is cut."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol import Client
from protocol.errors import ConnectionLost, NoServer
from scripts.daemon import Daemon
from tests.conftest import free_port, held, wait_for

SSHD = shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
pytestmark = pytest.mark.skipif(
    not (SSHD and shutil.which("ssh") and Path("/run/sshd").is_dir()),
    reason="needs OpenSSH's server and client (Debian: apt-get install openssh-server openssh-client), and /run/sshd",
)
CONFIG = """
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
StrictModes no
UsePAM no
PidFile none
"""
SETTINGS = (
    "BatchMode=yes",
    "ConnectTimeout=10",
    "ExitOnForwardFailure=yes",
    "LocalCommand=echo forwards",
    "PermitLocalCommand=yes",
    "StrictHostKeyChecking=accept-new",
)


class Tunnel:
    """An sshd, and an ssh that leads to it and on to a port of its machine. `endpoint` is the near end."""

    def __init__(self, folder: Path, port: str) -> None:
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, timeout=10)
        config, known = folder / "config", folder / "known"
        self._log = folder / "log"
        config.write_text(CONFIG.format(folder=folder))
        near, far = free_port(), free_port()
        assert SSHD
        self._sshd = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", config, "-p", str(far)],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        settings = [*SETTINGS, f"UserKnownHostsFile={known}"]
        there = f"{getpass.getuser()}@127.0.0.1"
        options = [f"-o{setting}" for setting in settings]
        files = ["-F", "none", f"-E{self._log}", f"-i{folder / 'user'}"]
        self._command = ["ssh", "-N", *files, *options, f"-p{far}", f"-L{near}:127.0.0.1:{port}", there]
        self.endpoint = f"tcp://127.0.0.1:{near}"
        try:
            assert self._listens()
            self.open()
        except BaseException:
            self._sshd.kill()
            raise

    def _listens(self) -> bool:
        """Wait until sshd listens, or has ended; return whether it listens."""
        assert self._sshd.stderr
        return any("listening" in line for line in iter(self._sshd.stderr.readline, ""))

    def open(self) -> None:
        """Start ssh, and wait until it forwards."""
        self.ssh = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self.ssh.stdout and self.ssh.stdout.readline() == "forwards\n", self._log.read_text()

    def close(self) -> None:
        for process in (self.ssh, self._sshd):
            process.kill()
            process.wait(10)


@pytest.fixture
def tunnel(tmp_path: Path, shared_daemon: Daemon) -> Iterator[Tunnel]:
    tunnel = Tunnel(tmp_path, shared_daemon.endpoint.rpartition(":")[2])
    yield tunnel
    tunnel.close()


def test_a_tunnel_carries_streams_and_when_it_is_cut_that_is_said(
    tunnel: Tunnel, client: Client, shared_daemon: Daemon
) -> None:
    settings: dict[str, Any] = {"prompt": "Shall I", "seed": 1, "max_new_tokens": 40, "deterministic": True}
    with Client(tunnel.endpoint) as far:
        assert far.hello().server_id == client.hello().server_id
        with far.stream(**settings) as stream:
            text = "".join(piece.text for piece in stream)
        assert text == client.generate(**settings).text
        with far.stream("x", max_new_tokens=1000, ignore_eos=True, n=16) as stream:
            next(stream)
            with held(*shared_daemon.workers()):
                tunnel.ssh.kill()
                with pytest.raises(ConnectionLost, match="broke and could not be made again"):
                    list(stream)
        with pytest.raises(NoServer, match="any more; start the server again, or the tunnel that led to it"):
            far.ping(timeout=0.1)
        wait_for(lambda: sum(worker.running for worker in client.ping().workers) == 0)
        tunnel.ssh.wait(10)
        tunnel.open()
        assert far.generate(**settings).text == text
