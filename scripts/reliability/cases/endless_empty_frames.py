"""A message that never ends, of empty frames: two bytes each on their way, many more where they are kept."""

from __future__ import annotations

from scripts.reliability.raw import hung_up, sent, shaken
from scripts.reliability.zmtp import MORE, frame

PART = frame(b"", MORE) * 65_536


def attack(host: str, port: int) -> None:
    with shaken(host, port) as peer:
        for _ in range(512):  # 64 MiB
            if not sent(peer, PART):
                break
        hung_up([peer], 2)
