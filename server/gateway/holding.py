"""Which connections are held, so that what others have sent never takes long to read.

ZeroMQ reads all that comes in, and gives it out in its own order: what waits there, other peers' messages and what
connections have left that are gone, is read before a message that comes now. So the time that reading it will take is
estimated. While it is more than AHEAD_S, new connections wait their turn, and so do those of which most waits.

A connection is trusted once a message of it was one. Its unfinished message is then expected to be one, too; of another
connection it may be of empty parts, of which ZeroMQ gives the last one before anybody else's message. Who sends a
message of very many parts gives its address away: connections made from there afterwards are not trusted.
"""

from __future__ import annotations

import contextlib
import math
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from server.gateway.descriptors import hold, identity, origin, release, same

AHEAD_S = 0.04
"""Most time that reading what waits may take, by the estimate, before connections are held: one first message of the
largest size may come."""
READ_S, PART_S = 8e-6, 0.25e-6
"""Time to read a message, and to skip a part."""
BEHIND_S = 0.2
"""Time for which messages have waited all the while, after which there is more than was estimated: connections that
come and go between two looks leave what nobody has counted."""
HANDSHAKE_BYTES = 1024
"""Bytes of a handshake, at most, which are no message: a crowd of new connections brings nothing to read."""
LEAST_S, LEAST_UNKNOWN_S = 0.01, 0.001
"""Least time of what waits of a connection that is worth holding it, and the same of one that has not proved itself."""
MAX_FIRST_BYTES = 16 << 10
"""Most of a first message from an address that has sent such messages; of any message, if one was not the first."""
LONGEST_S, EACH_S = 0.5, 0.02
"""Time after which one that is held is let go all the same, and the least time between two of these."""
DUE_S, DUE_FOR_S = 0.0004, 0.25
"""Time that reading what comes of one that was let go is expected to take, until some has come."""
GRACE_S = 0.5
"""Time in which it is not held again: its peer's system tries again only now and then."""
REMEMBERED_S, MAX_REMEMBERED = 60.0, 1000
"""How long an address is remembered, and how many are."""


@dataclass
class Traffic:
    """Bytes received and delivered. `level` is the difference: bytes that are not a message yet."""

    identity: object = None
    """Distinguishes this connection from a later one, or a file, that has the same descriptor."""
    after: int = -1
    """Number of the connection that had been admitted last when this one was made (auth.Guard)."""
    origin: str = ""
    """Address of the peer."""
    received: int = 0
    delivered: int = 0
    """Bytes since the last look."""
    total: int = 0
    """Bytes delivered since its beginning."""
    level: float = 0.0
    frame: float = math.inf
    """Size of its frames on the wire: a moving average since it fell behind."""
    frames: int = 0
    """Number of frames delivered since then."""
    doubtful: bool = False
    """Whether messages of a former connection with its descriptor may still come, which nothing tells from its own."""
    shut: bool = False
    """Whether it was cut off, and ZeroMQ has not said yet that it has ended."""
    proven: bool = False
    """Whether a message of it was a request, or might have been one."""
    suspect: bool = False
    """Whether it was sending much when its address sent a message of very many parts."""
    roomy: bool = False
    """Whether the system buffers as much of it as of those that are known."""
    began: float = field(default_factory=time.monotonic)
    looked: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    """Time when something was last received."""
    released: float = -math.inf
    """Time when it was last let go."""
    kept_until: float = -math.inf
    """Time until which it is not held again."""

    def identify(self, fd: int) -> None:
        """Note whose the descriptor is."""
        with contextlib.suppress(OSError), same(fd) as peer:
            self.identity, self.origin = identity(peer), origin(peer)

    def do(self, fd: int, what: Callable[[socket.socket], None]) -> bool:
        """Do something with its socket. False: it has ended, or cannot be done.

        ZeroMQ may have closed the descriptor, and the system may have given it to another peer or to a file. A
        duplicate cannot change hands: what is compared is what is used.
        """
        if self.identity is not None:
            with contextlib.suppress(OSError), same(fd) as peer:
                if identity(peer) == self.identity:
                    what(peer)
                    return True
        return False


@dataclass
class Offender:
    """Address that has sent a message of very many parts."""

    first: float
    last: float
    """Times of the first and the last one."""
    proven: bool = False
    """Whether its connection had sent another message before, so that this shows nothing."""


