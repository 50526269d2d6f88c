"""AsyncClient: Client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Self, TypeVar

from protocol import messages as m
from protocol.client import (
    CONTROL_S,
    GENERATE_S,
    LOAD_S,
    MEASURE_S,
    UNLOAD_S,
    OpenStream,
    expect,
    generate_request,
    is_last,
    text_request,
)
from protocol.connection import Connection, Event
from protocol.keys import DEFAULT_ENDPOINT

R = TypeVar("R", bound=m.Result)


class AsyncStream(OpenStream, AsyncIterator[m.Tokens]):
    """Same as client.Stream. Use `async with` (or `close`) where the loop may be left early: that cancels the
    generation.
    """

    def __init__(self, connection: Connection, request: m.Generate, timeout: float) -> None:
        super().__init__(connection)
        self._events, on_event = _event_queue()
        self.id = connection.submit(request, on_event, timeout)

    async def __anext__(self) -> m.Tokens:
        if self._over:
            raise StopAsyncIteration
        try:
            while isinstance(event := await self._events.get(), m.Progress):
                self.place = event.done
        except asyncio.CancelledError:
            self.close()
            raise
        self.place = 0
        if isinstance(event, m.Tokens):
            return event
        self._over = True
        self._result = expect(event, m.Generated)
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """A connection to one daemon, for use in one event loop."""

    def __init__(
        self, endpoint: str = DEFAULT_ENDPOINT, *, server_key: str | None = None, key: str | None = None
    ) -> None:
        """Return without waiting. `endpoint` may be a connect line; else the keys (Z85) are given apart: the server's
        public key and your own secret key, as protocol.keys.read_secret reads it from its file.

        Raises: ValueError for a malformed endpoint or key, ConnectionFailed if this process may open no more files.
        """
        self.connection = Connection(endpoint, server_key=server_key, key=key)

    async def hello(self, timeout: float = CONTROL_S) -> m.ServerInfo:
        return await self._call(m.Hello(), m.ServerInfo, timeout)

    async def ping(self, timeout: float = CONTROL_S) -> m.Pong:
        return await self._call(m.Ping(), m.Pong, timeout)

    async def models(self, timeout: float = CONTROL_S) -> list[m.ModelInfo]:
        return (await self._call(m.Models(), m.ModelList, timeout)).models

    async def stats(self, timeout: float = CONTROL_S) -> m.Stats:
        return await self._call(m.GetStats(), m.Stats, timeout)

    async def load(
        self,
        model: str,
        *,
        engine: str | None = None,
        precision: str | None = None,
        compile: bool = False,  # noqa: A002 - its name on the wire
        replicas: int | None = None,
        on_progress: Callable[[m.Progress], object] | None = None,
        timeout: float = LOAD_S,
    ) -> m.Loaded:
        """Same as Client.load; `on_progress` is called in the event loop."""
        request = m.Load(
            model=model,
            engine=engine,
            precision=precision,
            compile=compile,
            replicas=replicas,
            stream=on_progress is not None,
        )
        return await self._call(request, m.Loaded, timeout, on_progress)

    async def measure(
        self,
        model: str,
        *,
        engine: str | None = None,
        precision: str | None = None,
        text: str | None = None,
        on_progress: Callable[[m.Progress], object] | None = None,
        timeout: float = MEASURE_S,
    ) -> m.Measured:
        """Same as Client.measure; `on_progress` is called in the event loop."""
        request = m.Measure(model=model, engine=engine, precision=precision, text=text, stream=on_progress is not None)
        return await self._call(request, m.Measured, timeout, on_progress)

    async def unload(
        self, model: str, *, engine: str | None = None, precision: str | None = None, timeout: float = UNLOAD_S
    ) -> list[str]:
        """Same as Client.unload."""
        return (await self._call(m.Unload(model=model, engine=engine, precision=precision), m.Unloaded, timeout)).names

    async def generate(self, prompt: str | None = None, *, timeout: float = GENERATE_S, **settings: Any) -> m.Generated:
        """Same as Client.generate; cancelling the task cancels the generation."""
        return await self._call(generate_request(prompt, stream=False, **settings), m.Generated, timeout)

    def stream(self, prompt: str | None = None, *, timeout: float = GENERATE_S, **settings: Any) -> AsyncStream:
        """Same as Client.stream, for `async for`."""
        return AsyncStream(self.connection, generate_request(prompt, stream=True, **settings), timeout)

    async def tokenize(
        self, text: str | None = None, *, ids: list[int] | None = None, timeout: float = CONTROL_S, **which: Any
    ) -> m.Tokenized:
        """Same as Client.tokenize."""
        return await self._call(text_request(m.Tokenize, text, ids, which), m.Tokenized, timeout)

    async def score(
        self, text: str | None = None, *, ids: list[int] | None = None, timeout: float = GENERATE_S, **which: Any
    ) -> m.Scored:
        """Same as Client.score."""
        return await self._call(text_request(m.Score, text, ids, which), m.Scored, timeout)

    async def close(self) -> None:
        await asyncio.to_thread(self.connection.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(
        self,
        request: m.AnyRequest,
        wanted: type[R],
        timeout: float,
        on_progress: Callable[[m.Progress], object] | None = None,
    ) -> R:
        events, on_event = _event_queue()
        request_id = self.connection.submit(request, on_event, timeout)
        over = False
        try:
            while isinstance(event := await events.get(), m.Progress):
                if on_progress:
                    on_progress(event)
            over = is_last(event)
            return expect(event, wanted)
        finally:
            if not over:  # cancelled, or an error in on_progress: nobody waits for it any more
                self.connection.cancel(request_id)


def _event_queue() -> tuple[asyncio.Queue[Event], Callable[[Event], None]]:
    """Return a queue in the running loop, and a callback that fills it from the connection's thread."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def on_event(event: Event) -> None:
        try:
            loop.call_soon_threadsafe(events.put_nowait, event)
        except RuntimeError:  # the loop was closed, so that nobody waits
            if not is_last(event):
                raise  # which cancels the request

    return events, on_event
