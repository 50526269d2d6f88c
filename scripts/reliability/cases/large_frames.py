"""Whole frames over the limit: the connection is closed."""

from __future__ import annotations

from protocol.codec import MAX_REQUEST_BYTES
from scripts.reliability.raw import hung_up, sent, shaken
from scripts.reliability.zmtp import frame


def attack(host: str, port: int) -> None:
    peers = [shaken(host, port) for _ in range(4)]
    for peer, size in zip(peers, (MAX_REQUEST_BYTES + 1, 300_000, 4 << 20, 16 << 20), strict=True):
        sent(peer, frame(bytes(size)))
    hung_up(peers, 2)
