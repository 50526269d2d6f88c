"""Sessions: requests and replies of one peer, without a network."""

from __future__ import annotations

from typing import Any

from protocol import codec, messages as m
from protocol.errors import BadRequest
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
