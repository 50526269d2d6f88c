"""TCP connections of the gateway's socket: which are open, and that none fills the memory without sending messages.

ZeroMQ hands on a message of several frames when its last frame has come, and bounds the frames' sizes, not their
number; nor does it bound how many messages wait here (see sockets.gateway_socket). So what the system has received on
each connection is compared with what has come out of it. Only Linux says how much that is; elsewhere nobody is cut.
"""

from __future__ import annotations

import itertools
import math
import socket
import sys
import time
from collections.abc import Callable

from protocol.codec import MAX_REQUEST_BYTES
from protocol.sockets import CURVE_BYTES, HANDSHAKE_MS, RECEIVE_BYTES
from server.gateway.descriptors import Arrivals, bytes_received
from server.gateway.holding import Holding, Traffic

MAX_UNFINISHED_BYTES = MAX_REQUEST_BYTES + (16 << 10)
"""The largest request, with an envelope and the handshake. An empty frame takes two bytes on the wire, 64 in the
memory, and 0.25 us to read, while nobody else's messages can be: 35 ms for a message that is just not cut."""
MAX_BACKLOG_BYTES, MAX_BACKLOG_FRAMES = 16 << 20, 20_000
"""Limits while messages wait to be read, which may be its own. The number of frames is estimated from the size of
those read last."""
CROWDED_BYTES, LEAST_JUDGED_CROWDED = 8 << 20, 20
"""Level of all connections together from which fewer frames are enough to judge one: a flood over many connections
grows faster than 300 messages of each are read."""
BEHIND_BYTES, LEAST_JUDGED = 4096, 300
"""Level from which frames are judged by those that were read, and the least number of these: small requests may come
before large ones."""
SMALL_BYTES = 32
"""Size of a frame of which nothing is known: the least that a request takes."""
SILENT_S = 15.0
"""Longest silence of a peer, which answers heartbeats each second unless its line stalls; after that it speaks another
protocol. As long as a handshake may take."""
MAX_SHAKING, SHAKING_S = 256, 3.0
"""Most connections whose handshakes may take as long as a slow line needs (sockets.HANDSHAKE_MS); where there are more,
the oldest have as long as a fast one needs."""
SHAKEN_S = HANDSHAKE_MS / 1000 + 1
"""Age of a connection whose handshake is done: ZeroMQ has ended the others."""
SHORT, LONG = 2, 9
"""Bytes that ZMTP adds to a frame of up to 255 bytes, and to a longer one (https://rfc.zeromq.org/spec/37/)."""
HEARTBEAT_BYTES_S = 256
"""Heartbeats of both sides, with as much to spare."""
NEWER = 0.05
"""Weight of a new message in the moving average of frame sizes."""
LOOK_S, LOOK_EACH_S = 0.002, 3e-5
"""Least time between two looks at the connections, and what each adds: a tenth of the time with many."""


def is_too_much(traffic: Traffic, *, waiting: bool, crowded: bool) -> bool:
    """Return whether a connection has sent too much that is not a message."""
    if waiting:
        least = LEAST_JUDGED_CROWDED if crowded else LEAST_JUDGED
        judged = not traffic.doubtful or traffic.level > MAX_UNFINISHED_BYTES  # less may be one request of its own
        many = judged and traffic.frames > least and traffic.level / traffic.frame > MAX_BACKLOG_FRAMES
        return traffic.level > MAX_BACKLOG_BYTES or many
    return traffic.level > MAX_UNFINISHED_BYTES


