"""The TCP connections of the gateway's socket: which there are, and that none fills the memory with a message that never ends.

ZeroMQ hands on a message of several frames when its last has come, and bounds the frames' sizes, not their number. So what
the system has received on each connection is compared with what has come out of it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from dataclasses import dataclass, field

MAX_UNFINISHED_BYTES = 4 << 20
"""A few times the largest request."""
MAX_BACKLOG_BYTES = 32 << 20
"""The same while messages wait to be read, which are no fault of their sender's."""
FRAME_BYTES = 64
"""What encryption and framing add to a frame, at most."""
HEARTBEAT_BYTES_S = 256
"""Heartbeats of both sides, with as much to spare."""
LOOK_S, LOOK_EACH_S = 0.010, 2e-5
"""How often at most the connections are looked at: a tenth of the time with many."""
BYTES_RECEIVED = struct.Struct("@128xQ")
"""tcpi_bytes_received in struct tcp_info (linux/tcp.h; in its place since Linux 4.1)."""


@dataclass
class _Traffic:
    began: float = field(default_factory=time.monotonic)
    delivered: int = 0


class Connections:
    """Used by the gateway's thread only."""

    def __init__(self) -> None:
        self._all: dict[int, _Traffic] = {}
        self._looked = 0.0

    def __contains__(self, fd: int) -> bool:
        return fd in self._all

    def __len__(self) -> int:
        return len(self._all)

    def opened(self, fd: int) -> None:
        self._all[fd] = _Traffic()

    def closed(self, fd: int) -> None:
        self._all.pop(fd, None)

    def delivered(self, fd: int, frames: int, size: int) -> None:
        """A message has come out of it, `size` bytes in all."""
        if traffic := self._all.get(fd):
            traffic.delivered += size + frames * FRAME_BYTES

    def cut(self, *, behind: bool) -> list[int]:
        """Cut off those that have sent too much that is no message; return their file descriptors. `behind`: messages wait to be read."""
        now, cut = time.monotonic(), list[int]()
        if now < self._looked + LOOK_S + len(self._all) * LOOK_EACH_S:
            return cut
        self._looked = now
        for fd, traffic in self._all.items():
            unfinished = _bytes_received(fd) - traffic.delivered - HEARTBEAT_BYTES_S * (now - traffic.began)
            if unfinished > (MAX_BACKLOG_BYTES if behind else MAX_UNFINISHED_BYTES):
                _shut(fd)
                cut.append(fd)
        return cut


def _bytes_received(fd: int) -> int:
    """What the system has received on a connection; 0 where it does not tell."""
    if not hasattr(socket, "TCP_INFO"):
        return 0
    with contextlib.suppress(OSError):  # it has just been closed
        peer = socket.socket(fileno=fd)
        try:
            info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_RECEIVED.size)
        finally:
            peer.detach()
        if len(info) == BYTES_RECEIVED.size:
            return int(BYTES_RECEIVED.unpack(info)[0])
    return 0


def _shut(fd: int) -> None:
    """ZeroMQ sees its end, and frees what it has kept."""
    with contextlib.suppress(OSError):
        peer = socket.socket(fileno=fd)
        try:
            peer.shutdown(socket.SHUT_RDWR)
        finally:
            peer.detach()
