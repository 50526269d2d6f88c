"""Sessions: requests and replies of one peer, without a network."""

from __future__ import annotations

from typing import Any

from protocol import codec, messages as m
from protocol.errors import BadRequest, UnknownModel
from server.config import Config
from server.gateway.sessions import Sessions
from server.link import encode


class Sent:
    """Socket that keeps what is sent."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send_multipart(self, frames: list[bytes], _flags: int) -> None:
        self.frames.append(frames[-1])


def test_what_a_worker_may_say_fits_under_every_clients_id() -> None:
    """Deliver the longest text that a worker can send to the client with the longest id."""
    low, high = 0, codec.MAX_REPLY_BYTES
    while high - low > 1:
        middle = (low + high) // 2
        try:
            encode(m.Tokens(id=1, text="x" * middle, ids=[]))
            low = middle
        except BadRequest:
            high = middle
    socket: Any = Sent()
    sessions = Sessions(Config(), socket)
    entry = sessions.admit(b"peer", 3, [], m.Generate(id=(1 << 63) - 1, prompt="x"), "")
    entry.seq = (1 << 62) - 1
    sessions.reply(entry, m.Tokens(id=1, text="x" * low, ids=[]))
    assert len(socket.frames) == 1 and len(socket.frames[0]) <= codec.MAX_REPLY_BYTES
    sessions.reply(entry, m.Tokens(id=1, text="x" * codec.MAX_REPLY_BYTES, ids=[]))
    refusal = codec.decode_reply(socket.frames[1])
    assert isinstance(refusal, m.Failure) and refusal.id == entry.request.id and refusal.code == "bad_request"
    assert sessions.take_ended_early() == [entry] and not sessions.all_open(), "who works on it hears of its end"


def test_no_failure_steers_a_terminal() -> None:
    """Whatever a message repeats: a name that was asked for, or what a library has said."""
    socket: Any = Sent()
    sessions = Sessions(Config(), socket)
    entry = sessions.admit(b"peer", 3, [], m.Generate(id=1, prompt="x"), "")
    sessions.fail(entry, UnknownModel("no model \x1b[2J\n here"))
    sessions.refuse(b"peer", [], m.Failure(id=None, code="bad_request", message="\x1b]0;title\x07"))
    for frame, message in zip(socket.frames, ("no model \\x1b[2J\\n here", "\\x1b]0;title\\x07"), strict=True):
        failure = codec.decode_reply(frame)
        assert isinstance(failure, m.Failure) and failure.message == message


def test_an_end_of_a_connection_costs_nothing_for_the_others() -> None:
    """A crowd that leaves together would hold everybody up, if each end were looked for among all."""
    socket: Any = Sent()
    sessions = Sessions(Config(), socket)
    for number in range(2000):
        sessions.admit(b"peer %d" % number, number, [], m.Generate(id=1, prompt="x"), "")

    class Counted(dict[bytes, Any]):
        def __iter__(self) -> Any:
            raise AssertionError("all peers were looked through")

        items = keys = values = __iter__

    sessions._peers = Counted(sessions._peers)
    for number in range(2000):
        sessions.drop_fd(number)
    assert not sessions.peers and len(sessions.take_ended_early()) == 2000


def test_a_peer_that_was_given_up_is_listened_to_when_it_connects_again() -> None:
    socket: Any = Sent()
    sessions = Sessions(Config(), socket)
    sessions.admit(b"peer", 3, [], m.Generate(id=1, prompt="x"), "")
    sessions._give_up(b"peer")
    assert sessions.has_given_up(b"peer")
    sessions.drop_fd(4)
    assert sessions.has_given_up(b"peer"), "another connection has ended"
    sessions.drop_fd(3)
    assert not sessions.has_given_up(b"peer")
