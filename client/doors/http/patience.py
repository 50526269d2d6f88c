"""How long a connection may take to say what it wants: uvicorn itself waits for a request's head without an end."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 60.0
"""Seconds in which the head of a request has to arrive, the first and each later one; at most twice that passes."""


def patient(**given: Any) -> Any:
    """Return a connection's protocol, as uvicorn makes it, which ends where no head comes."""
    protocol = H11Protocol(**given)
    asyncio.get_running_loop().call_later(HEAD_S, _look, protocol, None)
    return protocol


def _look(protocol: Any, before: object) -> None:
    """Close a connection that has begun no request since the last look, and has none that is answered."""
    transport = protocol.transport
    if transport is None or transport.is_closing():
        return
    answered = protocol.cycle is None or protocol.cycle.response_complete
    if protocol.cycle is before and answered:
        transport.close()
        return
    asyncio.get_running_loop().call_later(HEAD_S, _look, protocol, protocol.cycle)
