"""Fixtures: a real daemon process with the embedded model, on a port of the system's choice; a screen."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest
import zmq

from protocol import Client, Gpt2dError
from scripts.daemon import Daemon

hypothesis.settings.register_profile("tests", deadline=None)  # an example may be slow while another test computes
hypothesis.settings.load_profile("tests")

WINDOW = "needs libX11, libXext and libGL (Debian: apt-get install libx11-6 libxext6 libgl1)"
COMPILES = (
    bool(shutil.which("g++"))
    and Path(sysconfig.get_path("include"), "Python.h").exists()
    and " " not in sysconfig.get_path("purelib")
)
COMPILER = (
    "torch.compile needs g++, Python's headers (Debian: apt-get install g++ python3-dev) and no space in its path"
)
"""Reasons why tests are skipped on a bare machine."""


def pytest_configure() -> None:
    """Let Ctrl-C and a hang-up reach what the tests start, and each of several processes keep to a core.

    Who runs them in the background, or by nohup, may have had these ignored, for all below.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # which is not inherited
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads spin, and would for cores that another test has


@pytest.hookimpl(tryfirst=True)  # before those are chosen that -m asks for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses a screen `alone`: a window that is drawn by the processor has deadlines for every key."""
    for item in items:
        if isinstance(item, pytest.Function) and {"screen", "display"} & {*item.fixturenames}:
            item.add_marker("alone")


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something is so, on a busy machine too; an assertion fails if it does not come to that."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def listener(endpoint: str) -> psutil.Process | None:
    """Return the process that listens on an endpoint of this machine, None where nobody does."""
    port = int(endpoint.rpartition(":")[2])
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port:
            return psutil.Process(one.pid)
    return None


def answers(client: Client) -> bool:
    """True if its server answers a ping within a second."""
    try:
        return bool(client.ping(timeout=1))
    except Gpt2dError:
        return False


@contextlib.contextmanager
def held(*processes: psutil.Process) -> Iterator[None]:
    """Hold processes still, a daemon's workers say: what they have begun neither goes on nor ends meanwhile."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # it was killed meanwhile
                process.resume()


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A context whose sockets are closed also where the test fails: its end would wait for them."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built graphs, shared by all daemons of a test run, and by the processes of pytest-xdist: it has locks of its own.

    Each of these has a temporary folder of its own in that of the run.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return tmp_path_factory.getbasetemp().parent / "cache"
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


@pytest.fixture(scope="session")
def screen() -> Iterator[str]:
    """A display: an Xvfb of the tests'."""
    if sys.platform != "linux" or not shutil.which("Xvfb"):
        pytest.skip("the window's tests need Linux and Xvfb (Debian: apt-get install xvfb)")
    server = subprocess.Popen(
        # Without -noreset it starts again when its last client leaves, and refuses whoever comes in that moment.
        ["Xvfb", "-displayfd", "1", "-screen", "0", "1400x900x24", "-nolisten", "tcp", "-noreset"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout
    display = f":{server.stdout.readline().strip()}"
    before = os.environ.get("DISPLAY")
    os.environ["DISPLAY"] = display
    yield display
    os.environ.pop("DISPLAY") if before is None else os.environ.update(DISPLAY=before)
    server.terminate()
    server.wait()
