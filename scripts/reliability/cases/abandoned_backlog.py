"""More requests than ZeroMQ keeps for the gateway, with heartbeats between them, on a connection that is reset at once.

Its reading side has stopped by then; a libzmq that still wants to answer a heartbeat there ends its process.
"""

from __future__ import annotations

import socket
import struct

from protocol import codec, messages as m
from scripts.reliability.raw import sent, shaken
from scripts.reliability.zmtp import COMMAND, frame

REQUESTS = [codec.encode(m.Models(id=1, deadline_ms=1000)), codec.encode(m.Ping(id=2)), b"\x91" * 1000]
HEARTBEAT = frame(b"\x04PING\0\0", COMMAND)


def attack(host: str, port: int) -> None:
    for request in REQUESTS * 2:
        with shaken(host, port) as peer:
            sent(peer, (frame(request) + HEARTBEAT) * 1000)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its end is a reset
