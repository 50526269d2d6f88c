"""A message that never ends, after many that did: having behaved gives no credit."""

from __future__ import annotations

from scripts.reliability.raw import hung_up, sent, shaken
from scripts.reliability.zmtp import MORE, frame

SHORT = (frame(b"", MORE) * 7 + frame(b"")) * 8000
PART = frame(bytes(65_536), MORE) * 4


def attack(host: str, port: int) -> None:
    with shaken(host, port) as peer:
        for _ in range(10):
            if not sent(peer, SHORT):
                break
        for _ in range(256):
            if not sent(peer, PART):
                break
        hung_up([peer], 2)
