"""100 connections that declare a frame of the greatest length allowed, send half of it, and wait."""

from __future__ import annotations

import struct

from protocol.codec import MAX_REQUEST_BYTES
from scripts.reliability.raw import hung_up, sent, shaken
from scripts.reliability.zmtp import LONG

WAITS = True


def attack(host: str, port: int) -> None:
    peers = [shaken(host, port) for _ in range(100)]
    for peer in peers:
        assert sent(peer, struct.pack(">BQ", LONG, MAX_REQUEST_BYTES) + bytes(MAX_REQUEST_BYTES // 2))
    hung_up(peers, 20)
