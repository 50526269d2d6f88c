"""The peers' socket, with real connections: what is read of a message, and who is refused."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import zmq

from protocol import codec, messages as m, sockets
from protocol.keys import CurveKeys, write_public
from scripts.reliability import zmtp
from server.config import Config
from server.gateway import connections, front
from server.gateway.auth import Guard, Keyring
from server.gateway.front import Front, Message
from server.gateway.parts import Skip
from server.gateway.sessions import Sessions

PING = codec.encode(m.Ping(id=1))
OLD = {
    "ZMTP 1": b"\x01\x00",
    "ZMTP 2": b"\xff\0\0\0\0\0\0\0\1\x7f\x01\x05\0\0",
}
"""Greetings of a DEALER without a name of its own."""

ASKERS = """
import sys
import zmq
from protocol import codec, messages as m, sockets
from protocol.keys import CurveKeys

endpoint, server_key, secret = sys.argv[1:]
context = zmq.Context()
for line in sys.stdin:
    if line == "0\\n":
        context.destroy(linger=5000)
        context = zmq.Context()
    else:
        socket = sockets.dealer(context, 1 << 20)
        sockets.use_curve(socket, server_key, CurveKeys.of(secret))
        socket.immediate = False
        socket.connect(endpoint)
        socket.send(codec.encode(m.Ping(id=int(line))))
