"""What is known of connections, with real sockets: how much waits of each, and of those that have ended."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from server.gateway import connections
from server.gateway.connections import Connections

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what was received")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def pair(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    peer = socket.create_connection(listener.getsockname(), timeout=5)
    ours, _ = listener.accept()
    ours.settimeout(5)
    return peer, ours


def looked(known: Connections, *, waiting: bool) -> list[int]:
    known._looked = 0.0  # whatever the time
    return known.cut(lambda: waiting)


@contextmanager
def fallen_behind(
    known: Connections, listener: socket.socket, sizes: list[int]
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection of which 6,000 bytes have come, and one message has been read."""
    peer, ours = pair(listener)
    with peer, ours:
        known.opened(ours.fileno())
        peer.sendall(bytes(6000))
        rest = 6000
        while rest:
            rest -= len(ours.recv(rest))
        known.delivered(ours.fileno(), sizes)
        yield peer, ours


def test_a_backlog_of_tiny_frames_is_judged_by_those_that_were_read(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_BACKLOG_FRAMES", 100)
    known = Connections(encrypted=False)
    with fallen_behind(known, listener, [0, 0, 0]) as (peer, ours):
        assert looked(known, waiting=True) == [], "too few tell the size of its frames yet"
        for _ in range(100):
            known.delivered(ours.fileno(), [0, 0, 0])
        assert looked(known, waiting=True) == [ours.fileno()], "over 2,500 of two bytes"
        assert peer.recv(1) == b"", "it was hung up on"


def test_nobody_new_is_let_in_while_much_of_ended_connections_waits(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_LEFT_FRAMES", 100)
    known = Connections(encrypted=False)
    with fallen_behind(known, listener, [0]) as (_, ours):
        looked(known, waiting=True)
        known.closed(ours.fileno())
    refused, ours = pair(listener)
    with refused, ours:
        known.opened(ours.fileno())
        assert refused.recv(1) == b""
        known.closed(ours.fileno())
    for _ in range(1000):
        known.delivered(-1, [0, 0, 0, 0])
    peer, ours = pair(listener)
    with peer, ours:
        known.opened(ours.fileno())
        ours.send(b"x")
        assert peer.recv(1) == b"x", "4,000 frames are more than were left"


def test_once_nothing_waits_nothing_is_left(listener: socket.socket) -> None:
    known = Connections(encrypted=False)
    known._left = 1e9
    assert looked(known, waiting=False) == []
    peer, ours = pair(listener)
    with peer, ours:
        known.opened(ours.fileno())
        ours.send(b"x")
        assert peer.recv(1) == b"x"
