"""Peers that take the routing id of another: what they send may never be read, and they leave in the middle of it."""

from __future__ import annotations

import contextlib
import socket
import struct

from scripts.reliability.raw import sent, shaken
from scripts.reliability.zmtp import frame

LEAKS = True
WAITS = True
"""libzmq never frees what it did not read of such a peer (docs/RELIABILITY.md)."""
LARGE, SMALL = [frame(bytes(200_000))] * 30, [frame(b"x") * 2000]


def attack(host: str, port: int) -> None:
    with shaken(host, port, Identity=b"mine") as first:
        for parts in (LARGE,) * 4 + (SMALL,) * 8:
            with shaken(host, port, Identity=b"mine") as other:
                with contextlib.suppress(TimeoutError):  # what nobody reads fills the buffers
                    for part in parts:
                        if not sent(other, part, 0.2):
                            break
                other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its end is a reset
        for _ in range(2):
            assert first.recv(1000), "the gateway is gone"  # its heartbeats, one a second
