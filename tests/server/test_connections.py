"""Table of connections, with real sockets: how much waits of each, and of those that have ended."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from server.gateway import connections, holding
from server.gateway.connections import Connections
from tests.server.test_holding import is_held

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much was received")


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
        assert looked(known, waiting=True) == [], "too few show the size of its frames yet"
        for _ in range(100):
            known.delivered(ours.fileno(), [0, 0, 0])
        assert looked(known, waiting=True) == [ours.fileno()], "over 2,500 of two bytes"
        assert peer.recv(1) == b"", "it was hung up on"


def test_in_a_crowd_fewer_frames_are_enough_to_judge_by(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over many connections a flood fills the memory before 300 messages of each are read."""
    monkeypatch.setattr(connections, "MAX_BACKLOG_FRAMES", 100)
    known = Connections(encrypted=False)
    with fallen_behind(known, listener, [0] * 8) as (_, ours):
        assert looked(known, waiting=True) == []
        for _ in range(2):
            known.delivered(ours.fileno(), [0] * 8)
        assert looked(known, waiting=True) == [], "24 frames are too few to judge by"
        monkeypatch.setattr(connections, "CROWDED_BYTES", 4096)
        assert looked(known, waiting=True) == [ours.fileno()]


def test_a_connection_is_cut_once(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeroMQ says a moment later that it has ended; meanwhile each look would write its line into the log."""
    monkeypatch.setattr(connections, "SILENT_S", -1.0)
    known = Connections(encrypted=False)
    peer, ours = pair(listener)
    with peer, ours:
        known.opened(ours.fileno())
        assert looked(known, waiting=False) == [ours.fileno()]
        assert looked(known, waiting=False) == []


@contextmanager
def reused(known: Connections, listener: socket.socket) -> Iterator[tuple[int, socket.socket]]:
    """A connection that has ended, and whose descriptor another one has: ours, and its peer. Neither is known yet."""
    former, ours = pair(listener)
    with former:
        fd = ours.fileno()
        known.opened(fd)
        peer = socket.create_connection(listener.getsockname(), timeout=5)
        ours.close()
        with peer, listener.accept()[0] as later:
            assert later.fileno() == fd, "the system gives the lowest descriptor that is free"
            yield fd, peer


def still_there(fd: int, peer: socket.socket) -> bool:
    ours = socket.socket(fileno=fd)
    try:
        ours.send(b"x")
        return peer.recv(1) == b"x"
    finally:
        ours.detach()


def test_whoever_has_the_descriptor_of_an_ended_connection_is_not_cut(listener: socket.socket) -> None:
    known = Connections(encrypted=False)
    with reused(known, listener) as (fd, peer):
        assert not known.shut(fd) and still_there(fd, peer)
        known.closed(fd)
        known.opened(fd)
        assert known.shut(fd) and peer.recv(1) == b"", "it is known by now"


def test_nor_when_that_one_was_silent(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SILENT_S", -1.0)
    known = Connections(encrypted=False)
    with reused(known, listener) as (fd, peer):
        assert looked(known, waiting=False) == [] and still_there(fd, peer)


def test_nor_for_a_hostile_message_of_that_one_that_is_read_late(listener: socket.socket) -> None:
    """Its end and the next connection are known by then, and the message comes under the same descriptor."""
    known = Connections(encrypted=False)
    with reused(known, listener) as (fd, peer):
        known.closed(fd)
        known.opened(fd)
        known.shut_sender(fd, [0] * 8, 993)
        assert still_there(fd, peer)
        peer.sendall(bytes(2002))
        ours = socket.socket(fileno=fd)
        ours.recv(2002, socket.MSG_WAITALL)
        ours.detach()
        known.shut_sender(fd, [0] * 8, 993)
        assert peer.recv(1) == b"", "it has sent as much itself"


def test_nor_for_the_many_frames_of_that_one(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a flood has left is read late, under the descriptor of somebody who sends one large request."""
    monkeypatch.setattr(connections, "MAX_BACKLOG_FRAMES", 100)
    known = Connections(encrypted=False)
    with reused(known, listener) as (fd, peer):
        known.closed(fd)
        known.opened(fd)
        ours = socket.socket(fileno=fd)
        peer.sendall(bytes(60_000))
        ours.recv(60_000, socket.MSG_WAITALL)
        for _ in range(1000):
            known.delivered(fd, [0, 0, 0])
        assert looked(known, waiting=True) == [] and still_there(fd, peer)
        assert looked(known, waiting=False) == []
        for _ in range(1000):
            known.delivered(fd, [0, 0, 0])
        peer.sendall(bytes(60_000))
        ours.recv(60_000, socket.MSG_WAITALL)
        ours.detach()
        assert looked(known, waiting=True) == [fd], "all that has come since is its own"


def test_a_file_that_has_the_descriptor_is_left_alone(listener: socket.socket, tmp_path: Path) -> None:
    known = Connections(encrypted=False)
    peer, ours = pair(listener)
    with peer:
        fd = ours.fileno()
        known.opened(fd)
        ours.close()
        with (tmp_path / "file").open("w") as file:
            assert file.fileno() == fd
            assert not known.shut(fd)
            file.write("whole")
        assert (tmp_path / "file").read_text() == "whole"


def test_nobody_is_held_for_one_that_came_and_went_before_it_was_looked_at(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both events of a connection are read at once; by then another one, such as a worker's, has its descriptor."""
    monkeypatch.setattr(holding, "AHEAD_S", -1.0)
    known = Connections(encrypted=False)
    former, ours = pair(listener)
    with former:
        fd = ours.fileno()
        peer = socket.create_connection(listener.getsockname(), timeout=5)
        ours.close()
        with peer, listener.accept()[0] as other:
            assert other.fileno() == fd
            known.opened(fd)
            known.closed(fd)
            known.welcome()
            assert not is_held(other) and still_there(fd, peer)


def test_looking_at_a_connection_leaves_it_as_zeromq_needs_it(listener: socket.socket) -> None:
    """One that blocks would hold up ZeroMQ's thread, and with it everybody."""
    known = Connections(encrypted=False)
    peer, ours = pair(listener)
    with peer, ours:
        os.set_blocking(ours.fileno(), False)
        known.opened(ours.fileno())
        looked(known, waiting=False)
        assert not os.get_blocking(ours.fileno())
        assert known.shut(ours.fileno())
        assert not os.get_blocking(ours.fileno())


def test_what_zeromq_has_read_still_counts_as_come(listener: socket.socket) -> None:
    known = Connections(encrypted=False)
    peer, ours = pair(listener)
    with peer, ours, closing(known.arrivals):
        known.opened(ours.fileno())
        assert known.at_rest() is False, "its handshake is not done"
        known.delivered(ours.fileno(), [1])
        known.arrivals.take()
        assert known.at_rest()
        peer.sendall(bytes(6000))
        rest = 6000
        while rest:
            rest -= len(ours.recv(rest))
        assert not known.at_rest() and known.at_rest(), "it says so once"
        looked(known, waiting=False)
        assert not known.at_rest(), "that was no message"


def test_only_so_many_handshakes_may_take_as_long_as_on_a_slow_line(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_SHAKING", 2)
    known = Connections(encrypted=False)
    with contextlib.ExitStack() as opened:
        pairs = [pair(listener) for _ in range(4)]
        fds = [opened.enter_context(ours).fileno() for _, ours in pairs]
        for (peer, _), fd in zip(pairs, fds, strict=True):
            opened.enter_context(peer)
            known.opened(fd)
        known.delivered(fds[0], [1])
        assert looked(known, waiting=False) == [], "the third has as long as a fast line needs"
        monkeypatch.setattr(connections, "SHAKING_S", -1.0)
        assert looked(known, waiting=False) == [fds[1]], "the oldest of those that are too many"
        known.closed(fds[1])
        assert looked(known, waiting=False) == []
        monkeypatch.setattr(connections, "MAX_SHAKING", 0)
        monkeypatch.setattr(connections, "SHAKEN_S", -1.0)
        assert looked(known, waiting=False) == [], "ZeroMQ has ended those whose handshakes took too long"
