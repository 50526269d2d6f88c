"""Socket to the peers: receives their messages, bounds them, and cuts off connections that send anything else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import zmq

from protocol import sockets
from server.gateway.auth import Guard
from server.gateway.connections import Connections
from server.gateway.repeats import Repeats
from server.gateway.sessions import Sessions

MAX_FRAMES, MAX_ENVELOPE_BYTES = 8, 1024
HOSTILE_FRAMES = 1000
"""Number of frames from which a message is an attack, not a mistake: its connection is cut."""


@dataclass(frozen=True, slots=True)
class Message:
    """Message of a peer: one frame, after the envelope that its socket made."""

    peer: bytes
    """Routing id of its connection."""
    fd: int
    user: str
    """Public key of the peer, or empty where there are no keys."""
    envelope: list[bytes]
    frame: bytes


class Front:
    """Receives from peers. Used by the gateway's thread only."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        monitor: zmq.Socket[bytes],
        sessions: Sessions,
        guard: Guard,
        *,
        encrypted: bool,
    ) -> None:
        """Take over `socket` and `monitor`, which `sockets.gateway_socket` made."""
        self._socket, self._monitor = socket, monitor
        self._sessions, self._guard = sessions, guard
        self._connections = Connections(encrypted=encrypted)
        self._repeats = Repeats()

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """Sockets that are readable when there is something to do."""
        return self._socket, self._monitor

    @property
    def connected(self) -> bool:
        """Whether a peer is connected."""
        return bool(self._connections)

    @property
    def alone_s(self) -> float:
        """Seconds since a peer was connected; 0 while one is."""
        return self._connections.empty_s

    def receive(self, limit: int) -> Iterator[Message]:
        """Yield up to `limit` messages that have arrived, without those of peers that are not listened to."""
        for _ in range(limit):
            if not sockets.readable(self._socket):
                return
            frames, sizes = self._receive_frames()
            try:
                fd = int(frames[-1].get(zmq.SRCFD))
            except (
                zmq.ZMQError
            ):  # a peer of ZMTP 1 or 2, whose descriptor is unknown; an HTTP request can look like one
                continue
            # Looked at after each receipt, so that a file descriptor that was closed and used again is not mistaken.
            self.watch()
            if len(sizes) > HOSTILE_FRAMES:
                self._connections.shut_sender(fd, sizes)
            self._connections.delivered(fd, sizes)
            self.cut()  # afterwards: what has been delivered is not unfinished
            peer = frames[0].bytes
            small = sum(sizes[:-1]) <= MAX_ENVELOPE_BYTES and len(sizes) <= MAX_FRAMES
            if small and fd in self._connections and not self._sessions.has_given_up(peer):
                user = self._guard.user(frames[-1])
                yield Message(peer, fd, user, [f.bytes for f in frames[1:-1]], frames[-1].bytes)

    def watch(self) -> None:
        """Note which connections were made, which broke, and which were refused."""
        while event := sockets.next_event(self._monitor):
            kind, value = event
            if kind == zmq.EVENT_ACCEPTED:
                self._connections.opened(value)
            elif kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connections.shaken(value)
            elif kind == zmq.EVENT_DISCONNECTED:
                self._connections.closed(value)
                self._sessions.drop_fd(value)
            else:
                self._guard.refusals.handshake(value)
        self._connections.turn_away()

    def cut(self) -> None:
        """Cut off connections that send much without finishing a message, or nothing."""
        for fd in self._connections.cut(lambda: sockets.readable(self._socket)):
            self._repeats.warn(
                "cut", f"a connection was cut: it sent much without finishing a message, or nothing (descriptor {fd})"
            )

    def close(self) -> None:
        """Close, with a moment for what was sent already to leave."""
        sockets.close_monitored(self._socket, self._monitor, sockets.DRAIN_LINGER_MS)

    def _receive_frames(self) -> tuple[list[zmq.Frame], list[int]]:
        """Return the first frames of a message, and the sizes of all that its sender sent: the rest is not kept.

        Each frame says itself whether more follow, which takes little more than half the time of asking the socket
        after each: a message of 150,000 frames holds everybody up for as long as it is read.
        """
        receive = self._socket.recv
        frame = receive(zmq.NOBLOCK, copy=False)  # the peer's routing id
        frames = [frame]
        sizes: list[int] = []
        while frame.more:
            frame = receive(zmq.NOBLOCK, copy=False)
            sizes.append(len(frame))
            if len(sizes) <= MAX_FRAMES:
                frames.append(frame)
        return frames, sizes
