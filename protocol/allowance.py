"""What a server takes of one client at a time, and how much of it is used: so that a client can wait for its turn."""

from __future__ import annotations

import time

from protocol import messages as m


class Allowance:
    """Count of one connection's open requests against the server's limits. Used by the connection's thread only.

    Other connections of the same key may use the same limits: then the server refuses, and the client tries again.
    """

    def __init__(self) -> None:
        """Begin without limits: those are known when the server has said hello."""
        self._limits: m.Limits | None = None
        self._open: dict[int, int] = {}
        """Tokens of each open request, by its id."""
        self._tokens = 0
        self._allowed = 0.0
        """Number of requests that may be sent at once (a token bucket, as the server's own)."""
        self._counted = 0.0

    def renew(self, limits: m.Limits | None) -> None:
        """Start over with a server's limits."""
        self._limits = limits
        self._open.clear()
        self._tokens = 0
        self._allowed = limits.rate if limits else 0.0
        self._counted = time.monotonic()

    def admits(self, request: m.AnyRequest) -> bool:
        """Return whether the server has a place for a request now, as far as is known here.

        One that is too large for any server with these limits is admitted: its refusal says so.
        """
        limits = self._limits
        if limits is None:
            return True
        now = time.monotonic()
        self._allowed = min(limits.rate, self._allowed + (now - self._counted) * limits.rate)
        self._counted = now
        fits = self._tokens + request.cost <= limits.tokens or not self._open
        return fits and len(self._open) < limits.open and self._allowed >= 1

    def take(self, request: m.AnyRequest) -> None:
        """Note that a request was sent."""
        self._allowed -= 1
        if request.cost or isinstance(request, m.OfText):
            self._open[request.id] = request.cost
            self._tokens += request.cost

    def free(self, request_id: int) -> None:
        """Note that a request has ended, if it counted."""
        self._tokens -= self._open.pop(request_id, 0)
