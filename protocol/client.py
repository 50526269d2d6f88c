"""Client: blocking calls and a streaming iterator, a thin layer over a Connection.

    with Client() as client:
        client.load("demo", precision="int8", on_progress=print)
        for piece in client.stream("Shall I compare thee", temperature=0.8, seed=1):
            print(piece.text, end="", flush=True)

Every call has a `timeout`: seconds from the call on, with the time that it waits for a connection and for its turn.
None or infinity is a day, the longest. A generation that has begun by then returns what it has, with finish_reason
"deadline"; everything else raises DeadlineExceeded. All errors are those of protocol.errors.

The server bounds what one client may have open (`hello().limits`). Calls beyond that wait for their turn; with
`wait=False` they raise Busy instead.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from protocol import messages as m
from protocol.connection import Connection, Event
from protocol.errors import Gpt2dError, NotGpt2d
from protocol.keys import DEFAULT_ENDPOINT
from protocol.many import GENERATIONS, MANY_S, SCORES, ManyScores, generations
from protocol.requests import request

R = TypeVar("R", bound=m.Result)

CONTROL_S = 10.0
UNLOAD_S = 60.0
LOAD_S = MEASURE_S = 3600.0
CALIBRATE_S = 4 * 3600.0
GENERATE_S = 600.0


class OpenStream:
    """Base of both streams: an open generation, its place in the queue, its result. Dropping it cancels it."""

    id: int

    def __init__(self, connection: Connection, continuations: int) -> None:
        self._connection = connection
        self._continuations = continuations
        self._over = False
        self._result: m.Generated | None = None
        self.place = 0
        """Place in the server's queue while it waits; 0: it is running, or the server has not said."""

    @property
    def result(self) -> m.Generated:
        """Result of the generation, after the last piece. Raises: RuntimeError before that."""
        if self._result is None:
            raise RuntimeError("the result comes after the last piece of the stream")
        return self._result

    def cancel(self) -> None:
        """Ask the server to stop; the stream then ends with the result of what was written so far."""
        self._connection.cancel(self.id)

    def close(self) -> None:
        """End it: what it was still writing is cancelled."""
        if not self._over:
            self._over = True
            self._connection.cancel(self.id)

    def _piece(self, piece: m.Tokens) -> m.Tokens:
        """Return a piece. Raises: NotGpt2d for one of a continuation that was not asked for, which ends the stream."""
        if not 0 <= piece.index < self._continuations:
            self.close()
            raise NotGpt2d(f"the server sent text of continuation {piece.index} of {self._continuations}, from 0")
        return piece

    def __del__(self) -> None:
        if hasattr(self, "id"):
            self.close()