class Holding:
    """Table of those that are held. Used by the gateway's thread only."""

    def __init__(self, part: int) -> None:
        """`part` is the least number of bytes that a part takes on the wire."""
        self._part = part
        self._held: dict[int, float] = {}
        """Time since when each descriptor's connection is held."""
        self._offenders: dict[str, Offender] = {}
        """By address, the one that was not heard of for longest first."""
        self._ahead_s = 0.0
        self._caught_up = time.monotonic()
        """Time when nothing waited."""
        self._last_release = 0.0
        self._queued = False
        """Whether one that is not trusted waits."""
        self._listener: int | None = None
        self._closed = self._was_closed = False
        """Whether new connections are held from their beginning on, and whether they ever were."""

    def __contains__(self, fd: int) -> bool:
        return fd in self._held

    def __len__(self) -> int:
        return len(self._held)

    def strike(self, traffic: Traffic, everybody: Iterable[Traffic]) -> None:
        """Note that a connection has sent what nobody sends by mistake."""
        now = time.monotonic()
        offender = self._offenders.pop(traffic.origin, Offender(now, now))
        offender.last, offender.proven = now, offender.proven or traffic.proven
        self._offenders[traffic.origin] = offender
        for other in everybody:
            other.suspect = other.suspect or (other.origin == traffic.origin and other.level > MAX_FIRST_BYTES)
        if len(self._offenders) > MAX_REMEMBERED:
            del self._offenders[next(iter(self._offenders))]

    def listening(self, fd: int) -> None:
        """Note the descriptor of the socket that listens."""
        self._listener = fd

    def opened(self, fd: int, traffic: Traffic) -> bool:
        """Hold a new connection if others wait, too, or much is to be read. False: it should be, but cannot."""
        now = time.monotonic()
        if sys.platform != "linux":
            return True
        if self._queued or self.busy(now):
            return self._hold(fd, traffic, now)
        if self._was_closed:
            traffic.do(fd, release)
        return True

    def is_too_much(self, traffic: Traffic) -> bool:
        """Return whether a connection has sent more than its address is trusted with."""
        offender = self._offender(traffic)
        return offender is not None and traffic.level > MAX_FIRST_BYTES and (offender.proven or not traffic.proven)

    def has_room(self, traffic: Traffic) -> bool:
        """Return whether the system may buffer as much of a connection as of those that are known."""
        return self._trusts(traffic) and not self.busy(time.monotonic())

    def busy(self, now: float) -> bool:
        """Return whether more is to be read than is good for those that come now."""
        return self._ahead_s > AHEAD_S or now > self._caught_up + BEHIND_S

    def closed(self, fd: int) -> None:
        self._held.pop(fd, None)

    def look(self, everybody: dict[int, Traffic], left: float, now: float, *, waiting: bool) -> None:
        """Hold connections, or let them go.

        `left` is the number of messages of those that are gone, `waiting` says whether any message waits.
        """
        if not waiting:
            self._caught_up = now
        for where in [each for each, offender in self._offenders.items() if now > offender.last + REMEMBERED_S]:
            del self._offenders[where]
        costs = {fd: self._cost(traffic, now) for fd, traffic in everybody.items()}
        self._ahead_s = left * READ_S + sum(cost for fd, cost in costs.items() if fd not in self._held)
        for fd in self._dear(everybody, costs):
            if self._ahead_s <= AHEAD_S:
                break
            if now > everybody[fd].kept_until and self._hold(fd, everybody[fd], now):
                self._ahead_s -= costs[fd]
        queued = False  # whether one that is not trusted has to wait, and so those that came after it
        for fd in sorted(self._held, key=lambda fd: everybody[fd].began):
            trusted = self._trusts(everybody[fd])
            fits = self._ahead_s + costs[fd] <= AHEAD_S and not self.busy(now) and (trusted or not queued)
            due = now > self._held[fd] + LONGEST_S and now > self._last_release + EACH_S
            if fits or due:
                traffic = everybody[fd]
                traffic.kept_until = now if fits or self._offender(traffic) else now + GRACE_S
                self._release(fd, traffic, now)
                self._ahead_s += self._cost(traffic, now)
            else:
                queued = queued or not trusted
        self._queued = queued
        self._close(queued or self.busy(now))

    def _dear(self, everybody: dict[int, Traffic], costs: dict[int, float]) -> list[int]:
        """Return those that are worth holding: unknown ones first, the latest before those that have begun.

        Of the others, the one of which most waits comes first.
        """
        free = [(fd, everybody[fd], cost) for fd, cost in costs.items() if fd not in self._held]
        unknown = [fd for fd, traffic, cost in free if cost > LEAST_UNKNOWN_S and not self._trusts(traffic)]
        known = [fd for fd, traffic, cost in free if cost > LEAST_S and self._trusts(traffic)]
        unknown.sort(key=lambda fd: everybody[fd].began, reverse=True)
        known.sort(key=costs.__getitem__, reverse=True)
        return unknown + known

    def _close(self, closed: bool) -> None:
        """Hold new connections before anything of them comes in: they inherit the filter of the socket that listens."""
        if closed != self._closed and self._listener is not None:
            with contextlib.suppress(OSError), same(self._listener) as listener:
                (hold if closed else release)(listener)
            self._closed, self._was_closed = closed, True

    def _hold(self, fd: int, traffic: Traffic, now: float) -> bool:
        held = traffic.do(fd, hold)
        if held:
            self._held[fd] = now
        return held

    def _release(self, fd: int, traffic: Traffic, now: float) -> None:
        traffic.do(fd, release)
        del self._held[fd]
        traffic.released = traffic.moved = self._last_release = now

    def _trusts(self, traffic: Traffic) -> bool:
        return traffic.proven and not traffic.suspect and not self._offender(traffic)

    def _offender(self, traffic: Traffic) -> Offender | None:
        """Return what is known against a connection: those that were known already are not judged by its address."""
        offender = self._offenders.get(traffic.origin)
        later = offender and (traffic.began > offender.first or not traffic.proven)
        return offender if later else None

    def _cost(self, traffic: Traffic, now: float) -> float:
        """Return the time that reading what waits of a connection may take."""
        unknown = max(0.0, traffic.level - HANDSHAKE_BYTES)
        if traffic.doubtful:  # the frames that were read may be another's
            cost = unknown / self._part * PART_S
        elif traffic.frame != math.inf:
            cost = traffic.level / traffic.frame * READ_S
        elif self._trusts(traffic):
            cost = 0.0
        else:
            cost = unknown / self._part * PART_S
        due = not traffic.proven and now < traffic.released + DUE_FOR_S
        return max(cost, DUE_S) if due else cost
