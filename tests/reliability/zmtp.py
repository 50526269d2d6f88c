"""ZMTP 3.1 by hand (https://rfc.zeromq.org/spec/37/), for peers that do not behave as libzmq makes them."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
READY = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER\x08Identity" + bytes(4)
MORE, LONG, COMMAND = 1, 2, 4


def frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | LONG]) + len(body).to_bytes(8, "big") + body


def connect(endpoint: str, *, receive_buffer: int | None = None, timeout: float = 5) -> socket.socket:
    """A DEALER that has shaken hands, and from there on does what its owner does. Raises: OSError."""
    parts = urlsplit(endpoint)
    peer = socket.socket()
    if receive_buffer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.settimeout(timeout)
    peer.connect((parts.hostname, parts.port))
    peer.sendall(GREETING)
    exactly(peer, len(GREETING))
    peer.sendall(frame(READY, COMMAND))
    size = exactly(peer, 2)[1]
    exactly(peer, size)
    return peer


def exactly(peer: socket.socket, count: int) -> bytes:
    """Raises: OSError, also where it ends before."""
    data = b""
    while len(data) < count:
        piece = peer.recv(count - len(data))
        if not piece:
            raise ConnectionResetError(f"it ended after {len(data)} of {count} bytes")
        data += piece
    return data
