"""Connections that are held while much is to be read, with real sockets: who waits, and for how long."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from protocol.sockets import FIRST_RECEIVE_BYTES, RECEIVE_BYTES
from server.gateway import connections, holding
from server.gateway.connections import Connections
from server.gateway.descriptors import hold, origin, release

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can hold a connection")
SO_GET_FILTER = 26
LARGE = 24_000
"""Bytes of which empty parts take 3 ms."""


def is_held(ours: socket.socket) -> bool:
    return bool(ours.getsockopt(socket.SOL_SOCKET, SO_GET_FILTER, 64))


class Place:
    """The table of connections, and both ends of each."""

    def __init__(self) -> None:
        self.known = Connections(encrypted=False)
        self._open = ExitStack()
        self.listener = self._open.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        self.known.listening(self.listener.fileno())

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return the peer's end of a new connection, and ours."""
        peer = self._open.enter_context(socket.create_connection(self.listener.getsockname(), timeout=5))
        ours = self._open.enter_context(self.listener.accept()[0])
        ours.settimeout(5)
        self.known.opened(ours.fileno())
        self.known.welcome()
        return peer, ours

    def sending(self, count: int = LARGE, *, proven: bool = False) -> tuple[socket.socket, socket.socket]:
        """Return a new connection of which that many bytes have come in."""
        peer, ours = self.connect()
        if proven:
            self.known.proved(ours.fileno())
        self.more(peer, ours, count)
        return peer, ours

    def more(self, peer: socket.socket, ours: socket.socket, count: int) -> None:
        peer.sendall(bytes(count))
        while count:
            count -= len(ours.recv(count))

    def look(self, *, waiting: bool = False) -> list[int]:
        self.known._looked = 0.0  # whatever the time
        return self.known.cut(lambda: waiting)

    def strike(self, ours: socket.socket) -> None:
        """Let a connection have sent a message of very many parts."""
        self.known.shut_sender(ours.fileno(), [0], 1000)

    def close(self) -> None:
        self._open.close()


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A place where reading may take 5 ms, and nobody is let go for having waited for long."""
    monkeypatch.setattr(holding, "AHEAD_S", 0.005)
    monkeypatch.setattr(holding, "LONGEST_S", 60.0)
    monkeypatch.setattr(holding, "BEHIND_S", 60.0)
    monkeypatch.setattr(connections, "HEARTBEAT_BYTES_S", 0)
    with closing(Place()) as place:
        yield place


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_a_held_peer_sends_comes_when_it_is_let_go_and_its_end_at_once(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"{host} is not there")
    with (
        listener,
        socket.create_connection(listener.getsockname()[:2], timeout=5) as peer,
        listener.accept()[0] as ours,
    ):
        ours.settimeout(5)
        hold(ours)
        peer.sendall(b"held")
        ours.sendall(b"answer")
        assert peer.recv(10) == b"answer", "what goes out is not held"
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(10)
        ours.settimeout(5)
        release(ours)
        assert ours.recv(10) == b"held"
        hold(ours)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with pytest.raises(ConnectionResetError):
            ours.recv(10)


def test_new_connections_wait_while_much_of_ended_ones_is_to_be_read(place: Place) -> None:
    peer, ours = place.sending()
    place.look(waiting=True)
    place.known.closed(ours.fileno())
    place.look(waiting=True)
    peer, new = place.connect()
    assert is_held(new)
    place.look(waiting=True)
    assert is_held(new)
    place.look(waiting=False)
    assert not is_held(new)
    peer.sendall(b"x")
    assert new.recv(1) == b"x"
    assert not is_held(place.connect()[1])


def test_new_connections_are_held_before_anything_of_them_comes_in(place: Place) -> None:
    """What is there when ZeroMQ takes a connection, it reads before anybody can say no."""
    _, ours = place.sending()
    place.look(waiting=True)
    place.known.closed(ours.fileno())
    place.look(waiting=True)
    peer = socket.create_connection(place.listener.getsockname(), timeout=5)
    with peer, place.listener.accept()[0] as new:
        assert is_held(new), "before it is known"
        place.look(waiting=False)
        place.known.opened(new.fileno())
        place.known.welcome()
        assert not is_held(new), "it came in time"
        place.known.closed(new.fileno())


def test_of_first_messages_that_are_not_finished_the_oldest_goes_on(place: Place) -> None:
    sending = [place.sending()[1] for _ in range(3)]
    place.look()
    assert [is_held(ours) for ours in sending] == [False, True, True], "each may take 3 ms, of 5"
    place.known.closed(sending[0].fileno())
    place.look()
    assert [is_held(ours) for ours in sending[1:]] == [False, True]


def test_a_crowd_that_only_shakes_hands_is_not_held(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "AHEAD_S", 0.001)
    crowd = [place.sending(600)[1] for _ in range(30)]
    place.look()
    assert not any(map(is_held, [*crowd, place.connect()[1]]))


def test_a_crowd_that_was_held_is_let_go_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, the last of thousands would be cut for the time that its handshake takes."""
    place.known._left = 10_000
    place.look(waiting=True)
    crowd = [place.connect()[1] for _ in range(50)]
    assert all(map(is_held, crowd))
    monkeypatch.setattr(holding, "AHEAD_S", 0.04)
    place.look()
    assert not any(map(is_held, crowd))


