"""A message that never ends: large frames with more to come, 64 MiB of them."""

from __future__ import annotations

from scripts.reliability.raw import hung_up, sent, shaken
from scripts.reliability.zmtp import MORE, frame

PART = frame(bytes(65_536), MORE) * 4


def attack(host: str, port: int) -> None:
    with shaken(host, port) as peer:
        for _ in range(256):
            if not sent(peer, PART):
                break
        hung_up([peer], 2)
