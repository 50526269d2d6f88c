"""The TCP connections of the gateway's socket: which there are, and that none fills the memory with what is no message.

ZeroMQ hands on a message of several frames when its last has come, and bounds the frames' sizes, not their number; nor does it
bound how many messages wait here (see sockets.gateway_socket). So what the system has received on each connection is compared
with what has come out of it. What it tells of that is Linux's; elsewhere nobody is cut.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from protocol.sockets import CURVE_BYTES

MAX_UNFINISHED_BYTES = 384 << 10
"""Half as much again as the largest request. An empty frame has two bytes there, and 64 in the memory."""
MAX_BACKLOG_BYTES, MAX_BACKLOG_FRAMES = 16 << 20, 20_000
"""The same while messages wait to be read, which may be its own; how many frames these are is told by the size of those read last."""
BEHIND_BYTES, LEAST_JUDGED = 4096, 300
"""From so much on frames are judged by those that were read, which have to be so many: small requests may stand before large ones."""
MAX_LEFT_FRAMES = 400_000
"""ZeroMQ hands on what a connection sent also after its end. Where so much of that waits, which takes a second or two to read, nobody new is let in."""
SILENT_S = 5.0
"""A peer answers heartbeats each second; one that says nothing for so long speaks another protocol."""
SHORT, LONG = 2, 9
"""What ZMTP adds to a frame of up to 255 bytes, and to a longer one (https://rfc.zeromq.org/spec/37/)."""
HEARTBEAT_BYTES_S = 256
"""Heartbeats of both sides, with as much to spare."""
NEWER = 0.05
LOOK_S, LOOK_EACH_S = 0.002, 3e-5
"""How often at most the connections are looked at: a tenth of the time with many."""
BYTES_RECEIVED = struct.Struct("@128xQ")
"""tcpi_bytes_received in struct tcp_info (linux/tcp.h; in its place since Linux 4.1)."""
INT = struct.Struct("@i")


@dataclass
class _Traffic:
    """`level` rises with what is received, and falls with what is delivered: bytes that are no message yet."""

    identity: object = None
    """Tells this connection from a later one, or a file, that has the same descriptor."""
    received: int = 0
    delivered: int = 0
    """Since the last look."""
    level: float = 0.0
    frame: float = math.inf
    """What its frames have on the wire: a moving average since it fell behind."""
    frames: int = 0
    """Delivered since then."""
    looked: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    """When something was last received."""

    def is_too_much(self, *, waiting: bool) -> bool:
        if waiting:
            many = self.frames > LEAST_JUDGED and self.level / self.frame > MAX_BACKLOG_FRAMES
            return self.level > MAX_BACKLOG_BYTES or many
        return self.level > MAX_UNFINISHED_BYTES


class Connections:
    """Used by the gateway's thread only."""

    def __init__(self, *, encrypted: bool) -> None:
        self._added = CURVE_BYTES if encrypted else 0
        self._all: dict[int, _Traffic] = {}
        self._looked = 0.0
        self._left = 0.0
        """Frames of ended connections that wait to be read, about."""
        self._unwanted: list[int] = []

    def __contains__(self, fd: int) -> bool:
        return fd in self._all

    def __len__(self) -> int:
        return len(self._all)

    def opened(self, fd: int) -> None:
        """A connection was made.

        Another may have its descriptor by now. Then its end waits among the events, and `closed` is called before anything
        is cut: so the identity that is read here is the connection's own, or is never used.
        """
        traffic = self._all[fd] = _Traffic()
        with contextlib.suppress(OSError), _same(fd) as peer:
            traffic.identity = _identity(peer)
        if self._left > MAX_LEFT_FRAMES:
            self._unwanted.append(fd)

    def closed(self, fd: int) -> None:
        if traffic := self._all.pop(fd, None):
            self._left += traffic.level / traffic.frame

    def delivered(self, fd: int, sizes: list[int]) -> None:
        """A message has come out of it, with frames of so many bytes."""
        if traffic := self._all.get(fd):
            on_the_wire = self._on_the_wire(sizes)
            traffic.delivered += on_the_wire
            frame = on_the_wire / max(1, len(sizes))
            traffic.frames += len(sizes)
            traffic.frame = frame if traffic.frame == math.inf else traffic.frame + NEWER * (frame - traffic.frame)
        else:
            self._left -= len(sizes)

    def shut(self, fd: int) -> bool:
        """Cut one off: ZeroMQ sees its end, and frees what it has kept. False: it has ended by itself.

        ZeroMQ may have closed the descriptor, and the system may have given it to another peer or to a file. A duplicate
        cannot change hands, so that what is compared is what is shut.
        """
        traffic = self._all.get(fd)
        if traffic is None or traffic.identity is None:
            return False
        with contextlib.suppress(OSError), _same(fd) as peer:
            if _identity(peer) == traffic.identity:
                peer.shutdown(socket.SHUT_RDWR)
                return True
        return False

    def shut_sender(self, fd: int, sizes: list[int]) -> None:
        """Cut off who sent a message with those frames, and nobody who has its descriptor since: who has not sent as much."""
        if sys.platform != "linux" or _bytes_received(fd) >= self._on_the_wire(sizes):
            self.shut(fd)

    def turn_away(self) -> None:
        """Cut off those that were made while much of ended connections waited. Called when no event is left to read."""
        for fd in self._unwanted:
            self.shut(fd)
        self._unwanted.clear()

    def cut(self, behind: Callable[[], bool]) -> list[int]:
        """Cut off those that have sent too much that is no message, or nothing; return their file descriptors. `behind()`: messages wait to be read."""
        now = time.monotonic()
        if sys.platform != "linux" or now < self._looked + LOOK_S + len(self._all) * LOOK_EACH_S:
            return []
        self._looked = now
        for fd, traffic in self._all.items():
            received = _bytes_received(fd)
            if received != traffic.received:
                traffic.moved = now
            passed = traffic.delivered + HEARTBEAT_BYTES_S * (now - traffic.looked)
            traffic.level = max(0.0, traffic.level + received - traffic.received - passed)
            traffic.received, traffic.delivered, traffic.looked = received, 0, now
            if traffic.level < BEHIND_BYTES:
                traffic.frame, traffic.frames = math.inf, 0
        waiting = behind()  # asked after the measurement, or what has come in between would count as unfinished
        self._left = max(0.0, self._left) if waiting else 0.0
        cut = [
            fd
            for fd, traffic in self._all.items()
            if traffic.is_too_much(waiting=waiting) or now > traffic.moved + SILENT_S
        ]
        return [fd for fd in cut if self.shut(fd)]

    def _on_the_wire(self, sizes: list[int]) -> int:
        """Bytes that frames of those sizes take."""
        return sum(size + self._added + (SHORT if size + self._added < 256 else LONG) for size in sizes)


@contextlib.contextmanager
def _same(fd: int) -> Iterator[socket.socket]:
    """The socket of a descriptor, under another descriptor where the system has duplicates of sockets.

    Not by `socket.dup`, which makes both of them blocking. Raises: OSError if it is none.
    """
    own = os.dup(fd) if os.name == "posix" else fd
    try:
        peer = socket.socket(fileno=own)
    except OSError:
        if own != fd:
            os.close(own)
        raise
    try:
        yield peer
    finally:
        if own == fd:
            peer.detach()
        else:
            peer.close()


def _identity(peer: socket.socket) -> object:
    """What no other socket has, as long as this one is open: its inode, where the system has them, and the peer's address."""
    status = os.fstat(peer.fileno()) if os.name == "posix" else None
    return (status.st_dev, status.st_ino, peer.getpeername()) if status else peer.getpeername()


def _bytes_received(fd: int) -> int:
    """What ZeroMQ has taken from a connection so far; 0 where the system does not tell."""
    if sys.platform == "linux":
        import fcntl
        import termios

        with contextlib.suppress(OSError):  # it has just been closed
            (unread,) = INT.unpack(fcntl.ioctl(fd, termios.FIONREAD, bytes(INT.size)))
            peer = socket.socket(fileno=fd)
            try:
                info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_RECEIVED.size)
            finally:
                peer.detach()
            if len(info) == BYTES_RECEIVED.size:
                return int(BYTES_RECEIVED.unpack(info)[0]) - int(unread)
    return 0
