"""How long a connection may take to say what it wants: uvicorn itself waits for a request's head without an end."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 60.0
"""Seconds in which the head of a request has to arrive, the first and each later one; at most twice that passes."""
BUSY = object()
"""What stands for a request that was being answered at a look."""


class Patient(H11Protocol):
    """A connection as uvicorn makes it, which ends where no head comes."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._next_look.cancel()  # these would hold all of the connection for a minute
        self._unset_keepalive_if_required()

    def _look_later(self) -> None:
        rests = self.cycle is None or self.cycle.response_complete
        self._next_look = self.loop.call_later(HEAD_S, self._look, self.cycle if rests else BUSY)

    def _look(self, before: object) -> None:
        """Close the connection if it has rested since the last look, `before` being its latest request then."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.cycle is before:
            self.transport.close()
        else:
            self._look_later()
