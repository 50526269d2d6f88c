"""Bad networks between a client and a daemon with keys: the right text or a clear error, then a connection again."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol import Client
from protocol.errors import ConnectionFailed, ConnectionLost, ServerStuck
from scripts.daemon import Daemon
from scripts.reliability.proxy import Proxy
from tests.conftest import answers, wait_for
from tests.system.test_keys import Keyed, keyed_daemon

pytestmark = pytest.mark.alone  # what a line does is noticed within seconds
PROMPT: dict[str, Any] = {"prompt": "Shall I compare thee", "max_new_tokens": 300, "seed": 1, "ignore_eos": True}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Keyed]:
    keyed = keyed_daemon(tmp_path_factory.mktemp("keyed"), cache, "--preload", "demo")
    with keyed.client(keyed.owner) as client:
        client.load("demo")
    yield keyed
    keyed.daemon.kill()


@pytest.fixture(scope="module")
def text(keyed: Keyed) -> str:
    """Return the text that the network must not change."""
    with keyed.client(keyed.owner) as client:
        return client.generate(**PROMPT).text


@pytest.fixture
def proxy(keyed: Keyed) -> Iterator[Proxy]:
    with Proxy(keyed.daemon.endpoint) as proxy:
        yield proxy


def connect(proxy: Proxy, keyed: Keyed) -> Client:
    return Client(proxy.endpoint, server_key=keyed.server.public, key=keyed.owner.secret)


def stream(client: Client) -> str:
    return "".join(piece.text for piece in client.stream(**PROMPT))


def test_latency(proxy: Proxy, keyed: Keyed, text: str) -> None:
    proxy.latency = 0.2
    with connect(proxy, keyed) as client:
        assert stream(client) == text
        began = time.monotonic()
        client.ping()
        assert 0.4 < time.monotonic() - began < 1


def test_a_line_of_a_second_that_stalls(proxy: Proxy, keyed: Keyed, text: str) -> None:
    """In the handshake and in mid-stream; the same connection lasts."""
    proxy.latency = 0.5
    proxy.open.clear()
    threading.Timer(1.5, proxy.open.set).start()
    with connect(proxy, keyed) as client:
        assert client.ping(timeout=20), "a call waits for its own time"
        connections = proxy.connections
        pieces = client.stream(**PROMPT)
        texts = [next(pieces).text]
        proxy.open.clear()
        threading.Timer(3, proxy.open.set).start()
        texts += [piece.text for piece in pieces]
        assert "".join(texts) == text
        assert proxy.connections == connections


def test_nobody_is_called_another_server_before_it_has_answered(proxy: Proxy, keyed: Keyed) -> None:
    proxy.latency = 1.0
    with connect(proxy, keyed) as client, pytest.raises(ServerStuck, match="accepts connections but sends nothing"):
        client.ping(timeout=2)


def test_one_byte_at_a_time(proxy: Proxy, keyed: Keyed, text: str) -> None:
    proxy.slice = 1
    with connect(proxy, keyed) as client:
        assert stream(client) == text


def test_little_bandwidth(proxy: Proxy, keyed: Keyed, text: str) -> None:
    proxy.bandwidth, proxy.slice = 50_000, 500
    with connect(proxy, keyed) as client:
        assert stream(client) == text


@pytest.mark.parametrize(
    "count", [1, 9, 10, 11, 12, 33, 63, 64, 65, 100, 200, 255, 256, 300, 333, 400, 500, 1000, 2000, 5000]
)
def test_a_reset_at_any_byte(proxy: Proxy, keyed: Keyed, text: str, count: int) -> None:
    """In the greeting, the handshake, the hello, the stream."""
    proxy.reset_after = count
    with connect(proxy, keyed) as client:
        began = time.monotonic()
        with contextlib.suppress(ConnectionLost):
            assert stream(client) == text
        assert client.ping() and time.monotonic() - began < 5
        assert stream(client) == text
    assert proxy.connections >= 2


def test_resets_in_mid_stream_are_noticed_at_once(proxy: Proxy, keyed: Keyed, text: str) -> None:
    with connect(proxy, keyed) as client:
        pieces = client.stream(**PROMPT | {"max_new_tokens": 1000, "n": 16})
        next(pieces)
        began = time.monotonic()
        proxy.reset()
        with pytest.raises(ConnectionLost, match="this request is lost"):
            list(pieces)
        assert time.monotonic() - began < 2
        assert stream(client) == text
    with keyed.client(keyed.owner) as other:
        wait_for(lambda: other.ping().workers[0].running == 0)


def test_a_black_hole_of_five_seconds(proxy: Proxy, keyed: Keyed, text: str) -> None:
    with connect(proxy, keyed) as client:
        pieces = client.stream(**PROMPT | {"max_new_tokens": 1000, "n": 16})
        next(pieces)
        proxy.open.clear()
        began = time.monotonic()
        with pytest.raises(ConnectionFailed):
            list(pieces)
        assert time.monotonic() - began < 7
        with pytest.raises(ConnectionFailed, match="was cut"):
            client.ping(timeout=1)
        time.sleep(max(0.0, began + 5 - time.monotonic()))
        proxy.open.set()
        wait_for(lambda: answers(client), 5)
        assert stream(client) == text
    with keyed.client(keyed.owner) as other:
        wait_for(lambda: other.ping().workers[0].running == 0)


@pytest.mark.parametrize("skew", [-86_400, 86_400])
def test_clocks_that_differ_by_a_day_change_nothing(tmp_path: Path, cache: Path, skew: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import time\nreal = time.time\ntime.time = lambda: real() + {skew}\n")
    root = Path(__file__).resolve().parents[2]
    daemon = Daemon(
        tmp_path, "--cache-dir", str(cache), "--preload", "demo", PYTHONPATH=os.pathsep.join([str(tmp_path), str(root)])
    )
    with Client(daemon.endpoint) as client:
        client.load("demo")
        assert len(client.generate("x", timeout=5, max_new_tokens=50, ignore_eos=True).ids) == 50
        assert client.ping().uptime_ms < 60_000
    daemon.kill()
