"""Connections by hand for peers that mean harm: to send anything at all, and to see whether the other side hangs up."""

from __future__ import annotations

import select
import socket
import time

from scripts.reliability.zmtp import shake


def connect(host: str, port: int) -> socket.socket:
    return socket.create_connection((host, port), timeout=10)


def shaken(host: str, port: int, **properties: bytes) -> socket.socket:
    """Return a connection after its handshake."""
    peer = connect(host, port)
    shake(peer, **properties)
    return peer


def sent(peer: socket.socket, what: bytes, seconds: float = 10) -> bool:
    """Send all of it; False if the other side hung up meanwhile, which it may do without reading what is on its way.

    Raises: TimeoutError if it takes longer than `seconds`.
    """
    rest, give_up = memoryview(what), time.monotonic() + seconds
    peer.setblocking(False)
    try:
        while rest:
            ready = select.select([peer], [peer], [], max(0.0, give_up - time.monotonic()))
            if peer in ready[0] and not peer.recv(65_536):
                return False
            if peer in ready[1]:
                rest = rest[peer.send(rest) :]
            if not any(ready):
                raise TimeoutError
    except ConnectionError:
        return False
    finally:
        peer.settimeout(10)
    return True


def hung_up(peers: list[socket.socket], seconds: float) -> None:
    """Wait until the other side has closed all of them. Raises: AssertionError after `seconds`."""
    give_up = time.monotonic() + seconds
    for number, peer in enumerate(peers):
        while True:
            peer.settimeout(max(0.01, give_up - time.monotonic()))
            try:
                if not peer.recv(65_536):
                    break
            except TimeoutError:
                raise AssertionError(f"connection {number} is still open after {seconds} s") from None
            except ConnectionError:
                break
