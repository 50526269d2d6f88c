"""Frames that declare a giant length, before and after the handshake, and do not send it."""

from __future__ import annotations

import struct

from scripts.reliability.raw import connect, hung_up, sent, shaken
from scripts.reliability.zmtp import COMMAND, GREETING, LONG, MORE

SIZES = [262_145, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def attack(host: str, port: int) -> None:
    peers = []
    for size in SIZES:
        for flags in (0, MORE, COMMAND):
            head = struct.pack(">BQ", flags | LONG, size)
            peers += [shaken(host, port), connect(host, port)]
            sent(peers[-2], head + b"x" * 1000)
            sent(peers[-1], GREETING + head + b"x" * 1000)
    hung_up(peers, 2)
