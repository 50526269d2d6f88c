"""Addresses of an endpoint's name, and which of them takes a connection.

libzmq tries the first address of a name alone, so a name of both families could miss a server that listens on one.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import queue
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias
from urllib.parse import urlsplit

ANSWER_S = 4.0
"""Longest wait for one of several addresses to take a connection."""
STAGGER_S = 0.25
"""Seconds after which the next address is tried beside those before it (https://www.rfc-editor.org/rfc/rfc8305)."""

SocketAddress: TypeAlias = tuple[Any, ...]
"""Host and port, and of IPv6 the flow and the scope."""


def is_name(endpoint: str) -> bool:
    """True if the host of a tcp endpoint is a name, not an address."""
    parts = urlsplit(endpoint)
    try:
        ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        return parts.scheme == "tcp"
    return False


class LookUp:
    """Looks for the address of an endpoint that takes a connection, in a thread: only the system knows for how long."""

    def __init__(self, endpoint: str, wake: Callable[[], None]) -> None:
        """Begin nothing yet. `wake` is called, in the other thread, when there is something to take."""
        self._endpoint, self._wake = endpoint, wake
        self._found: queue.SimpleQueue[str | OSError] = queue.SimpleQueue()
        self._looks = False

    def begin(self) -> None:
        """Begin to look, unless it is looking or was not asked yet what it found."""
        if self._looks:
            return
        self._looks = True
        threading.Thread(target=self._run, name=f"gpt2d looks up {self._endpoint}", daemon=True).start()

    def take(self) -> str | OSError | None:
        """Return what was found, once: an endpoint without a name, or what `choose` raised."""
        try:
            found = self._found.get_nowait()
        except queue.Empty:
            return None
        self._looks = False
        return found

    def _run(self) -> None:
        try:
            self._found.put(choose(self._endpoint))
        except OSError as e:
            self._found.put(e)
        self._wake()


def choose(endpoint: str) -> str:
    """Return the endpoint with an address in place of its name: the first that takes a connection.

    May block for as long as the system looks the name up, and for ANSWER_S.

    Raises: socket.gaierror if the name is not known, OSError if none of its addresses takes a connection.
    """
    parts = urlsplit(endpoint)
    try:
        looked_up = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except UnicodeError as e:  # a label that is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, str(e)) from None
    found = list(dict.fromkeys((family, address) for family, _, _, _, address in looked_up))
    address = _first_to_answer(found)
    host, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return f"tcp://[{host}]:{parts.port}" if ":" in host else f"tcp://{host}:{parts.port}"


def _first_to_answer(found: Sequence[tuple[socket.AddressFamily, SocketAddress]]) -> SocketAddress:
    """Return the address that takes a connection first. One that refuses is tried again while others are silent.

    Raises: OSError, as the last of them failed.
    """
    untried, refused = deque(found), deque[tuple[socket.AddressFamily, SocketAddress]]()
    trouble, due = 0, 0.0
    give_up = time.monotonic() + ANSWER_S
    with contextlib.ExitStack() as opened, selectors.DefaultSelector() as silent:
        while untried or silent.get_map():
            now = time.monotonic()
            if now > give_up:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            if untried and (now > due or not silent.get_map()):
                due = now + STAGGER_S
                one = untried.popleft()
                try:
                    peer = opened.enter_context(socket.socket(one[0], socket.SOCK_STREAM))
                except OSError as e:  # this system has not this family
                    trouble = e.errno or trouble
                    continue
                peer.setblocking(False)
                code = peer.connect_ex(one[1])
                if code in {0, errno.EINPROGRESS, errno.EWOULDBLOCK}:
                    silent.register(peer, selectors.EVENT_WRITE, (peer, one))
                else:
                    trouble = code
                    refused.append(one)
            for key, _ in silent.select(STAGGER_S) if silent.get_map() else ():
                peer, one = key.data
                trouble = peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if trouble == 0:
                    return tuple(one[1])
                silent.unregister(peer)
                refused.append(one)
            if not untried and silent.get_map():
                untried, refused = refused, untried
    raise OSError(trouble, os.strerror(trouble))
