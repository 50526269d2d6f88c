"""Answers that end when the HTTP client leaves: what is under way for it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeAlias, TypeVar

from client.doors.http.errors import SERVER, Refused

R = TypeVar("R")
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

SEND_S = 30.0
"""Seconds that a client may take to read a piece; then its answer is given up."""
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]

LAST = {"type": "http.response.body", "body": b"", "more_body": False}


def stopping() -> Refused:
    """Return what those are told whose answers are not done when the door closes."""
    return Refused(503, "gpt2d-http is stopping; ask again when it runs", SERVER)


class Left(Exception):
    """The client has closed its connection."""


async def unless_left(receive: Receive, work: Coroutine[Any, Any, R]) -> R:
    """Do the work, whose task is cancelled if the client leaves meanwhile. Raises: Left, and what the work raises."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Left
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _left(receive: Receive) -> None:
    """Return when the client leaves; what else it sends is not wanted."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Events:
    """A response of server-sent events, https://html.spec.whatwg.org/multipage/server-sent-events.html."""

    def __init__(self, pieces: AsyncGenerator[bytes], first: bytes) -> None:
        """`pieces` are the data of the events after the first one; it is closed at the end, whatever happens."""
        self._pieces = pieces
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's three
        try:
            await unless_left(receive, self._send(send))
        except (Left, TimeoutError):
            return
        except asyncio.CancelledError:  # by uvicorn, which has waited long enough for the ends of streams
            await _put(send, stopping().body())
            await send(LAST)
        finally:
            await self._pieces.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await _put(send, self._first)
        async for piece in self._pieces:
            await _put(send, piece)
        await send(LAST)


async def _put(send: Send, data: bytes) -> None:
    async with asyncio.timeout(SEND_S):
        await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
