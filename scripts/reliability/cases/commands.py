"""After the handshake: ZMTP commands that are cut, unknown, too long, or not for this socket."""

from __future__ import annotations

from scripts.reliability.raw import hung_up, sent, shaken
from scripts.reliability.zmtp import COMMAND, MORE, frame

WAITS = True

SAID = [
    frame(b"", COMMAND),
    frame(b"\x04PING", COMMAND),
    frame(b"\x04PING\0", COMMAND),
    frame(b"\x04PING\xff\xff" + b"x" * 16, COMMAND),
    frame(b"\x04PING\0\1" + b"x" * 100_000, COMMAND),
    frame(b"\x04PONG" + b"x" * 100_000, COMMAND),
    frame(b"\x04PONG", COMMAND | MORE),
    frame(b"\x09SUBSCRIBE", COMMAND),
    frame(b"\x09SUBSCRIBE" + b"x" * 1000, COMMAND),
    frame(b"\x06CANCEL", COMMAND),
    frame(b"\x05READY", COMMAND),
    frame(b"\x05ERROR", COMMAND),
    frame(b"\x05ERROR\xff", COMMAND),
    frame(b"\xff", COMMAND),
    frame(b"\x04JOIN\x05group", COMMAND),
    bytes([0xF8, 4]) + b"\x04PIN",
    frame(b"x", MORE) + frame(b"\x04PING\0\1", COMMAND) + frame(b"x"),
]


def attack(host: str, port: int) -> None:
    peers = []
    for said in SAID:
        peers.append(shaken(host, port))
        sent(peers[-1], said * 20)
    hung_up(peers, 20)
