"""Whether the server at the other end still lives: how long it is silent, how fast it answers, when it is given up."""

from __future__ import annotations

import time
from typing import Literal

LOST_S, SILENT_S = 2.0, 4.0
LOST_AT_LEAST_S = 0.7
"""Seconds that the requests of a broken connection wait for the reconnection that shows what happened; less, down to
the last, where the server was silent before, so that they end within 5 s of its last message.
"""
CONNECT_TRIPS = 8
"""Round trips that a connection with keys takes, with two to spare: the same wait on a slow line is longer by these."""
QUIET_S = 1.2
"""Seconds of silence, while a request is open, after which the server is asked for a sign of life."""
STUCK_S, STUCK_MOST_S = 3.0, 8.0
STUCK_TRIPS = 5
"""Seconds within which a server that is not stuck answers that; as many round trips more; and the most of both, so that
it is noticed before the heartbeats give the connection up.
"""


class Pulse:
    """Times of one connection after the other, monotonic and in seconds."""

    def __init__(self) -> None:
        self._heard = self._asked = 0.0
        self._waits = False
        """Whether a ping is under way."""
        self._round_trip = 0.0
        """Seconds that the server's latest answers to hello and ping took; it falls slowly."""

    def asked(self, *, ping: bool) -> None:
        """Note that the server was asked for an answer that it gives at once: by a ping, or a hello."""
        self._asked, self._waits = time.monotonic(), ping

    def greeted(self) -> None:
        """Note that it has answered a hello."""
        self._measure()

    def answered(self) -> None:
        """Note that it has answered a ping."""
        if self._waits:
            self._waits = False
            self._measure()

    def heard(self) -> None:
        """Note that something has come."""
        self._heard = time.monotonic()

    def ended(self) -> None:
        """Note that the connection has ended."""
        self._waits = False

    def lost_until(self) -> float:
        """Return the time until which requests wait for a reconnection, when the connection has just broken."""
        now = time.monotonic()
        least = max(self._heard + SILENT_S, now + LOST_AT_LEAST_S)
        return min(now + LOST_S, least) + CONNECT_TRIPS * self._round_trip

    def look(self, *, waiting: bool) -> Literal["well", "ask", "stuck"]:
        """Return what to do about the server: nothing, ask it, as long as requests wait for it, or give it up."""
        now = time.monotonic()
        if not self._waits:
            return "ask" if waiting and now > max(self._heard, self._asked) + QUIET_S else "well"
        self._waits = self._heard <= self._asked
        patience = min(STUCK_MOST_S, STUCK_S + STUCK_TRIPS * self._round_trip)
        return "stuck" if self._waits and now > self._asked + patience else "well"

    def _measure(self) -> None:
        self._round_trip = max(time.monotonic() - self._asked, 0.75 * self._round_trip)
