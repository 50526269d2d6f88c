"""A daemon that runs for months: what the service manager, Prometheus, the log's reader and a container see of it."""

from __future__ import annotations

import json
import select
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from protocol import Client
from protocol.errors import Internal, NotLoaded
from protocol.programs import VERSION
from scripts.daemon import Daemon
from scripts.reliability.daemon import POISON, Behaviour, FakeDaemon
from tests.conftest import free_port, held, wait_for

DEPLOY = Path("docs/deploy")
NATIVE = {"model": "demo", "engine": "native", "precision": "int8"}
WORKER = NATIVE | {"replica": "0"}
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and sockets")


# The service manager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """systemd's end of NOTIFY_SOCKET, at tmp_path/notify."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        yield manager


def told(manager: socket.socket) -> str:
    return manager.recv(4096).decode()


@posix
def test_the_service_manager_is_told(tmp_path: Path, cache: Path, manager: socket.socket) -> None:
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--preload", "demo", NOTIFY_SOCKET=str(tmp_path / "notify"))
    assert told(manager) == "READY=1"
    assert told(manager) == f"STATUS={daemon.endpoint}: demo/native/int8 loading"
    assert told(manager) == f"STATUS={daemon.endpoint}: demo/native/int8 ready"
    (worker,) = daemon.workers()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & worker.environ().keys(), "the gateway alone speaks"
    daemon.process.terminate()
    assert told(manager) == "STOPPING=1"
    assert daemon.process.wait(20) == 0


@posix
def test_the_watchdog_hears_the_gateways_loop(tmp_path: Path, manager: socket.socket) -> None:
    daemon = Daemon(tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000")
    heard = [told(manager) for _ in range(6)]
    assert heard[0] == "READY=1" and heard.count("WATCHDOG=1") >= 4
    daemon.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: psutil.Process(daemon.process.pid).status() == psutil.STATUS_STOPPED)
    while select.select([manager], [], [], 0.5)[0]:  # what was said before
        told(manager)
    daemon.process.send_signal(signal.SIGCONT)
    assert told(manager) == "WATCHDOG=1"
    daemon.kill()


@posix
def test_a_manager_that_is_gone_or_means_another_process_changes_nothing(
    tmp_path: Path, manager: socket.socket
) -> None:
    daemon = Daemon(tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="100000", WATCHDOG_PID="1")
    assert [told(manager), told(manager)] == ["READY=1", f"STATUS={daemon.endpoint}: no model"]
    manager.close()
    assert daemon.stop() == 0 and "Traceback" not in daemon.logged()


# Prometheus