context.destroy()
"""


class Place:
    """The gateway's socket, and what receives from it."""

    def __init__(self, key: CurveKeys | None = None, keyring: Keyring | None = None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._guard = Guard(self._context, keyring)
        self.socket, monitor = sockets.gateway_socket(self._context, "tcp://127.0.0.1:*", key)
        self.endpoint = sockets.endpoint_of(self.socket)
        self.sessions = Sessions(Config(), self.socket)
        self.front = Front(self.socket, monitor, self.sessions, self._guard, encrypted=key is not None)

    def turn(self) -> list[Message]:
        """Return what one turn brings, when there is something."""
        assert self.socket.poll(20_000)
        return list(self.front.receive(64))

    def until(self, true: Callable[[], bool]) -> None:
        """Do all that the gateway does with connections until something is true, and read no message."""
        give_up = time.monotonic() + 30
        while not true():
            assert time.monotonic() < give_up
            self.front.sockets[1].poll(10)
            self.front.watch()
            self._guard.answer(self.front.watch)
            self.front.cut()  # and lets go of those that came while nobody looked

    def close(self) -> None:
        self._guard.close()
        self.front.close()
        self._context.term()


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


def test_a_message_of_many_parts_is_read_in_turns_and_its_sender_cut(place: Place) -> None:
    count = 3 * front.TURN_FRAMES + 500
    with zmtp.connect(place.endpoint) as hostile, zmtp.connect(place.endpoint) as other:
        hostile.sendall(zmtp.frame(b"x", zmtp.MORE) * (count - 1) + zmtp.frame(b"x"))
        turns = 0
        while not turns or place.front._unread.frames:
            assert place.turn() == []
            unread = place.front._unread
            turns += 1
            assert unread.others <= turns * front.TURN_FRAMES and unread.other_bytes == unread.others
            assert len(unread.frames) <= 1 + front.MAX_FRAMES, "no more of it is kept"
        assert turns == 4
        assert hostile.recv(1) in (b"", b"\4"), "hung up on, with at most a heartbeat before"
        other.sendall(zmtp.frame(PING))
        (message,) = place.turn()
        assert message.frame == PING


def test_the_log_says_whose_connection_was_cut(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "MAX_SHAKING", 0)
    monkeypatch.setattr(connections, "SHAKING_S", -1.0)
    with zmtp.connect(place.endpoint):
        place.until(lambda: bool(caplog.messages))
    assert caplog.messages == ["cut 127.0.0.1: it sent much without finishing a message, or nothing"]


def test_whose_handshake_is_done_is_not_cut_for_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: ZeroMQ's event about a handshake does not say whose it was."""
    monkeypatch.setattr(connections, "MAX_SHAKING", 1)
    monkeypatch.setattr(connections, "SHAKING_S", -1.0)
    with ExitStack() as stack:
        for _ in range(3):
            peer = stack.enter_context(zmtp.connect(place.endpoint))
            peer.sendall(zmtp.frame(PING))
            assert len(place.turn()) == 1
        place.front._connections._looked = 0.0
        place.front.cut()
        assert not any(traffic.shut for traffic in place.front._connections._all.values())


@pytest.mark.parametrize("way", ["many at a time", "one by one"])
def test_parts_are_skipped_to_the_end_of_their_message_alone(way: str) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    taker, giver = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    taker.bind("inproc://parts")
    giver.connect("inproc://parts")
    skip = Skip() if way == "many at a time" else Skip._one_by_one
    for count in (1, 2, 499, 500, 501, 1000, 3000):
        giver.send_multipart([b"first", *[bytes(i % 300) for i in range(count)]])
        giver.send(b"next")
        assert taker.recv() == b"first"
        read = size = 0
        more = True
        while more:
            skipped = skip(taker, 1000)
            assert skipped.number <= 1000
            read, size = read + skipped.number, size + skipped.size
            more = skipped.more
        assert (read, size) == (count, sum(i % 300 for i in range(count)))
        assert taker.recv() == b"next" and not taker.rcvmore
    taker.close()
    giver.close()
    context.term()


@pytest.mark.parametrize("version", OLD)
def test_a_peer_of_an_old_zmtp_is_told_so_once(place: Place, version: str) -> None:
    """Its connection is not known, so it could be neither bounded nor cut."""
    where = urlsplit(place.endpoint)
    head = bytes([0, len(PING)]) if version == "ZMTP 2" else bytes([len(PING) + 1, 0])
    message = head + PING
    with socket.create_connection((where.hostname, where.port), timeout=20) as peer:
        peer.sendall(OLD[version] + message)
        assert place.turn() == []
        said = b""
        while b"ZMTP 3" not in said:
            more = peer.recv(4096)
            assert more, f"hung up after {said!r}"
            said += more
        peer.sendall(message)
        assert place.turn() == [], "it is not listened to"
        assert place.sessions.outcomes["refused", "version_mismatch"] == 1


@contextmanager
def askers(place: Place, server_key: str, key: CurveKeys) -> Iterator[Callable[[int], None]]:
    """Give what opens a connection that asks a question of that id, or closes all: id 0.

    In a process of its own: in this one the peers' descriptors would be among those that new connections can get.
    """
    command = [sys.executable, "-c", ASKERS, place.endpoint, server_key, key.secret]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin
        to_it = process.stdin

        def ask(request: int) -> None:
            to_it.write(f"{request}\n")
            to_it.flush()

        yield ask
        to_it.close()


def test_with_keys_what_an_ended_connection_has_left_is_not_the_next_ones(tmp_path: Path) -> None:
    """Which has its descriptor: the numbers that connections get as they are admitted tell them apart."""
    server, client = CurveKeys.new(), CurveKeys.new()
    write_public(tmp_path / "keys" / "a.pub", client.public, "generate")
    with closing(Place(server, Keyring(tmp_path / "keys"))) as place, askers(place, server.public, client) as ask:
        ask(1)
        place.until(lambda: bool(place.socket.poll(0)))
        (fd,) = place.front._connections._all
        ask(0)
        place.until(lambda: place.front.ended == 1)
        later: list[int] = []
        while fd not in place.front._connections:  # a file that is open for a moment, a key's say, can have it instead
            later.append(len(later) + 2)
            ask(later[-1])
            place.until(lambda: len(place.front._connections) == len(later) == place.front._guard.admitted - 1)
        messages: list[Message] = []
        while len(messages) < len(later):
            messages += place.turn()
        assert sorted(codec.decode_request(message.frame).id for message in messages) == later
        assert {message.user for message in messages} == {client.public}
        assert [codec.decode_request(message.frame).id for message in messages if message.fd == fd] == later[-1:]
