"""AsyncClient: Client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

from protocol import messages as m
from protocol.client import (
    CALIBRATE_S,
    CONTROL_S,
    GENERATE_S,
    LOAD_S,
    MEASURE_S,
    UNLOAD_S,
    OpenStream,
    expect,
    is_last,
)
from protocol.connection import Connection, Event
from protocol.errors import Cancelled
from protocol.keys import DEFAULT_ENDPOINT
from protocol.many import GENERATIONS, MANY_S, SCORES, ManyScores, generations
from protocol.requests import request

R = TypeVar("R", bound=m.Result)


class AsyncStream(OpenStream, AsyncIterator[m.Tokens]):
    """Same as client.Stream, which says when it is cancelled: use `async with` where a variable holds it.

    A task that is cancelled while it waits for a piece drops its stream, which ends it, if nothing else holds that;
    `asyncio.wait_for(anext(stream), seconds)` leaves it as it is, and the next piece is the one that was waited for.
    """

    def __init__(self, connection: Connection, generate: m.Generate, timeout: float | None, *, wait: bool) -> None:
        super().__init__(connection, generate.n)
        self._events, on_event = _event_queue()
        self.id = connection.submit(generate, on_event, timeout, wait=wait)

    async def __anext__(self) -> m.Tokens:
        if self._over:
            raise StopAsyncIteration
        try:
            while isinstance(event := await self._events.get(), m.Progress):
                self.place = event.done
        except asyncio.CancelledError:  # perhaps of a wait_for
            raise
        except BaseException:
            self.cancel()
            raise
        self.place = 0
        if isinstance(event, m.Tokens):
            return self._piece(event)
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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.connection.endpoint!r}, {self.connection.state})"

    async def hello(self, timeout: float | None = CONTROL_S) -> m.ServerInfo:
        return await self._call(m.Hello(), m.ServerInfo, timeout)

    async def ping(self, timeout: float | None = CONTROL_S) -> m.Pong:
        return await self._call(m.Ping(), m.Pong, timeout)

    async def models(self, timeout: float | None = CONTROL_S) -> list[m.ModelInfo]:
        return (await self._call(m.Models(), m.ModelList, timeout)).models

    async def stats(self, timeout: float | None = CONTROL_S) -> m.Stats:
        return await self._call(m.GetStats(), m.Stats, timeout)

    async def load(
        self,
        model: str,
        *,
        engine: str | None = None,
        precision: str | None = None,
        compile: bool = False,  # noqa: A002 - its name on the wire
        cache: str | None = None,
        replicas: int | None = None,
        on_progress: Callable[[m.Progress], object] | None = None,
        timeout: float | None = LOAD_S,
    ) -> m.Loaded:
        """Same as Client.load; `on_progress` is called in the event loop."""
        which = {"model": model, "engine": engine, "precision": precision}
        load = request(m.Load, which, compile=compile, cache=cache, replicas=replicas, stream=on_progress is not None)
        return await self._call(load, m.Loaded, timeout, on_progress)

    async def measure(
        self,
        model: str,
        *,
        engine: str | None = None,
        precision: str | None = None,
        text: str | None = None,
        cache: str | None = None,
        on_progress: Callable[[m.Progress], object] | None = None,
        timeout: float | None = MEASURE_S,
    ) -> m.Measured:
        """Same as Client.measure; `on_progress` is called in the event loop."""
        which = {"model": model, "engine": engine, "precision": precision}
        measure = request(m.Measure, which, text=text, cache=cache, stream=on_progress is not None)
        return await self._call(measure, m.Measured, timeout, on_progress)

    async def calibrate(
        self,
        model: str,
        *,
        text: str | None = None,
        on_progress: Callable[[m.Progress], object] | None = None,
        timeout: float | None = CALIBRATE_S,
    ) -> m.Calibrated:
        """Same as Client.calibrate; `on_progress` is called in the event loop."""
        calibrate = request(m.Calibrate, {"model": model}, text=text, stream=on_progress is not None)
        return await self._call(calibrate, m.Calibrated, timeout, on_progress)

    async def unload(
        self, model: str, *, engine: str | None = None, precision: str | None = None, timeout: float | None = UNLOAD_S
    ) -> list[str]:
        """Same as Client.unload."""
        which = {"model": model, "engine": engine, "precision": precision}
        return (await self._call(request(m.Unload, which), m.Unloaded, timeout)).names

    async def generate(
        self, prompt: str | None = None, *, timeout: float | None = GENERATE_S, wait: bool = True, **settings: Any
    ) -> m.Generated:
        """Same as Client.generate; cancelling the task cancels the generation."""
        generate = request(m.Generate, settings, prompt=prompt, stream=False)
        return await self._call(generate, m.Generated, timeout, wait=wait)

    def stream(
        self, prompt: str | None = None, *, timeout: float | None = GENERATE_S, wait: bool = True, **settings: Any
    ) -> AsyncStream:
        """Same as Client.stream, for `async for`."""
        generate = request(m.Generate, settings, prompt=prompt, stream=True)
        return AsyncStream(self.connection, generate, timeout, wait=wait)

    async def generate_many(
        self, prompts: Iterable[str], *, timeout: float | None = MANY_S, **settings: Any
    ) -> AsyncGenerator[m.Generated, None]:
        """Same as Client.generate_many, for `async for`. Who leaves the loop early cancels what is under way with
        `contextlib.aclosing(client.generate_many(...))`, or by cancelling the task.
        """
        requests = generations(prompts, settings)
        async with contextlib.aclosing(self.in_order(requests, timeout, GENERATIONS)) as answers:
            async for event in answers:
                yield expect(event, m.Generated)

    async def tokenize(
        self,
        text: str | None = None,
        *,
        ids: Sequence[int] | None = None,
        timeout: float | None = CONTROL_S,
        wait: bool = True,
        **which: Any,
    ) -> m.Tokenized:
        """Same as Client.tokenize."""
        return await self._call(request(m.Tokenize, which, text=text, ids=ids), m.Tokenized, timeout, wait=wait)

    async def score(
        self,
        text: str | None = None,
        *,
        ids: Sequence[int] | None = None,
        timeout: float | None = GENERATE_S,
        wait: bool = True,
        **which: Any,
    ) -> m.Scored:
        """Same as Client.score."""
        return await self._call(request(m.Score, which, text=text, ids=ids, texts=None), m.Scored, timeout, wait=wait)

    async def score_many(
        self,
        texts: Iterable[str | m.Passage],
        *,
        contexts: Iterable[str] | None = None,
        timeout: float | None = MANY_S,
        **settings: Any,
    ) -> AsyncGenerator[m.ScoredText, None]:
        """Same as Client.score_many, for `async for`; who leaves the loop early does as generate_many says."""
        many = ManyScores(texts, contexts, settings)
        async with contextlib.aclosing(self.in_order(many.requests(), timeout, SCORES)) as answers:
            async for event in answers:
                for scored in many.take(event):
                    yield scored

    async def close(self) -> None:
        await asyncio.to_thread(self.connection.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(
        self,
        asked: m.AnyRequest,
        wanted: type[R],
        timeout: float | None,
        on_progress: Callable[[m.Progress], object] | None = None,
        *,
        wait: bool = False,
    ) -> R:
        events, on_event = _event_queue()
        request_id = self.connection.submit(asked, on_event, timeout, wait=wait)
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

    async def in_order(
        self, requests: Iterator[m.AnyRequest], timeout: float | None, ahead: int
    ) -> AsyncGenerator[Event, None]:
        """Same as Client.in_order."""
        under_way: deque[tuple[int, asyncio.Queue[Event]]] = deque()
        try:
            while True:
                for asked in itertools.islice(requests, ahead - len(under_way)):
                    events, on_event = _event_queue()
                    under_way.append((self.connection.submit(asked, on_event, timeout, wait=True), events))
                if not under_way:
                    return
                event = await under_way[0][1].get()
                if is_last(event):
                    under_way.popleft()
                yield event
        finally:
            for request_id, _ in under_way:
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
                raise Cancelled("its event loop was closed") from None

    return events, on_event