class Connections:
    """Table of the open connections. Used by the gateway's thread only."""

    def __init__(self, *, encrypted: bool) -> None:
        self._added = CURVE_BYTES if encrypted else 0
        self._all: dict[int, Traffic] = {}
        self._looked = 0.0
        self._left = 0.0
        """Number of frames of ended connections that wait to be read, estimated."""
        self._former: dict[int, Traffic] = {}
        """Connections that have ended while messages waited, which may be theirs, by descriptor: the last of each."""
        self._new: list[int] = []
        self._holding = Holding(self._added + SHORT)
        self.arrivals = Arrivals()
        self.ended = 0
        """Number of connections that have ended."""
        self._shaking: dict[int, float] = {}
        """Time when each connection was made whose handshake may not be done, the oldest first.

        A message shows that it is: ZeroMQ's event about it does not say of which connection it is.
        """
        self._unfinished = False
        """Whether some connection had sent what was no message yet, at the last look."""
        self._last_end = time.monotonic()
        """Time when the last connection ended, or when this table was made."""

    def __contains__(self, fd: int) -> bool:
        return fd in self._all

    def __len__(self) -> int:
        return len(self._all)

    @property
    def empty_s(self) -> float:
        """Seconds since there was a connection; 0 while there is one."""
        return 0.0 if self._all else time.monotonic() - self._last_end

    def at_rest(self) -> bool:
        """Return whether nothing comes: nothing has since the last call, and all that came before was a message.

        What comes from now on makes `arrivals` readable.
        """
        return not self._shaking and not self._unfinished and not self._holding and not self.arrivals.take()

    def opened(self, fd: int, admitted: int = -1) -> None:
        """Note a new connection, and the number of the one that was admitted last.

        Another may have its descriptor by now. Then its end waits among the events, and `closed` is called before
        anything is cut: so the identity that is read here is the connection's own, or is never used.
        """
        traffic = self._all[fd] = Traffic(doubtful=fd in self._former and not self._added, after=admitted)
        self._shaking.pop(fd, None)
        self._shaking[fd] = traffic.moved
        traffic.identify(fd)
        self._new.append(fd)
        self.arrivals.opened(fd)

    def listening(self, fd: int) -> None:
        """Note the descriptor of the socket that listens."""
        self._holding.listening(fd)

    def closed(self, fd: int) -> None:
        self._shaking.pop(fd, None)
        self._holding.closed(fd)
        if traffic := self._all.pop(fd, None):
            self.ended += 1
            self._former[fd] = traffic
            self._last_end = time.monotonic()
            self._left += traffic.level / (SMALL_BYTES if traffic.frame == math.inf else traffic.frame)

    def origin(self, fd: int) -> str:
        """Return the address of an open connection's peer, of IPv6 the network; empty if it is not known."""
        return self._all[fd].origin

    def owns(self, fd: int, number: int) -> bool:
        """Return whether a message with that descriptor and number is of the connection that has the descriptor now."""
        traffic = self._all.get(fd)
        return traffic is not None and number > traffic.after

    def delivered(self, fd: int, sizes: list[int], others: int = 0, other_bytes: int = 0, *, own: bool = True) -> None:
        """Note a message that has come out of a connection: the sizes of its first frames, and how much follows.

        `own`: of the one that has the descriptor now, as far as that is known.
        """
        frames = len(sizes) + others
        traffic = self._all.get(fd)
        if traffic and own:
            on_the_wire = self._on_the_wire(sizes, others, other_bytes)
            if traffic.doubtful and bytes_received(fd) < traffic.total + on_the_wire:
                return  # it has not sent as much: a former one has
            self._shaking.pop(fd, None)
            traffic.delivered += on_the_wire
            traffic.total += on_the_wire
            frame = on_the_wire / max(1, frames)
            traffic.frames += frames
            traffic.frame = frame if traffic.frame == math.inf else traffic.frame + NEWER * (frame - traffic.frame)
        else:
            self._left -= frames

    def proved(self, fd: int) -> None:
        """Note that a connection has sent a message that is one."""
        traffic = self._all.get(fd)
        if traffic is None:
            return
        traffic.proven = True
        if not traffic.roomy and self._holding.has_room(traffic):
            traffic.roomy = True
            traffic.do(fd, lambda peer: peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES))

    def shut(self, fd: int) -> bool:
        """Cut a connection off: ZeroMQ sees its end, and frees what it has kept. False: it has ended, or was cut."""
        traffic = self._all.get(fd)
        if traffic is None or traffic.shut:
            return False
        traffic.shut = traffic.do(fd, lambda peer: peer.shutdown(socket.SHUT_RDWR))
        return traffic.shut

    def shut_sender(
        self, fd: int, sizes: list[int], others: int = 0, other_bytes: int = 0, *, own: bool = True
    ) -> None:
        """Cut off the sender of a message, which `delivered` describes, and nobody who has its descriptor since.

        A later one has not sent as much beside the messages that have come out of it.
        """
        traffic = self._all.get(fd)
        if traffic is None or not own:
            if fd in self._former:
                self._holding.strike(self._former[fd], self._all.values())
            return
        unread = bytes_received(fd) - traffic.total
        if sys.platform != "linux" or unread >= self._on_the_wire(sizes, others, other_bytes):
            self._holding.strike(traffic, self._all.values())
            self.shut(fd)

    def welcome(self) -> None:
        """Let new connections wait while much is to be read; called when no event is left to read."""
        for fd in self._new:
            if (traffic := self._all.get(fd)) and not self._holding.opened(fd, traffic):
                self.shut(fd)
        self._new.clear()

    def cut(self, behind: Callable[[], bool]) -> list[int]:
        """Cut off those that have sent too much without a message, or nothing; return their file descriptors.

        `behind()` says whether messages wait to be read.
        """
        now = time.monotonic()
        if sys.platform != "linux" or now < self._looked + LOOK_S + len(self._all) * LOOK_EACH_S:
            return []
        self._looked = now
        for fd, traffic in self._all.items():
            received = bytes_received(fd)
            if received != traffic.received:
                traffic.moved = now
            passed = traffic.delivered + HEARTBEAT_BYTES_S * (now - traffic.looked)
            traffic.level = max(0.0, traffic.level + received - traffic.received - passed)
            traffic.received = received
            traffic.delivered = 0
            traffic.looked = now
            if traffic.level < BEHIND_BYTES:
                traffic.frame, traffic.frames = math.inf, 0
                traffic.suspect = False
        waiting = behind()  # asked after the measurement, or what has come in between would count as unfinished
        self._left = max(0.0, self._left) if waiting else 0.0
        if not waiting and self._former:
            self._former.clear()
            for traffic in self._all.values():
                if traffic.doubtful:  # what was counted may be another's
                    traffic.doubtful = False
                    traffic.frame, traffic.frames = math.inf, 0
        unfinished = sum(traffic.level for traffic in self._all.values())
        self._unfinished, crowded = unfinished > 0, unfinished > CROWDED_BYTES
        self._holding.look(self._all, self._left, now, waiting=waiting)
        late = self._late(now)
        cut = [
            fd
            for fd, traffic in self._all.items()
            if is_too_much(traffic, waiting=waiting, crowded=crowded)
            or self._holding.is_too_much(traffic)
            or (now > traffic.moved + SILENT_S and fd not in self._holding)
            or fd in late
        ]
        return [fd for fd in cut if self.shut(fd)]

    def _late(self, now: float) -> set[int]:
        """Return those in their handshake that are too old, and too many."""
        for fd in [fd for fd, began in self._shaking.items() if now > began + SHAKEN_S]:
            del self._shaking[fd]
        oldest = itertools.islice(self._shaking.items(), max(0, len(self._shaking) - MAX_SHAKING))
        return {fd for fd, began in oldest if now > began + SHAKING_S}

    def _on_the_wire(self, sizes: list[int], others: int, other_bytes: int) -> int:
        """Return the bytes that frames of those sizes take, and others with as many bytes at least."""
        first = sum(size + self._added + (SHORT if size + self._added < 256 else LONG) for size in sizes)
        return first + other_bytes + others * (self._added + SHORT)
