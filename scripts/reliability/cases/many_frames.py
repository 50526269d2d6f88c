"""Messages of very many small frames, and of as many empty ones: no envelope is like that."""

from __future__ import annotations

from scripts.reliability.raw import sent, shaken
from scripts.reliability.zmtp import MORE, frame

MESSAGES = [
    frame(b"x", MORE) * 5000 + frame(b"x"),
    frame(b"x" * 100, MORE) * 20_000 + frame(b"x"),
    frame(b"", MORE) * 50_000 + frame(b""),
    frame(b"", MORE) * 150_000 + frame(b""),
]


def attack(host: str, port: int) -> None:
    for message in MESSAGES:
        with shaken(host, port) as peer:
            sent(peer, message)