def scrape(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(port: int, name: str, **labels: str) -> float | None:
    return scrape(port).get((f"gpt2d_{name}", frozenset(labels.items())))


def test_what_was_done_is_counted(tmp_path: Path, cache: Path) -> None:
    port = free_port()
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--metrics-port", str(port))
    with Client(daemon.endpoint) as client:
        client.load("demo")
        ledgers = [
            client.generate(prompt, max_new_tokens=count).ledger
            for prompt, count in (("To be", 5), ("Or not to be", 9))
        ]
        with pytest.raises(NotLoaded):
            client.generate("x", model="gpt2")
        gone = Client(daemon.endpoint)
        stream = gone.stream("x", max_new_tokens=1000, ignore_eos=True, n=16)  # which dropping it would cancel
        next(stream)
        with held(*daemon.workers()):
            gone.connection.close()
            wait_for(lambda: value(port, "requests_total", type="generate", outcome="disconnected") == 1)
        wait_for(lambda: value(port, "open_requests") == 0 and value(port, "running_sequences", **WORKER) == 0)
        found = scrape(port)

        def of(name: str, **labels: str) -> float:
            return found[f"gpt2d_{name}", frozenset(labels.items())]

        assert of("requests_total", type="generate", outcome="ok") == 2
        assert of("requests_total", type="generate", outcome="not_loaded") == 1
        assert of("requests_total", type="load", outcome="ok") == 1
        assert of("peers") == 1 and of("uptime_seconds") > 0 and of("waiting_sequences", **WORKER) == 0
        assert of("worker_deaths_total") == of("worker_restarts_total") == 0
        for name, each in (
            ("queue", [x.queue_ms for x in ledgers]),
            ("first_token", [x.first_token_ms for x in ledgers]),
            ("inference", [x.inference_ms for x in ledgers]),
        ):
            assert of(f"{name}_seconds_count", **NATIVE) == 2
            assert of(f"{name}_seconds_sum", **NATIVE) == pytest.approx(sum(each) / 1000)
            assert of(f"{name}_seconds_bucket", le="+Inf", **NATIVE) == 2
        assert (
            of("batch_size_sum", **NATIVE) == sum(x.mean_batch for x in ledgers)
            and of("batch_size_count", **NATIVE) == 2
        )
        assert of("new_tokens_total", **WORKER) > sum(x.new_tokens for x in ledgers), "and those that were cancelled"
        assert of("prompt_tokens_total", **WORKER) >= sum(x.prompt_tokens for x in ledgers)
        (worker,) = daemon.workers()
        assert of("worker_resident_bytes", **WORKER) == pytest.approx(worker.memory_info().rss, rel=0.2)
        assert any(name == "gpt2d_build_info" and ("version", VERSION) in labels for name, labels in found)

        client.unload("demo")
        wait_for(lambda: not any(dict(labels).get("model") for _, labels in scrape(port)))
        wait_for(lambda: value(port, "requests_total", type="unload", outcome="ok") == 1)
    assert daemon.stop() == 0


def test_tokens_are_counted_one_by_one(tmp_path: Path, cache: Path) -> None:
    port = free_port()
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--metrics-port", str(port), "--preload", "demo")
    with Client(daemon.endpoint) as client:
        client.load("demo")
        client.generate("To be", max_new_tokens=7, ignore_eos=True, speculate=0)
        wait_for(lambda: value(port, "new_tokens_total", **WORKER) == 7)
    daemon.kill()


@posix
def test_a_worker_that_dies_and_what_is_no_request_are_counted(tmp_path: Path, cache: Path) -> None:
    port = free_port()
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--metrics-port", str(port), "--preload", "demo")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    peer = context.socket(zmq.DEALER)
    peer.linger, peer.rcvtimeo = 0, 20_000
    peer.connect(daemon.endpoint)
    peer.send(b"\xc1")
    peer.recv()
    wait_for(lambda: value(port, "requests_total", type="refused", outcome="bad_request") == 1)
    context.destroy(linger=0)
    with Client(daemon.endpoint) as client:
        client.load("demo")
        daemon.workers()[0].kill()
        wait_for(lambda: (value(port, "worker_deaths_total"), value(port, "worker_restarts_total")) == (1, 1))
        client.load("demo")
        client.unload("demo")
        assert value(port, "worker_restarts_total") == 1, "a counter never falls"
    daemon.kill()


def test_a_scraper_that_says_nothing_holds_nobody_up(tmp_path: Path) -> None:
    port = free_port()
    daemon = Daemon(tmp_path, "--metrics-port", str(port))
    with socket.create_connection(("127.0.0.1", port), timeout=20), Client(daemon.endpoint) as client:
        assert max(client.ping().uptime_ms for _ in range(20)) > 0
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.logged()


def test_a_taken_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        command = [
            sys.executable,
            "-m",
            "server",
            "--endpoint",
            "tcp://127.0.0.1:0",
            "--metrics-port",
            port,
            "--log-format",
            "json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"--metrics-port {port}: cannot listen on 127.0.0.1: Address already in use" in json.loads(line)["message"]


def test_without_the_option_nobody_listens_and_the_library_stays_away() -> None:
    code = "import sys, server.__main__; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "False"


# The log


@posix
def test_every_line_is_an_object_what_the_workers_say_too(tmp_path: Path) -> None:
    with (
        FakeDaemon(tmp_path, Behaviour(fault="raises"), "--log-format", "json") as daemon,
        Client(daemon.endpoint) as client,
    ):
        client.load("demo")
        with pytest.raises(Internal) as failure:
            client.generate(prompt_ids=[POISON] * 8, speculate=0)
        incident = str(failure.value).split()[-1]
        wait_for(lambda: "a fault that was asked for" in daemon.logged())
        daemon.workers()[0].kill()
        wait_for(lambda: "died" in daemon.logged())
        assert daemon.stop() == 0
        wait_for(lambda: "stopped" in daemon.logged())
        lines = [json.loads(line) for line in daemon.logged().splitlines()]
    assert all(line.keys() == {"time", "level", "logger", "message"} for line in lines)
    of_workers = [line["message"] for line in lines if line["logger"] == "gpt2d.worker"]
    assert any(f"demo/native/int8: the engine failed, incident {incident}" in line for line in of_workers)
    assert any(line["level"] == "ERROR" and "died" in line["message"] for line in lines)


# What docs/deploy holds


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_unit_is_one(tmp_path: Path) -> None:
    unit = tmp_path / "gpt2d.service"
    unit.write_text(
        (DEPLOY / "gpt2d.service")
        .read_text(encoding="utf-8")
        .replace("/opt/gpt2d/.venv/bin/gpt2d-server", sys.executable)
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=30, check=False
    )
    assert "gpt2d.service" not in done.stderr, done.stderr


def test_the_health_check(shared_daemon: Daemon, tmp_path: Path) -> None:
    def check(line: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "line").write_text(line)
        command = [sys.executable, str(DEPLOY / "healthcheck.py"), str(tmp_path / "line")]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert check(f"{shared_daemon.endpoint}\n").returncode == 0
    nobody = check(f"tcp://127.0.0.1:{free_port()}")
    assert nobody.returncode == 1 and "Traceback" not in nobody.stderr
    assert check("nonsense").returncode == 1
