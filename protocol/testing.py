"""A server for the tests of scripts: it needs no model, and answers what the test says.

    def answer(request):
        if isinstance(request, messages.Generate):
            return ["Hello", ", world"]

    with FakeServer(answer) as server, Client(server.endpoint) as client:
        assert client.generate("x").text == "Hello, world"
        assert server.asked(messages.Generate)[0].prompt == "x"

It listens on loopback, so that Client, AsyncClient and other programs connect to it as to a daemon: what is tested
goes through the real bytes, limits and errors of the protocol.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias, TypeVar

import msgspec
import zmq

from protocol import codec, messages as m, sockets
from protocol.errors import Cancelled, Internal, RequestError
from protocol.ledger import ledger
from protocol.parameters import parameters

R = TypeVar("R", bound=m.Request)

TICK_MS = 10
"""How often the events that answers wait for are looked at."""
CLOSE_S = 10.0

Step: TypeAlias = str | m.Reply | RequestError | threading.Event | bytes
Answer: TypeAlias = Step | Iterable[Step] | None


def server_info(**fields: Any) -> m.ServerInfo:
    """Return an answer to hello, of a server without engines, with those fields instead."""
    usual: dict[str, Any] = {
        "id": None, "protocol": f"{m.MAJOR}.{m.MINOR}", "server_id": "fake", "version": "0", "host": "fake",
        "cpu": "none", "cores": 1, "memory_bytes": 1, "engines": [], "parameters": parameters(),
    }  # fmt: skip
    return m.ServerInfo(**(usual | fields))


def generated(request: m.Generate, text: str, **fields: Any) -> m.Generated:
    """Return the result of a generation that wrote `text`, one token for each character, with those fields instead."""
    settings = {name: getattr(request, name) for name in m.SETTINGS} | {"seed": request.seed or 0}
    usual: dict[str, Any] = {
        "id": None, "text": text, "ids": list(range(len(text))), "finish_reason": "length", "prompt_truncated": 0,
        "settings": settings, "model": request.model or "fake", "engine": request.engine or "fake",
        "precision": request.precision or "fp32", "digest": "0" * 64, "threads": 1,
        "threads_used": 1.0,
        "ledger": ledger(new_tokens=len(text)),
    }  # fmt: skip
    return m.Generated(**(usual | fields))


@dataclass
class _Open:
    """A request whose answer is under way."""

    envelope: list[bytes]
    request: m.AnyRequest
    steps: Iterator[Step]
    seq: int = 0
    waits: threading.Event | None = None
    written: list[str] = field(default_factory=list)


class FakeServer:
    """A server on loopback whose answers a function gives. Ends with close() or `with`.

    `answer(request)` is called in the server's thread, for every request but hello, and returns or yields:

    - texts: the pieces of a generation, whose result follows by itself; without `stream` the result alone;
    - an error of protocol.errors, which may also be raised: the error reply with its code;
    - replies of protocol.messages, sent as they are; one whose id is None gets the request's id, and the next number;
    - a threading.Event: what comes after it waits until the test sets it, while other requests are answered;
    - bytes: a frame, sent as it is;
    - nothing at all, `[]`: then nothing is sent.

    None is the usual answer: to ping, models, stats, unload and cancel, which ends the request that it names, as a
    daemon does; to everything else an error.
    """

    def __init__(
        self,
        answer: Callable[[m.AnyRequest], Answer] = lambda _: None,
        *,
        info: m.ServerInfo | None = None,
        server_id: str = "fake",
        port: int = 0,
    ) -> None:
        """Listen, on a port that the system chooses where none is given.

        `info` is the answer to hello. Another `server_id` on the same port is a server that was started again.

        Raises: zmq.ZMQError if the port is taken.
        """
        self.answer = answer
        self.info = info or server_info(server_id=server_id)
        self.requests: list[m.AnyRequest] = []
        """All requests that have come, in their order, with those that clients send by themselves: hello, ping."""
        self._open: dict[tuple[bytes, int], _Open] = {}
        self._over = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._socket = sockets.loopback_socket(self._context, port)
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise
        self.endpoint = sockets.endpoint_of(self._socket)
        self._thread = threading.Thread(target=self._run, name=f"fake server {self.endpoint}", daemon=True)
        self._thread.start()

    def asked(self, kind: type[R]) -> list[R]:
        """Return the requests of that type that have come, in their order."""
        return [request for request in self.requests if isinstance(request, kind)]

    def close(self) -> None:
        """End the server: its clients see a connection that breaks.

        Raises: TimeoutError where an answer has not returned within CLOSE_S.
        """
        self._over.set()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            raise TimeoutError("an answer of the fake server has not returned: let it yield an event, and not wait")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Everything below runs in the server's thread.

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                if self._socket.poll(TICK_MS):
                    self._receive(self._socket.recv_multipart())
                for key, entry in list(self._open.items()):
                    if not entry.waits or entry.waits.is_set():
                        self._go_on(key, entry)
        finally:
            self._context.destroy(linger=0)

    def _receive(self, frames: list[bytes]) -> None:
        envelope = frames[:-1]
        try:
            request = codec.decode_request(frames[-1])
        except RequestError as e:
            self._send(envelope, m.Failure(id=e.request_id, code=e.code, message=str(e)))
            return
        self.requests.append(request)
        steps = iter([self.info]) if isinstance(request, m.Hello) else self._steps(envelope, request)
        self._open[envelope[0], request.id] = _Open(envelope, request, steps)

    def _steps(self, envelope: list[bytes], request: m.AnyRequest) -> Iterator[Step]:
        """Yield the steps of an answer; what the test's function raises is one too."""
        try:
            answer = self.answer(request)
            if answer is None:
                answer = self._usual(envelope[0], request)
            if isinstance(answer, str | m.Reply | RequestError | threading.Event | bytes):
                answer = [answer]
            yield from answer
        except RequestError as e:
            yield e
        except Exception as e:  # noqa: BLE001 - a fault in the test's function is seen by the test's client
            yield Internal(f"the answer to a {codec.type_of(request)} raised {e!r}")

    def _usual(self, peer: bytes, request: m.AnyRequest) -> Step:
        match request:
            case m.Ping():
                return m.Pong(id=None, server_id=self.info.server_id, uptime_ms=1, draining=False, workers=[])
            case m.Models():
                return m.ModelList(id=None, models=[])
            case m.GetStats():
                counts: dict[str, Any] = {"requests": {}, "errors": {}, "workers": []}
                return m.Stats(id=None, uptime_ms=1, rss_bytes=1, peers=1, open_requests=len(self._open), **counts)
            case m.Unload():
                return m.Unloaded(id=None, names=[])
            case m.Cancel():
                return m.CancelSent(id=None, found=self._cancel(peer, request.target))
            case _:
                return Internal(f"this fake server has no answer to a {codec.type_of(request)}")

    def _cancel(self, peer: bytes, target: int) -> bool:
        entry = self._open.pop((peer, target), None)
        if entry is None:
            return False
        if isinstance(entry.request, m.Generate) and entry.written:
            text = "".join(entry.written)
            self._reply(entry, generated(entry.request, text, finish_reason="cancelled"))
        else:
            self._reply(entry, m.Failure(id=None, code=Cancelled.code, message="cancelled"))
        return True

    def _go_on(self, key: tuple[bytes, int], entry: _Open) -> None:
        """Take the steps of an answer up to its end, or to an event that is not set."""
        entry.waits = None
        for step in entry.steps:
            if isinstance(step, threading.Event):
                if not step.is_set():
                    entry.waits = step
                    return
            else:
                self._take(entry, step)
                if isinstance(step, m.Result | m.Failure | RequestError):
                    entry.written.clear()
                    break
        self._open.pop(key, None)
        if isinstance(entry.request, m.Generate) and entry.written:
            self._reply(entry, generated(entry.request, "".join(entry.written)))

    def _take(self, entry: _Open, step: str | m.Reply | RequestError | bytes) -> None:
        if isinstance(step, bytes):
            self._send(entry.envelope, step)
        elif isinstance(step, RequestError):
            self._reply(entry, m.Failure(id=None, code=step.code, message=str(step)))
        elif isinstance(step, m.Reply):
            self._reply(entry, step)
        elif isinstance(entry.request, m.Generate):
            first = sum(map(len, entry.written))
            entry.written.append(step)
            if entry.request.stream:
                self._reply(entry, m.Tokens(id=None, text=step, ids=list(range(first, first + len(step)))))
        else:
            self._reply(entry, m.Failure(id=None, code=Internal.code, message="only a generation is answered by texts"))

    def _reply(self, entry: _Open, reply: m.Reply) -> None:
        if reply.id is None:
            reply = msgspec.structs.replace(reply, id=entry.request.id, seq=entry.seq)
            entry.seq += 1
        self._send(entry.envelope, reply)

    def _send(self, envelope: list[bytes], reply: m.Reply | bytes) -> None:
        frame = reply if isinstance(reply, bytes) else codec.pack(reply, codec.MAX_REPLY_BYTES)
        with contextlib.suppress(zmq.ZMQError):  # the client has gone
            self._socket.send_multipart([*envelope, frame], zmq.NOBLOCK)
