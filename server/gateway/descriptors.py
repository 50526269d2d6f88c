"""What the system says of a connection by its descriptor, and how one is held.

A connection that is held stays open, and its end is noticed, but nothing that its peer sends comes in: a filter of the
system (SO_ATTACH_FILTER) drops each segment that carries data, and the peer's system sends it again later. ZeroMQ's
own bound, RCVHWM, cannot be used (see sockets.gateway_socket). Only Linux can do that, and says how much was received.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import sys
from collections.abc import Iterator

BYTES_RECEIVED = struct.Struct("@128xQ")
"""tcpi_bytes_received in struct tcp_info (linux/tcp.h; in its place since Linux 4.1)."""
INT = struct.Struct("@i")
INSTRUCTION, PROGRAM = struct.Struct("@HBBI"), struct.Struct("@HP")
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
LENGTH_OF_HEADER, MASK = 12, 0x3C
NO_DATA = b"".join(
    INSTRUCTION.pack(*each)
    for each in (
        (0x30, 0, 0, LENGTH_OF_HEADER),  # the byte whose upper half is the header's length in words of four bytes
        (0x74, 0, 0, 2),  # shifted right
        (0x54, 0, 0, MASK),
        (0x07, 0, 0, 0),  # keep it
        (0x80, 0, 0, 0),  # the segment's length
        (0x1D, 0, 1, 0),  # are they equal?
        (0x06, 0, 0, 0xFFFFFFFF),  # let it in
        (0x06, 0, 0, 0),  # drop it
    )
)
"""Classic BPF (linux/filter.h): what has nothing behind its TCP header is let in."""
NETWORK_BYTES = 8
"""Bytes of an IPv6 address that one subscriber has in common."""


@contextlib.contextmanager
def same(fd: int) -> Iterator[socket.socket]:
    """Yield the socket of a descriptor, under another descriptor where the system can duplicate sockets.

    Not by `socket.dup`, which makes both of them blocking. Raises: OSError if it is not a socket.
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


def identity(peer: socket.socket) -> object:
    """Return what no other socket has while this one is open: its inode, if it has one, and the peer's address."""
    status = os.fstat(peer.fileno()) if os.name == "posix" else None
    return (status.st_dev, status.st_ino, peer.getpeername()) if status else peer.getpeername()


def origin(peer: socket.socket) -> str:
    """Return the address of a peer, of IPv6 the network, since a subscriber has all addresses of one."""
    host = str(peer.getpeername()[0])
    if peer.family != socket.AF_INET6 or host.startswith("::"):  # IPv4 in IPv6, or this machine
        return host
    network = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:NETWORK_BYTES]
    return f"{socket.inet_ntop(socket.AF_INET6, network.ljust(16, bytes(1)))}/{8 * NETWORK_BYTES}"


def bytes_received(fd: int) -> int:
    """Return how much ZeroMQ has taken from a connection so far; 0 where the system does not say."""
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


class Arrivals:
    """Tells a poller that something has come on a connection, even if ZeroMQ has read it by then.

    Where the system has no epoll it never does.
    """

    def __init__(self) -> None:
        if sys.platform == "linux":
            self._epoll = select.epoll()

    def fileno(self) -> int | None:
        """Return the descriptor that is readable when something has come; None: there is none."""
        if sys.platform == "linux":
            return self._epoll.fileno()
        return None

    def opened(self, fd: int) -> None:
        """Watch a connection until it ends; one that has just been closed is not watched."""
        if sys.platform == "linux":
            # At edges alone. One that is only readable would be forgotten as soon as ZeroMQ has read it; it can be
            # written to all the while.
            with contextlib.suppress(OSError):
                self._epoll.register(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def take(self) -> bool:
        """Return whether something has come since the last call."""
        if sys.platform == "linux":
            return bool(self._epoll.poll(0))
        return False

    def close(self) -> None:
        if sys.platform == "linux":
            self._epoll.close()


def hold(peer: socket.socket) -> None:
    """Let nothing more come in that a peer sends. Raises: OSError where the system cannot do that."""
    if sys.platform != "linux":
        raise OSError("connections cannot be held here")
    program = ctypes.create_string_buffer(NO_DATA)
    described = PROGRAM.pack(len(NO_DATA) // INSTRUCTION.size, ctypes.addressof(program))
    peer.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, described)


def release(peer: socket.socket) -> None:
    """Let in what a peer sends, or sends again, from now on. Raises: OSError."""
    peer.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
