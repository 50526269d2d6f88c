"""Fixtures: a real daemon process with the embedded model, on a port of the system's choice."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from protocol import Client, Gpt2dError

START_S = 20


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait until something is so; an assertion fails if it does not come to that."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def answers(client: Client) -> bool:
    """True if its server answers a ping within a second."""
    try:
        return bool(client.ping(timeout=1))
    except Gpt2dError:
        return False


class Daemon:
    """A gpt2d-server process. `log` is what it has written so far."""

    program: tuple[str, ...] = ("server",)
    """The module to run, and what comes before its arguments."""
    before: tuple[str, ...] = ()
    """What comes before the interpreter."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.folder = folder
        self.log: list[str] = []
        command = [*self.before, sys.executable, "-P", "-m", *self.program, "--endpoint", "tcp://127.0.0.1:0"]
        command += ["--models-dir", str(folder / "models"), "--cache-dir", str(folder / "cache"), *arguments]
        nowhere = {"HF_HUB_CACHE": str(folder / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | nowhere | environment
        )
        self._listening = threading.Event()
        self.endpoint = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._listening.wait(START_S) or not self.endpoint:
            self.kill()
            raise RuntimeError(f"the daemon did not start: {''.join(self.log)}")

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"listens on (\S+?),", line):
                self.endpoint = found[1]
                self._listening.set()
        self._listening.set()

    def workers(self) -> list[psutil.Process]:
        """The worker processes that run now."""
        return psutil.Process(self.process.pid).children()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        code = self.process.wait(20)
        self._reader.join(5)
        return code

    def logged(self) -> str:
        return "".join(self.log)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built graphs, shared by all daemons of a test run."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), "--cache-dir", str(cache), "--preload", "demo/native/int8")
    with Client(daemon.endpoint) as client:
        client.load("demo", precision="int8")
    yield daemon
    if daemon.process.poll() is None:
        daemon.stop()


@pytest.fixture
def client(shared_daemon: Daemon) -> Iterator[Client]:
    """A client of the shared daemon, which has demo/native/int8 loaded."""
    with Client(shared_daemon.endpoint) as client:
        yield client


@pytest.fixture
def own_daemon(tmp_path: Path, cache: Path) -> Iterator[Daemon]:
    """A daemon that the test may break, with nothing loaded."""
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--drain-seconds", "5")
    yield daemon
    if daemon.process.poll() is None:
        daemon.kill()


@pytest.fixture
def one_row(tmp_path: Path, cache: Path) -> Iterator[Client]:
    """A client of a daemon with demo/native/int8 that runs one sequence at a time, so that others wait."""
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--rows", "1", "--preload", "demo")
    with Client(daemon.endpoint) as client:
        client.load("demo")
        yield client
    daemon.kill()