class Stream(OpenStream, Iterator[m.Tokens]):
    """The pieces of one generation as they come.

    One that only the loop holds is cancelled when the loop is left. One that a variable holds goes on: write
    `with client.stream(...) as stream`, or call close(). What interrupts the waiting for a piece (Ctrl-C) cancels it.
    """

    def __init__(self, connection: Connection, generate: m.Generate, timeout: float | None, *, wait: bool) -> None:
        super().__init__(connection, generate.n)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.id = connection.submit(generate, self._events.put, timeout, wait=wait)

    def __next__(self) -> m.Tokens:
        if self._over:
            raise StopIteration
        try:
            while isinstance(event := _next(self._connection, self._events), m.Progress):
                self.place = event.done
        except BaseException:  # a traceback may keep this stream for long; who goes on gets what was written so far
            self.cancel()
            raise
        self.place = 0
        if isinstance(event, m.Tokens):
            return self._piece(event)
        self._over = True
        self._result = expect(event, m.Generated)
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client:
    """A connection to one daemon. May be used by several threads. Ends with close(), `with`, or its last reference."""

    def __init__(
        self, endpoint: str = DEFAULT_ENDPOINT, *, server_key: str | None = None, key: str | None = None
    ) -> None:
        """Return without waiting: the first call raises if there is no server. `endpoint` may be a connect line; else
        the keys (Z85) are given apart: the server's public key and your own secret key, as protocol.keys.read_secret
        reads it.

        Raises: ValueError for a malformed endpoint or key, ConnectionFailed if this process may open no more files.
        """
        self.connection = Connection(endpoint, server_key=server_key, key=key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.connection.endpoint!r}, {self.connection.state})"

    def hello(self, timeout: float | None = CONTROL_S) -> m.ServerInfo:
        """Return who the server is, and every engine, precision and generation setting with its range and default."""
        return self._call(m.Hello(), m.ServerInfo, timeout)

    def ping(self, timeout: float | None = CONTROL_S) -> m.Pong:
        return self._call(m.Ping(), m.Pong, timeout)

    def models(self, timeout: float | None = CONTROL_S) -> list[m.ModelInfo]:
        return self._call(m.Models(), m.ModelList, timeout).models

    def stats(self, timeout: float | None = CONTROL_S) -> m.Stats:
        return self._call(m.GetStats(), m.Stats, timeout)

    def load(
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
        """Load a model (at once if it is loaded already). `on_progress` is called in this thread.

        `replicas` is the number of processes that hold it from then on, also when one dies; left out, as many as there
        are now, at least one. `cache` is what its keys and values are kept as: for native at int8 and int4, "int8" or
        "fp16" (what llama.cpp calls --cache-type-k and -v).

        Raises: UnknownModel, BadModel, NoMemory, LoadFailed, Cancelled, and what every call raises.
        """
        which = {"model": model, "engine": engine, "precision": precision}
        load = request(m.Load, which, compile=compile, cache=cache, replicas=replicas, stream=on_progress is not None)
        return self._call(load, m.Loaded, timeout, on_progress)

    def measure(
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
        """Compare a precision with full precision (see messages.Fidelity), which takes minutes for a large model.

        Raises: UnknownModel, BadModel, NotLoaded if the model is not on the server's disk, NoMemory, LoadFailed, Busy,
        Cancelled, BadRequest for a text of less than 64 tokens, and what every call raises.
        """
        which = {"model": model, "engine": engine, "precision": precision}
        measure = request(m.Measure, which, text=text, cache=cache, stream=on_progress is not None)
        return self._call(measure, m.Measured, timeout, on_progress)

    def calibrate(
        self,
        model: str,
        *,
        text: str | None = None,
        on_progress: Callable[[m.Progress], object] | None = None,
        timeout: float | None = CALIBRATE_S,
    ) -> m.Calibrated:
        """Make a model's int4 of the native engine nearly as good as int8 (see messages.Calibrate), for later loads.

        It takes minutes for a large model: `calibrate_s` of its ModelInfo says about how many seconds.

        Raises: UnknownModel, BadModel, NotLoaded if the model is not on the server's disk, NoMemory, LoadFailed, Busy,
        Cancelled, BadRequest for a text of less than 1,024 tokens, and what every call raises.
        """
        calibrate = request(m.Calibrate, {"model": model}, text=text, stream=on_progress is not None)
        return self._call(calibrate, m.Calibrated, timeout, on_progress)

    def unload(
        self, model: str, *, engine: str | None = None, precision: str | None = None, timeout: float | None = UNLOAD_S
    ) -> list[str]:
        """Unload what matches; return the names. Raises: NotLoaded."""
        which = {"model": model, "engine": engine, "precision": precision}
        return self._call(request(m.Unload, which), m.Unloaded, timeout).names

    def generate(
        self, prompt: str | None = None, *, timeout: float | None = GENERATE_S, wait: bool = True, **settings: Any
    ) -> m.Generated:
        """Continue a text and return the whole result. `settings` are the fields of messages.Generate.

        Raises: NotLoaded, TooLong, WorkerDied, Busy with `wait=False`, and what every call raises.
        """
        generate = request(m.Generate, settings, prompt=prompt, stream=False)
        return self._call(generate, m.Generated, timeout, wait=wait)

    def stream(
        self, prompt: str | None = None, *, timeout: float | None = GENERATE_S, wait: bool = True, **settings: Any
    ) -> Stream:
        """Continue a text; iterate over the pieces, then look at `.result`.

        A piece has what was written in 20 ms; `stream_interval_ms`, up to 1000, asks for fewer, which cost less; 0 for
        one after each step. Raises: as `generate`, in the iteration.
        """
        return Stream(self.connection, request(m.Generate, settings, prompt=prompt, stream=True), timeout, wait=wait)

    def generate_many(
        self, prompts: Iterable[str], *, timeout: float | None = MANY_S, **settings: Any
    ) -> Generator[m.Generated, None, None]:
        """Continue any number of texts, and yield their results in the same order. `settings`: as for generate.

        A few prompts are read ahead, so that the server never waits. `seed` is that of the first prompt; each of the
        others goes on with the numbers that follow. Leaving the loop, or close(), cancels what is under way. `timeout`
        is that of each generation.

        Raises: as `generate`, in the iteration.
        """
        requests = generations(prompts, settings)
        with contextlib.closing(self.in_order(requests, timeout, GENERATIONS)) as answers:
            for event in answers:
                yield expect(event, m.Generated)

    def tokenize(
        self,
        text: str | None = None,
        *,
        ids: Sequence[int] | None = None,
        timeout: float | None = CONTROL_S,
        wait: bool = True,
        **which: Any,
    ) -> m.Tokenized:
        """Convert text to tokens, or tokens to text, with byte offsets. `which`: model, engine, precision, where
        several are loaded.

        Raises: NotLoaded, and what every call raises.
        """
        return self._call(request(m.Tokenize, which, text=text, ids=ids), m.Tokenized, timeout, wait=wait)

    def score(
        self,
        text: str | None = None,
        *,
        ids: Sequence[int] | None = None,
        timeout: float | None = GENERATE_S,
        wait: bool = True,
        **which: Any,
    ) -> m.Scored:
        """Return the log-probability of every token of a text, its perplexity and bits per byte. `which`: as for
        tokenize, and the fields of messages.Score, as `bos`, `unit`, `top`, and `stride`, the distance of the windows
        in which a text longer than the context is scored.

        Raises: NotLoaded, BadRequest, and what every call raises.
        """
        return self._call(request(m.Score, which, text=text, ids=ids, texts=None), m.Scored, timeout, wait=wait)

    def score_many(
        self,
        texts: Iterable[str | m.Passage],
        *,
        contexts: Iterable[str] | None = None,
        timeout: float | None = MANY_S,
        **settings: Any,
    ) -> Generator[m.ScoredText, None, None]:
        """Score any number of texts, and yield their scores in the same order, each with its `index`.

        `contexts` are what stands before each text and is not scored. `settings` are the fields of messages.Score, as
        `bos`, `unit`, `top` and `stride`, and what names the model. A few requests of many texts are under way at a
        time, so that the server never waits and memory does not grow. A text of more than 32 KiB, at a stride below 34
        of less, is scored in parts that end where words end, each after what stands before it, and told as one. Leaving
        the loop, or close(), cancels what is under way. `timeout` is that of each request.

        Raises: as `score`, in the iteration; BadRequest names the text, as `texts[7]`; NotGpt2d for scores that do not
        fit the texts.
        """
        many = ManyScores(texts, contexts, settings)
        with contextlib.closing(self.in_order(many.requests(), timeout, SCORES)) as answers:
            for event in answers:
                yield from many.take(event)

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self,
        asked: m.AnyRequest,
        wanted: type[R],
        timeout: float | None,
        on_progress: Callable[[m.Progress], object] | None = None,
        *,
        wait: bool = False,
    ) -> R:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request_id = self.connection.submit(asked, events.put, timeout, wait=wait)
        over = False
        try:
            while isinstance(event := _next(self.connection, events), m.Progress):
                if on_progress:
                    on_progress(event)
            over = is_last(event)
            return expect(event, wanted)
        finally:
            if not over:  # Ctrl-C, or an error in on_progress: nobody waits for it any more
                self.connection.cancel(request_id)

    def in_order(
        self, requests: Iterator[m.AnyRequest], timeout: float | None, ahead: int
    ) -> Generator[Event, None, None]:
        """Send requests, at most `ahead` of them at a time, and yield their events, those of the oldest one first.

        What ends a request is its last event, an error too: the others go on.
        """
        under_way: deque[tuple[int, queue.SimpleQueue[Event]]] = deque()
        try:
            while True:
                for asked in itertools.islice(requests, ahead - len(under_way)):
                    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
                    under_way.append((self.connection.submit(asked, events.put, timeout, wait=True), events))
                if not under_way:
                    return
                event = _next(self.connection, under_way[0][1])
                if is_last(event):
                    under_way.popleft()
                yield event
        finally:
            for request_id, _ in under_way:
                self.connection.cancel(request_id)


def is_last(event: Event) -> bool:
    """True for the event that ends a request."""
    return isinstance(event, m.Result | Gpt2dError)


def expect(event: Event, wanted: type[R]) -> R:
    """Return the event if it is the result that is wanted.

    Raises: the error that it is; NotGpt2d for anything else, which the server should not have answered with.
    """
    if isinstance(event, Gpt2dError):
        raise event
    if not isinstance(event, wanted):
        raise NotGpt2d(f"the server answered with {type(event).__name__} instead of {wanted.__name__}")
    return event


def _next(connection: Connection, events: queue.SimpleQueue[Event]) -> Event:
    """Wait for the next event of a request. Raises: Closed in a process that was forked off meanwhile."""
    while True:
        try:
            return events.get(timeout=0.2)  # in slices: Windows delivers Ctrl-C only between them
        except queue.Empty:
            connection.check_process()
