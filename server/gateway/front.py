"""Socket to the peers: receives their messages, bounds them, and cuts off connections that send anything else."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import zmq

from protocol import messages as m, sockets
from server.gateway.auth import Guard, shown
from server.gateway.connections import Connections
from server.gateway.parts import Skip
from server.gateway.repeats import Repeats
from server.gateway.sessions import Sessions

MAX_FRAMES, MAX_ENVELOPE_BYTES = 8, 1024
HOSTILE_FRAMES = 1000
"""Number of frames from which a message is an attack, not a mistake: its connection is cut."""
TURN_FRAMES = 2000
"""Most frames of one message that are read before workers and unsent replies have their turn: under 1 ms."""
MAX_OLD = 1000
"""Most peers of ZMTP 1 and 2 that are remembered: one that was forgotten is answered again."""
OLD = m.Failure(
    id=None,
    code="version_mismatch",
    message="this connection speaks ZMTP 1 or 2; gpt2d speaks ZMTP 3, which libzmq does from version 4.0 on",
)


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
    takes_one_reply: bool
    """Whether its socket can take one reply to each request only."""


@dataclass(slots=True)
class _Unread:
    """Message that is being read: its first frames, and how much there is of the others."""

    frames: list[zmq.Frame] = field(default_factory=list)
    """Routing id of the peer, and the first frames that it sent."""
    others: int = 0
    other_bytes: int = 0
    more: bool = True
    """Whether frames follow."""
    hostile: bool = False
    """Whether it has been found to be an attack."""

    @property
    def sizes(self) -> tuple[list[int], int, int]:
        """Sizes of the first frames that the peer sent, the number of the others and their bytes."""
        return [len(frame) for frame in self.frames[1:]], self.others, self.other_bytes


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
        self._unread, self._skip = _Unread(), Skip()
        self._old: deque[bytes] = deque(maxlen=MAX_OLD)
        """Peers of ZMTP 1 and 2, which have been sent their refusal."""

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """Sockets that are readable when there is something to do."""
        return self._socket, self._monitor

    @property
    def arrivals(self) -> int | None:
        """Descriptor that is readable when something has come since `at_rest`; None where the system has none."""
        return self._connections.arrivals.fileno()

    def at_rest(self) -> bool:
        """Return whether nothing comes from the peers that is not a message."""
        return self._connections.at_rest()

    @property
    def ended(self) -> int:
        """Number of connections that have ended."""
        return self._connections.ended

    @property
    def alone_s(self) -> float:
        """Seconds since a peer was connected; 0 while one is."""
        return self._connections.empty_s

    def receive(self, limit: int) -> Iterator[Message]:
        """Yield up to `limit` messages that have arrived, without those of peers that are not listened to."""
        for _ in range(limit):
            if not sockets.readable(self._socket):
                return
            read = self._read_on()
            peer, fd = read.frames[0].bytes, self._descriptor(read)
            # Looked at after each receipt, so that a file descriptor that was closed and used again is not mistaken.
            self.watch()
            number, user = (0, "") if fd is None else self._guard.sender(read.frames[-1])
            own = fd is not None and self._connections.owns(fd, number)
            if fd is not None and read.others > HOSTILE_FRAMES and not read.hostile:
                read.hostile = True
                self._connections.shut_sender(fd, *read.sizes, own=own)
            if read.more:  # ZeroMQ gives no other peer's message before the rest of this one
                return
            self._unread = _Unread()
            if fd is None:
                self._refuse_old(peer)
                continue
            self._connections.delivered(fd, *read.sizes, own=own)
            if not own:  # its connection has ended, and so has the interest in what it asked
                continue
            self.cut()  # afterwards: what has been delivered is not unfinished
            *envelope, frame = read.frames[1:]
            small = sum(map(len, envelope)) <= MAX_ENVELOPE_BYTES and not read.others
            if small and not self._sessions.has_given_up(peer):
                self._connections.proved(fd)
                one = sockets.takes_one_reply(frame)
                yield Message(peer, fd, user, [f.bytes for f in envelope], frame.bytes, one)

    def watch(self) -> None:
        """Note which connections were made, which broke, and which were refused."""
        while event := sockets.next_event(self._monitor):
            kind, value = event
            if kind == zmq.EVENT_LISTENING:
                self._connections.listening(value)
            elif kind == zmq.EVENT_ACCEPTED:
                self._connections.opened(value, self._guard.admitted)
            elif kind == zmq.EVENT_DISCONNECTED:
                self._connections.closed(value)
                self._sessions.drop_fd(value)
            else:
                self._guard.refusals.handshake(value)
        self._connections.welcome()

    def cut(self) -> None:
        """Cut off connections that send much without finishing a message, or nothing."""
        for fd in self._connections.cut(lambda: sockets.readable(self._socket)):
            address = shown(self._connections.origin(fd)) or "an address that is not known"
            self._repeats.warn("cut", f"cut {address}: it sent much without finishing a message, or nothing")

    def close(self) -> None:
        """Close, with a moment for what was sent already to leave."""
        self._connections.arrivals.close()
        sockets.close_monitored(self._socket, self._monitor, sockets.DRAIN_LINGER_MS)

    def _read_on(self) -> _Unread:
        """Read up to TURN_FRAMES frames of the next message, or of the one whose beginning was read; keep the first."""
        unread = self._unread
        while unread.more and len(unread.frames) <= MAX_FRAMES:
            frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            unread.frames.append(frame)
            unread.more = frame.more
        if unread.more:
            skipped = self._skip(self._socket, TURN_FRAMES)
            unread.others += skipped.number
            unread.other_bytes += skipped.size
            unread.more = skipped.more
        return unread

    @staticmethod
    def _descriptor(read: _Unread) -> int | None:
        """Return the descriptor of a message's connection; None for a peer of ZMTP 1 or 2.

        ZeroMQ says nothing about these. An HTTP request can look like one.
        """
        try:
            return int(read.frames[-1].get(zmq.SRCFD))
        except zmq.ZMQError:
            return None

    def _refuse_old(self, peer: bytes) -> None:
        """Tell a peer of ZMTP 1 or 2 once that it is not listened to."""
        if peer not in self._old:
            self._old.append(peer)
            self._repeats.warn("old", "refused a peer: it speaks ZMTP 1 or 2")
            self._sessions.refuse(peer, [], OLD)