def test_large_requests_of_those_that_are_known_are_not_held(place: Place) -> None:
    sending = [place.sending(proven=True)[1] for _ in range(3)]
    place.look()
    assert not any(map(is_held, sending))


def test_those_that_send_more_than_can_be_read_are_held_until_it_is(place: Place) -> None:
    """So that ZeroMQ does not fill the memory with it."""
    _, ours = place.sending(proven=True)
    for _ in range(10):
        place.known.delivered(ours.fileno(), [2])
    _, other = place.sending(100, proven=True)
    place.look(waiting=True)
    assert is_held(ours) and not is_held(other)
    for _ in range(6000):
        place.known.delivered(ours.fileno(), [2])
    place.look(waiting=True)
    assert not is_held(ours)


def test_who_waits_for_long_is_let_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    sending = [place.sending()[1] for _ in range(3)]
    place.look()
    monkeypatch.setattr(holding, "LONGEST_S", -1.0)
    place.look()
    assert [is_held(ours) for ours in sending] == [False, False, True], "one at a time"
    place.look()
    assert not is_held(sending[1]), "it stays so for a moment"


def test_an_address_that_has_sent_very_many_parts_is_not_trusted_with_as_much(place: Place) -> None:
    peer, known = place.sending(100, proven=True)
    _, hostile = place.sending(10_000)
    place.strike(hostile)
    _, later = place.sending(LARGE)
    small_peer, small = place.sending(1000)
    place.more(peer, known, LARGE)
    assert place.look() == [later.fileno()]
    assert not is_held(known) and not is_held(small), "who was known before, and who sends little"
    small_peer.sendall(b"x")
    assert small.recv(1) == b"x"


def test_who_was_sending_much_from_there_is_held_but_not_cut(place: Place) -> None:
    sending = [place.sending(proven=True)[1] for _ in range(3)]
    place.look()
    _, hostile = place.sending(10_000)
    place.strike(hostile)
    place.known.closed(hostile.fileno())
    assert place.look() == [] and [is_held(ours) for ours in sending] == [False, True, True]


def test_nor_when_its_connection_had_ended_by_then(place: Place) -> None:
    _, hostile = place.sending(10_000)
    place.look(waiting=True)
    place.known.closed(hostile.fileno())
    place.strike(hostile)
    _, later = place.sending(LARGE)
    assert later.fileno() in place.look()


def test_nor_after_another_message_if_one_of_its_connections_began_so(place: Place) -> None:
    _, hostile = place.sending(10_000, proven=True)
    place.strike(hostile)
    _, later = place.sending(LARGE, proven=True)
    assert place.look() == [later.fileno()]


def test_it_is_trusted_again_after_a_while(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "REMEMBERED_S", -1.0)
    _, hostile = place.sending(10_000)
    place.strike(hostile)
    place.look()
    place.sending(LARGE)
    assert place.look() == []


def test_only_so_many_addresses_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "MAX_REMEMBERED", 2)
    table = holding.Holding(2)
    for each in "abac":
        table.strike(holding.Traffic(origin=each), ())
    assert list(table._offenders) == ["a", "c"]


def test_the_system_buffers_little_of_a_connection_before_its_first_message(place: Place) -> None:
    place.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, FIRST_RECEIVE_BYTES)
    _, ours = place.connect()

    def buffered() -> int:
        return ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # Linux says twice as much

    assert buffered() == FIRST_RECEIVE_BYTES
    place.known.proved(ours.fileno())
    assert buffered() == RECEIVE_BYTES


def test_all_addresses_of_a_subscriber_are_one() -> None:
    class Named:
        family = socket.AF_INET6

        def __init__(self, host: str) -> None:
            self._host = host

        def getpeername(self) -> tuple[str, int, int, int]:
            return self._host, 1, 0, 0

    def of(host: str) -> str:
        return origin(Named(host))  # type: ignore[arg-type]  # all that is asked of it

    assert of("2001:db8:1:2::1") == of("2001:db8:1:2:3::4") != of("2001:db8:1:3::1")
    assert of("fe80::1%eth0") == of("fe80::2%eth0") == "fe80::/64"
    assert of("::ffff:10.0.0.1") != of("::ffff:10.0.0.2")
