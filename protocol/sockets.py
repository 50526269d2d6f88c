"""Makes the client's and the daemon's sockets, and the parts of every other; only this file and server/link.py set
socket options.

Limits and intervals follow ZMTP 3.1 (https://rfc.zeromq.org/spec/37/) as libzmq implements it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket as socketlib
import struct
import threading
import time
from collections.abc import Callable
from typing import Literal
from urllib.parse import urlsplit

import zmq

from protocol.codec import MAX_REPLY_BYTES, MAX_REQUEST_BYTES
from protocol.keys import Address, CurveKeys

HIGH_WATER_MARK = 256
HANDSHAKE_MS = 15_000
"""Most time that a handshake may take: with keys some five round trips, which may be of a second and stall for more."""
CONNECT_MS = 4000
"""Most time that one TCP connection may take: the system's own retries would miss a restored network for many
seconds.
"""
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 1000, 10_000
"""The other side's silence that ends a connection. A client with open requests gives a silent server up sooner, by a
ping whose limit grows with the round trip (protocol/pulse.py).
"""
DRAIN_LINGER_MS = 1000
CURVE_BYTES = 33
"""Bytes that CURVE adds to each frame (https://rfc.zeromq.org/spec/26/); libzmq counts them against MAXMSGSIZE."""
RECEIVE_BYTES = 64 << 10
"""Most bytes of a peer that the system buffers for libzmq, which reads them all even after the connection is cut; the
system's own limit is megabytes.
"""
FIRST_RECEIVE_BYTES = 8 << 10
"""The same before a connection's first message: whoever is not known yet cannot send much in a moment."""

CLIENT_DESCRIPTORS = 16
"""File descriptors that a client's context, sockets and connection take, and some more (Linux: 11)."""
LOOK_S = 10.0
"""Longest wait for what looks like a server: a slow line takes seconds, and another server may never answer."""
EVENT = struct.Struct("=Hi")
"""A monitor's event and its value; pyzmq's own function takes several times as long, and thousands may come at once."""
EVENTS, READABLE = int(zmq.EVENTS), int(zmq.POLLIN)
"""As numbers: with pyzmq's enumerations a question of 2 us, asked for each message, takes 6."""
GREETING, MECHANISM = b"\xff\0\0\0\0\0\0\0\1\x7f\3", slice(12, 32)
HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


def is_loopback(endpoint: str) -> bool:
    """True if only this machine can reach the endpoint."""
    parts = urlsplit(endpoint)
    if parts.scheme == "ipc":
        return True
    host = parts.hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_ipv6(endpoint: str) -> bool:
    """True for a literal IPv6 address. Others are IPv4's: with both families on, libzmq would map them."""
    return ":" in (urlsplit(endpoint).hostname or "")


def gateway_socket(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, keys: CurveKeys | None
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Return the daemon's bound ROUTER, and its monitor (see `next_event`).

    With keys it admits the peers that the ZAP socket admits, and none without a ZAP socket.

    Raises: zmq.ZMQError if the endpoint is taken or not this machine's.
    """
    socket = router(context, MAX_REQUEST_BYTES)
    # Without a bound: libzmq 4.3 ends the process (stream_engine_base.cpp: !_io_error) when a peer that it has stopped
    # reading is reset with a heartbeat unanswered. server/gateway/connections.py keeps the bound instead.
    socket.rcvhwm = 0
    socket.rcvbuf = FIRST_RECEIVE_BYTES
    if keys:
        serve_curve(socket, keys)
        socket.zap_domain = b"gpt2d"
    # Without the errors that a flood of connections makes.
    events = zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    return monitored(socket, bind, endpoint, events)


def zap_socket(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """Return the socket on which ZeroMQ asks whom to admit (https://rfc.zeromq.org/spec/27/).

    It must be made before the gateway's socket, in the same context.
    """
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    socket.bind("inproc://zeromq.zap.01")
    return socket


def check_descriptors() -> None:
    """Raises: OSError where fewer than CLIENT_DESCRIPTORS are left. libzmq ends the process where it gets none."""
    with contextlib.ExitStack() as taken:
        for _ in range(CLIENT_DESCRIPTORS):
            taken.callback(os.close, os.open(os.devnull, os.O_RDONLY))


def client_socket(
    context: zmq.Context[zmq.Socket[bytes]], address: Address
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Return a DEALER that is not connected yet, and its monitor (see `next_event`)."""
    socket = dealer(context, MAX_REPLY_BYTES)
    if address.server_key and address.key:
        use_curve(socket, address.server_key, address.key)
    return socket, socket.get_monitor_socket(zmq.EVENT_ALL)


def connect(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Connect to an endpoint of either family; a name is for protocol.addresses.

    Raises: zmq.ZMQError if it cannot be tried.
    """
    socket.ipv6 = is_ipv6(endpoint)
    socket.connect(endpoint)


def bind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Bind to an endpoint of either family; `*` is both. Raises: zmq.ZMQError if it is taken or not this machine's."""
    socket.ipv6 = is_ipv6(endpoint) or urlsplit(endpoint).hostname == "*"
    socket.bind(endpoint)


def loopback_socket(context: zmq.Context[zmq.Socket[bytes]], port: int) -> zmq.Socket[bytes]:
    """Return a bound ROUTER that bounds nothing, for tests; port 0: one that the system chooses.

    Raises: zmq.ZMQError if the port is taken.
    """
    socket = router(context, -1)
    socket.sndhwm = socket.rcvhwm = 0
    socket.bind(f"tcp://127.0.0.1:{port}")
    return socket


def endpoint_of(socket: zmq.Socket[bytes]) -> str:
    """Return the endpoint that a socket was bound to, with the port that the system chose."""
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    return endpoint.rstrip(b"\0").decode() if isinstance(endpoint, bytes) else str(endpoint)


def close_monitored(socket: zmq.Socket[bytes], monitor_socket: zmq.Socket[bytes], linger_ms: int = 0) -> None:
    """Close a socket and its monitor; messages already sent get `linger_ms` to leave."""
    socket.disable_monitor()
    monitor_socket.close(linger=0)
    socket.close(linger=linger_ms)


def readable(socket: zmq.Socket[bytes]) -> bool:
    """Return True if there is a message: much cheaper than a receive that fails."""
    return bool(int(socket.getsockopt(EVENTS)) & READABLE)


def next_event(monitor_socket: zmq.Socket[bytes]) -> tuple[int, int] | None:
    """Return the next (event, value) of a monitor, without waiting; None if there is none.

    Events are zmq.EVENT_*; the value is a file descriptor or an error number.
    """
    if not readable(monitor_socket):
        return None
    about, _endpoint = monitor_socket.recv_multipart(zmq.NOBLOCK)
    event, value = EVENT.unpack(about)
    return event, value


def disconnect(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Give an endpoint up, unless libzmq has done so: it does when a handshake was refused or broke the protocol."""
    with contextlib.suppress(zmq.ZMQError):
        socket.disconnect(endpoint)


def user_of(frame: zmq.Frame) -> str:
    """Return the user id that the ZAP socket gave to the connection that a message came from."""
    return str(frame.get("User-Id"))


def takes_one_reply(frame: zmq.Frame) -> bool:
    """Return whether a message came from a REQ socket, which takes the next reply for that to its next request."""
    return str(frame.get("Socket-Type")) == "REQ"


def look_into(endpoint: str) -> Literal["silent", "other", "NULL", "CURVE"]:
    """Find out what listens on a tcp endpoint: a ZeroMQ socket of that mechanism, another server, or a silent one.

    ZeroMQ's greeting (https://rfc.zeromq.org/spec/37/) starts with a signature and has its mechanism at octet 12; a
    socket sends the whole of it after receiving the first eleven octets of ours. Most other servers wait for a line,
    and answer an empty one. One that hangs up is silent. Blocks for up to 2 * LOOK_S.
    """
    parts = urlsplit(endpoint)
    if parts.scheme != "tcp":
        return "silent"
    said = b""
    with contextlib.suppress(OSError), socketlib.create_connection((parts.hostname, parts.port), LOOK_S) as connection:
        give_up = time.monotonic() + LOOK_S
        connection.sendall(GREETING + b"\r\n\r\n")
        while len(said) < MECHANISM.stop and (left_s := give_up - time.monotonic()) > 0:
            connection.settimeout(left_s)
            more = connection.recv(MECHANISM.stop - len(said))
            said += more
            if not more or not said.startswith(b"\xff"):
                break
    if not said.startswith(b"\xff"):
        return "other" if said else "silent"
    match said[MECHANISM].rstrip(b"\0"):
        case b"CURVE":
            return "CURVE"
        case b"NULL":
            return "NULL"
        case _:
            return "silent"


class Wake:
    """Wakes a poller in another thread: `receiver` becomes readable after `wake()`."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        name = f"inproc://wake-{id(self)}"
        self.receiver = context.socket(zmq.PAIR)
        self.receiver.bind(name)
        self._sender = context.socket(zmq.PAIR)
        self._sender.connect(name)
        self._lock = threading.Lock()  # a ZeroMQ socket may be used by one thread at a time only

    def wake(self, *, wait: bool = True) -> None:
        """Wake the poller, from any thread; with `wait=False` also while this same thread is in it (a finaliser)."""
        if self._lock.acquire(blocking=wait):
            try:
                if not self._sender.closed:
                    with contextlib.suppress(zmq.Again):  # it has been woken often enough
                        self._sender.send(b"", zmq.NOBLOCK)
            finally:
                self._lock.release()

    def clear(self) -> None:
        while readable(self.receiver):
            self.receiver.recv(zmq.NOBLOCK)

    def close(self) -> None:
        with self._lock:
            self._sender.close(linger=0)
        self.receiver.close(linger=0)


def monitored(
    socket: zmq.Socket[bytes], attach: Callable[[zmq.Socket[bytes], str], None], endpoint: str, events: int
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Make a monitor, then bind or connect: a connection may take only microseconds. Return socket and monitor."""
    monitor = socket.get_monitor_socket(events)
    try:
        attach(socket, endpoint)
    except zmq.ZMQError:
        close_monitored(socket, monitor)
        raise
    return socket, monitor


def router(context: zmq.Context[zmq.Socket[bytes]], max_bytes: int) -> zmq.Socket[bytes]:
    socket = _common(context.socket(zmq.ROUTER), max_bytes)
    socket.router_mandatory = True
    socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
    return socket


def dealer(context: zmq.Context[zmq.Socket[bytes]], max_bytes: int) -> zmq.Socket[bytes]:
    socket = _common(context.socket(zmq.DEALER), max_bytes)
    socket.immediate = True
    socket.reconnect_ivl = 100
    socket.reconnect_ivl_max = 2000
    socket.connect_timeout = CONNECT_MS
    return socket


def serve_curve(socket: zmq.Socket[bytes], keys: CurveKeys) -> None:
    socket.curve_server = True
    socket.curve_secretkey = keys.secret.encode()
    socket.maxmsgsize = int(socket.maxmsgsize) + CURVE_BYTES
    socket.zap_enforce_domain = True  # without a domain ZAP is not asked, with one nobody is admitted without it


def use_curve(socket: zmq.Socket[bytes], server_key: str, keys: CurveKeys) -> None:
    socket.curve_serverkey = server_key.encode()
    socket.curve_publickey = keys.public.encode()
    socket.curve_secretkey = keys.secret.encode()
    socket.maxmsgsize = int(socket.maxmsgsize) + CURVE_BYTES


def _common(socket: zmq.Socket[bytes], max_bytes: int) -> zmq.Socket[bytes]:
    socket.maxmsgsize = max_bytes
    socket.sndhwm = socket.rcvhwm = HIGH_WATER_MARK
    socket.linger = 0
    socket.handshake_ivl = HANDSHAKE_MS
    socket.heartbeat_ivl = HEARTBEAT_MS
    socket.heartbeat_timeout = socket.heartbeat_ttl = HEARTBEAT_TIMEOUT_MS
    socket.tcp_keepalive = 1
    return socket
