"""Names and addresses of both families: a server is found by whichever of its addresses takes the connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from protocol import Client
from protocol.errors import NoServer
from scripts.daemon import Daemon
from tests.conftest import free_port

try:
    socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    HAS_IPV6 = True
except OSError:
    HAS_IPV6 = False
ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="this system has no IPv6 on loopback")
LOCAL = {"::1": socket.AF_INET6, "127.0.0.1": socket.AF_INET, "192.0.2.77": socket.AF_INET}


@contextmanager
def named(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> Iterator[None]:
    """Let every name have these addresses, in this order; none: it is not known."""

    def look_up(_: str, port: int, **__: Any) -> list[tuple[Any, ...]]:
        if not hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(LOCAL[h], socket.SOCK_STREAM, 6, "", (h, port, 0, 0) if ":" in h else (h, port)) for h in hosts]

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", look_up)
        yield


@ipv6
@pytest.mark.parametrize("order", [("::1", "127.0.0.1"), ("127.0.0.1", "::1")])
@pytest.mark.parametrize("listens", ["tcp://127.0.0.1:0", "tcp://[::1]:0"])
def test_localhost_of_both_families_finds_a_daemon_on_one(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, order: tuple[str, str], listens: str
) -> None:
    daemon = Daemon(tmp_path, "--endpoint", listens)
    try:
        assert daemon.endpoint.startswith(listens.removesuffix("0"))
        with named(monkeypatch, *order), Client(f"localhost:{daemon.endpoint.rpartition(':')[2]}") as client:
            assert client.ping(timeout=20)
    finally:
        daemon.kill()


@ipv6
def test_an_ipv6_address_without_a_scheme(tmp_path: Any) -> None:
    daemon = Daemon(tmp_path, "--endpoint", "tcp://[::1]:0")
    try:
        with Client(daemon.endpoint.removeprefix("tcp://")) as client:
            assert client.ping(timeout=20)
    finally:
        daemon.kill()


def test_a_name_whose_first_address_leads_nowhere(shared_daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    port = shared_daemon.endpoint.rpartition(":")[2]
    with named(monkeypatch, "192.0.2.77", "127.0.0.1"), Client(f"tcp://two.test:{port}") as client:
        assert client.ping(timeout=20)


@pytest.mark.parametrize("hosts", [("127.0.0.1",), ("192.0.2.77", "127.0.0.1")])
def test_a_daemon_that_starts_after_its_name_was_looked_up(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...]
) -> None:
    port = free_port()
    with named(monkeypatch, *hosts), Client(f"tcp://late.test:{port}") as client:
        with pytest.raises(NoServer):
            client.ping(timeout=5)
        daemon = Daemon(tmp_path, "--endpoint", f"tcp://127.0.0.1:{port}")
        try:
            assert client.ping(timeout=20)
        finally:
            daemon.kill()


def test_a_name_that_nobody_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        named(monkeypatch),
        Client("tcp://no-such-host.test:5757") as client,
        pytest.raises(NoServer, match=r"no-such-host\.test:5757 cannot be looked up: Name or service not known"),
    ):
        client.ping()


def test_a_name_server_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may in a moment: the call waits for its time, and says what there was then."""
    asked = 0

    def look_up(*_: object, **__: object) -> None:
        nonlocal asked
        asked += 1
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with Client("tcp://later.test:5757") as client, pytest.raises(NoServer, match="cannot be looked up: Temporary"):
        client.ping(timeout=2)
    assert asked > 1


def test_a_look_up_that_hangs_holds_up_neither_the_caller_nor_its_close(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(30) and [])
    try:
        with Client("tcp://slow.test:5757") as client, pytest.raises(NoServer, match="was not looked up in time"):
            client.ping(timeout=1)
    finally:
        over.set()
