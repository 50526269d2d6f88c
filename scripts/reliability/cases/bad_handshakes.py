"""Handshakes that are complete and wrong: mechanisms, roles, commands, socket types, false lengths of properties."""

from __future__ import annotations

import struct

from scripts.reliability.raw import connect, hung_up, sent
from scripts.reliability.zmtp import COMMAND, GREETING, frame, ready

WAITS = True

SAID = [
    GREETING[:12] + b"CURVE".ljust(20, b"\0") + bytes(32),
    GREETING[:12] + b"\xff" * 20 + bytes(32),
    GREETING[:12] + b"PLAIN".ljust(20, b"\0") + b"\1" + bytes(31),
    GREETING[:10] + b"\xff\xff" + GREETING[12:],
    GREETING + frame(b"\x05READY", COMMAND),
    GREETING + frame(b"\x05HELLO" + bytes(200), COMMAND),
    GREETING + frame(b"\x05ERROR\xff" + bytes(20), COMMAND),
    GREETING + frame(b"\xffREADY", COMMAND),
    GREETING + frame(b"", COMMAND),
    GREETING + frame(ready()[2:]),
    GREETING + ready(Socket_Type=b"PUB"),
    GREETING + ready(Socket_Type=b""),
    GREETING + ready(Socket_Type=b"X" * 200_000),
    GREETING + frame(b"\x05READY\x0bSocket-Type" + struct.pack(">I", 2**32 - 1) + b"DEALER", COMMAND),
    GREETING + frame(b"\x05READY\xffSocket-Type", COMMAND),
    GREETING + frame(b"\x05READY" + b"\x01x\0\0\0\0" * 30_000, COMMAND),
    GREETING + ready(Identity=b"\0" * 255),
    GREETING + ready(Identity=b"x" * 70_000),
]


def attack(host: str, port: int) -> None:
    peers = []
    for said in SAID:
        peers.append(connect(host, port))
        sent(peers[-1], said)
    hung_up(peers, 20)
