"""Makes every socket; the only file that sets a socket option.

Limits and intervals follow ZMTP 3.1 (https://rfc.zeromq.org/spec/37/) as libzmq implements it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket as socketlib
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit

import zmq
from zmq.utils.monitor import recv_monitor_message

from protocol.codec import MAX_REPLY_BYTES, MAX_REQUEST_BYTES

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5757"
HIGH_WATER_MARK = 256
HANDSHAKE_MS = 3000
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 1000, 3000
DRAIN_LINGER_MS = 1000

HANDSHAKE_FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH


@dataclass(frozen=True)
class CurveKeys:
    """A CURVE key pair, Z85 text (https://rfc.zeromq.org/spec/26/)."""

    public: str
    secret: str

    @staticmethod
    def new() -> CurveKeys:
        public, secret = zmq.curve_keypair()
        return CurveKeys(public.decode(), secret.decode())


def check_endpoint(endpoint: str) -> str:
    """Return the endpoint if it is tcp://HOST:PORT (or ipc://PATH).

    Raises: ValueError.
    """
    parts = urlsplit(endpoint)
    try:
        plain = endpoint.isascii() and endpoint.isprintable() and " " not in endpoint and len(endpoint) < 256
        tcp = parts.scheme == "tcp" and parts.hostname and parts.port is not None and not parts.path and "@" not in parts.netloc
        good = plain and not parts.query and not parts.fragment and (tcp or (parts.scheme == "ipc" and endpoint[6:]))
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{endpoint!r} is not an endpoint; one looks like {DEFAULT_ENDPOINT}")
    return endpoint


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


def gateway_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """The daemon's bound ROUTER, and its monitor (see `next_event`).

    Raises: zmq.ZMQError if the endpoint is taken or not this machine's.
    """
    socket = _router(context, MAX_REQUEST_BYTES)
    # Before the bind, or the first connections would go unseen; without the errors that a flood of connections makes.
    monitor = socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError:
        close_monitored(socket, monitor)
        raise
    return socket, monitor


def client_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """A connecting DEALER, and its monitor (see `next_event`).

    Raises: zmq.ZMQError if it cannot even try.
    """
    socket = _dealer(context, MAX_REPLY_BYTES)
    monitor = socket.get_monitor_socket()  # before the connection, which may be made in microseconds
    try:
        socket.connect(endpoint)
    except zmq.ZMQError:
        close_monitored(socket, monitor)
        raise
    return socket, monitor


def worker_gateway_socket(context: zmq.Context[zmq.Socket[bytes]], keys: CurveKeys) -> zmq.Socket[bytes]:
    """The ROUTER that workers connect to: loopback, a port of the system's choice, CURVE."""
    socket = _without_heartbeat(_router(context, MAX_REPLY_BYTES))
    socket.curve_server = True
    socket.curve_secretkey = keys.secret.encode()
    socket.bind("tcp://127.0.0.1:*")
    return socket


def worker_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, server_key: str, identity: str) -> zmq.Socket[bytes]:
    """A worker's DEALER, with the routing id that its launcher gave it."""
    keys = CurveKeys.new()
    socket = _without_heartbeat(_dealer(context, MAX_REPLY_BYTES))
    socket.routing_id = identity.encode()
    socket.curve_serverkey = server_key.encode()
    socket.curve_publickey = keys.public.encode()
    socket.curve_secretkey = keys.secret.encode()
    socket.connect(endpoint)
    return socket


def endpoint_of(socket: zmq.Socket[bytes]) -> str:
    """The endpoint a socket was bound to, with the port that the system chose."""
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    return endpoint.rstrip(b"\0").decode() if isinstance(endpoint, bytes) else str(endpoint)


def close_monitored(socket: zmq.Socket[bytes], monitor_socket: zmq.Socket[bytes], linger_ms: int = 0) -> None:
    """Close a socket and its monitor; what was sent already gets `linger_ms` to leave."""
    socket.disable_monitor()
    monitor_socket.close(linger=0)
    socket.close(linger=linger_ms)


def readable(socket: zmq.Socket[bytes]) -> bool:
    """True if a message is there: much cheaper than a receipt that fails."""
    return bool(int(socket.get(zmq.EVENTS)) & zmq.POLLIN)


def next_event(monitor_socket: zmq.Socket[bytes]) -> tuple[int, int] | None:
    """The next (event, value) of a monitor, without waiting; None if there is none.

    Events are zmq.EVENT_*; the value is a file descriptor or an error number.
    """
    if not readable(monitor_socket):
        return None
    message = recv_monitor_message(monitor_socket, zmq.NOBLOCK)
    return int(message["event"]), int(message["value"])


def speaks_otherwise(endpoint: str) -> bool:
    """True if what listens on a tcp endpoint says something that no ZeroMQ socket says. Blocks for up to a second.

    A ZeroMQ socket greets first, with the byte 0xFF. Most other servers wait, and answer an empty line.
    """
    parts = urlsplit(endpoint)
    if parts.scheme != "tcp":
        return False
    try:
        with socketlib.create_connection((parts.hostname, parts.port), timeout=0.3) as connection:
            try:
                said = connection.recv(1)
            except TimeoutError:
                connection.sendall(b"\r\n\r\n")
                connection.settimeout(0.7)
                said = connection.recv(1)
        return said != b"\xff"
    except OSError:
        return False


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
        """Safe in any thread; with `wait=False` also where this very thread may be inside `wake` already (a finaliser)."""
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


def _router(context: zmq.Context[zmq.Socket[bytes]], max_bytes: int) -> zmq.Socket[bytes]:
    socket = _common(context.socket(zmq.ROUTER), max_bytes)
    socket.router_mandatory = True
    socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
    return socket


def _dealer(context: zmq.Context[zmq.Socket[bytes]], max_bytes: int) -> zmq.Socket[bytes]:
    socket = _common(context.socket(zmq.DEALER), max_bytes)
    socket.immediate = True
    socket.reconnect_ivl = 100
    socket.reconnect_ivl_max = 2000
    return socket


def _without_heartbeat(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """Between the daemon and its own workers: each sees the other's process end, and a pause must not part them."""
    socket.heartbeat_ivl = 0
    return socket


def _common(socket: zmq.Socket[bytes], max_bytes: int) -> zmq.Socket[bytes]:
    socket.maxmsgsize = max_bytes
    socket.sndhwm = socket.rcvhwm = HIGH_WATER_MARK
    socket.linger = 0
    socket.handshake_ivl = HANDSHAKE_MS
    socket.heartbeat_ivl = HEARTBEAT_MS
    socket.heartbeat_timeout = socket.heartbeat_ttl = HEARTBEAT_TIMEOUT_MS
    socket.tcp_keepalive = 1
    return socket
