"""The socket that leads to one server: its connections, one after the other, and why there is none.

Used by an exchange's thread alone, but for `wake` and the two functions that look for an address and at what listens
there, which run in threads of their own.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Literal, TypeAlias

import zmq

from protocol import addresses, sockets
from protocol.errors import ConnectionFailed
from protocol.keys import Address
from protocol.reason import Reason

Change: TypeAlias = Literal["open", "cut", "failed"]
"""What became of a connection: its handshake is done, or it has ended, after the server's greeting or before."""

AGAIN_S = 1.0
"""Seconds before the next try, where the server refused the last one for good."""
KNOCK_S = 0.2
"""Seconds before the next try, where nobody took the connection."""
PROBE_S = 0.5
"""Seconds that a connection may be without a handshake before it is examined."""


class Line:
    """A DEALER, its monitor, and what waits to be sent."""

    def __init__(self, address: Address) -> None:
        """Start connecting. Raises: ValueError for an endpoint that nothing can connect to, ConnectionFailed."""
        self._endpoint = address.endpoint
        try:
            sockets.check_descriptors()
        except OSError as e:
            raise ConnectionFailed(
                f"no connection to {self._endpoint} can be opened: {e.strerror}; close other clients or files of this "
                "process, or allow it more (`ulimit -n`)"
            ) from None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket, self._monitor = sockets.client_socket(self._context, address)
        self._wake = sockets.Wake(self._context)
        self._poller = zmq.Poller()
        for readable in (self._monitor, self._wake.receiver):
            self._poller.register(readable, zmq.POLLIN)
        self._target = self._endpoint
        """Endpoint that the socket connects to: with that address, once it was found."""
        self._look_up = addresses.LookUp(self._endpoint, self._wake.wake)
        self._knocks = addresses.is_name(self._endpoint)
        """Whether to look first for an address that takes a connection: for a name, or where nobody took the last."""
        self.reason = Reason(address, named=self._knocks)
        self._outbox: deque[bytes] = deque()
        self._connected_at = 0.0
        self._greeted = False
        """Whether the server has greeted us over the latest connection."""
        self._shaken, self._probed = False, True
        """The latest connection's handshake was done; that connection was examined."""
        self._broke = False
        """The latest connection's handshake failed, though not for want of time."""
        self._again_at: float | None = None
        """Time to connect again, where libzmq has given up."""
        try:
            self._connect()
        except zmq.ZMQError as e:
            self.close()
            raise ValueError(f"{self._endpoint}: {e.strerror}") from None

    def wake(self, *, wait: bool = True) -> None:
        """End a `poll`, from any thread; with `wait=False` also while this same thread is in it (a finaliser)."""
        self._wake.wake(wait=wait)

    @property
    def tries(self) -> bool:
        """Whether it connects again in a while."""
        return self._again_at is not None

    def poll(self, timeout_ms: int) -> None:
        """Wait until something comes, or something that waits can be sent."""
        self._poller.register(self._socket, zmq.POLLIN | zmq.POLLOUT if self._outbox else zmq.POLLIN)
        self._poller.poll(timeout_ms)
        self._wake.clear()

    def send(self, data: bytes) -> None:
        """Send a message once there is a connection; it is lost with that."""
        self._outbox.append(data)
        self.flush()

    def flush(self) -> None:
        """Send what can be sent; a burst that the socket cannot take waits here for its turn."""
        with contextlib.suppress(zmq.Again):
            while self._outbox and self._shaken:
                self._socket.send(self._outbox[0], zmq.NOBLOCK)
                self._outbox.popleft()

    def received(self) -> Iterator[list[bytes]]:
        """Yield the messages that have come."""
        while sockets.readable(self._socket):
            yield self._socket.recv_multipart(zmq.NOBLOCK)

    def changes(self) -> Iterator[Change]:
        """Yield what has become of the connections since the last time."""
        self._take_address()
        while event := sockets.next_event(self._monitor):
            kind, value = event
            if kind == zmq.EVENT_CONNECTED:
                self._connected_at, self._again_at = time.monotonic(), None
                self._probed = self._shaken = False
                self._broke = False
                self.reason.accepted()
            elif kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._shaken = True
                yield "open"
            elif kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self.reason.key_refused()
                self.retry()
            elif kind & sockets.HANDSHAKE_FAILED and value != errno.EAGAIN:  # EAGAIN is a timeout
                self._broke = True
                if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                    self.retry()
                    self.reason.failed()
                self._start_probe()
            elif kind == zmq.EVENT_DISCONNECTED:
                yield self._ended()
            elif kind == zmq.EVENT_CLOSED and not self._greeted:
                self._not_taken()

    def greeted(self) -> None:
        """Note that the server has answered `hello` over the latest connection."""
        self._greeted = True
        self.reason.greeted()

    def retry(self) -> None:
        """Connect again in a while: this connection, or this try, leads to nothing."""
        self._again_at = time.monotonic() + AGAIN_S

    def check_times(self) -> None:
        """Examine a connection that has no handshake for too long, and connect again when that is due."""
        now = time.monotonic()
        if not self._shaken and not self.reason.met and now > self._connected_at + PROBE_S:
            self._start_probe()
        if self._again_at is not None and now > self._again_at:
            self._again_at = None
            sockets.disconnect(self._socket, self._target)
            self._connect()

    def give_up(self) -> None:
        """Give up a connection over which nothing comes, and make another: this one may not recover for long."""
        sockets.disconnect(self._socket, self._target)
        self._ended()
        self._connect()

    def close(self) -> None:
        sockets.close_monitored(self._socket, self._monitor)
        self._wake.close()
        self._context.term()

    def _connect(self) -> None:
        """Connect, or look for an address and connect later. Raises: zmq.ZMQError if it cannot be tried."""
        if self._knocks:
            self._look_up.begin()
        else:
            sockets.connect(self._socket, self._target)

    def _take_address(self) -> None:
        """Connect to the address that takes a connection, if one was found meanwhile."""
        found = self._look_up.take()
        if isinstance(found, str):
            sockets.disconnect(self._socket, self._target)
            self._target = found
            sockets.connect(self._socket, found)
        elif found:
            self._again_at = time.monotonic() + KNOCK_S
            self.reason.not_taken(found)

    def _not_taken(self) -> None:
        """Note that nobody took the connection. libzmq does not say why, so the next try asks the system itself."""
        if sockets.is_loopback(self._target):
            self.reason.refused()
        if self._knocks or not sockets.is_loopback(self._target):
            self._knocks = True
            sockets.disconnect(self._socket, self._target)
            self._again_at = time.monotonic() + KNOCK_S

    def _ended(self) -> Change:
        """Note that the connection has ended."""
        change: Change = "cut" if self._greeted else "failed"
        if self._greeted:
            self.reason.cut()
        elif self._shaken or self._broke or time.monotonic() < self._connected_at + PROBE_S:
            self.reason.hung_up(shaken=self._shaken)
            self.retry()  # libzmq gives a socket of another kind up
        self._greeted = self._shaken = False
        self._outbox.clear()  # it was meant for the connection that broke
        return change

    def _start_probe(self) -> None:
        if not self._probed:
            self._probed = True
            threading.Thread(target=self._probe, daemon=True).start()

    def _probe(self) -> None:
        """Find out why there is no handshake; runs in a thread of its own."""
        found = sockets.look_into(self._target)
        if not self._shaken:  # else it came after all
            self.reason.looked_into(found)
