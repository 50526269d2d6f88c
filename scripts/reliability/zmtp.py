"""ZMTP 3.1 by hand (https://rfc.zeromq.org/spec/37/), for peers that do not behave as libzmq makes them."""

from __future__ import annotations

import socket
import struct
from urllib.parse import urlsplit

GREETING = b"\xff\0\0\0\0\0\0\0\1\x7f\3\1" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE = 1
LONG = 2
COMMAND = 4


def frame(body: bytes, flags: int = 0) -> bytes:
    return bytes([flags, len(body)]) + body if len(body) < 256 else struct.pack(">BQ", flags | LONG, len(body)) + body


def ready(**properties: bytes) -> bytes:
    """Return the command that ends a handshake, with properties like `Socket_Type`."""
    named = (
        (name.replace("_", "-").encode(), value) for name, value in ({"Socket_Type": b"DEALER"} | properties).items()
    )
    return frame(
        b"\x05READY" + b"".join(bytes([len(n)]) + n + struct.pack(">I", len(v)) + v for n, v in named), COMMAND
    )


def shake(peer: socket.socket, **properties: bytes) -> None:
    """Do the handshake of a DEALER. Raises: OSError, also where it is refused."""
    peer.sendall(GREETING + ready(**properties))
    exactly(peer, len(GREETING))
    exactly(peer, exactly(peer, 2)[1])


def connect(endpoint: str, *, receive_buffer: int | None = None, timeout: float = 20) -> socket.socket:
    """Return the connection of a DEALER after its handshake. Raises: OSError."""
    parts = urlsplit(endpoint)
    peer = socket.socket()
    if receive_buffer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.settimeout(timeout)
    peer.connect((parts.hostname, parts.port))
    shake(peer)
    return peer


def exactly(peer: socket.socket, count: int) -> bytes:
    """Receive `count` bytes. Raises: OSError, also where the connection ends before them."""
    data = b""
    while len(data) < count:
        piece = peer.recv(count - len(data))
        if not piece:
            raise ConnectionResetError(f"the connection ended after {len(data)} of {count} bytes")
        data += piece
    return data
