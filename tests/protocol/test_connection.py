"""No call can hang, and each error tells what is at the other end."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgpack
import pytest
import zmq

from protocol import AsyncClient, AsyncStream, Client, messages as m
from protocol.connection import Connection, Event
from protocol.errors import (
    BadRequest,
    Busy,
    Cancelled,
    Closed,
    ConnectionLost,
    DeadlineExceeded,
    NoServer,
    NotGpt2d,
    ServerRestarted,
    ServerStuck,
    VersionMismatch,
)
from protocol.line import Line
from protocol.parameters import parameters, read_value
from protocol.testing import Answer, FakeServer, Step, server_info
from scripts.daemon import Daemon
from scripts.reliability import zmtp
from tests.conftest import free_port, wait_for


@contextmanager
def tcp_server(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """Something that is not ZeroMQ."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections: list[socket.socket] = []
        over = threading.Event()

        def serve(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):  # the client, or the test, may be done with it before anything is said
                handle(connection)

        def accept() -> None:
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                if over.is_set():
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            socket.create_connection(listener.getsockname()).close()  # which ends accept(), as no close() does
            accepting.join()
            for connection in connections:
                connection.close()


def pong(request: m.AnyRequest) -> m.Pong:
    return m.Pong(id=request.id, server_id="one", uptime_ms=1, draining=False, workers=[])


def when_asked(server: FakeServer, act: Callable[[], None]) -> threading.Thread:
    """Do something once a generation has come, in a thread that is to be joined."""

    def run() -> None:
        wait_for(lambda: bool(server.asked(m.Generate)))
        act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_nobody_there() -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with Client(endpoint) as client, pytest.raises(NoServer, match=f"gpt2d-server --endpoint {endpoint}`"):
        client.ping()


def test_a_server_that_starts_within_a_moment_is_waited_for() -> None:
    port = free_port()
    with Client(f"tcp://127.0.0.1:{port}") as client:
        started: list[FakeServer] = []
        timer = threading.Timer(0.3, lambda: started.append(FakeServer(lambda r: [pong(r)], port=port)))
        timer.start()
        assert client.ping().server_id == "one"
    timer.join()  # it may have answered before it is in the list
    started[0].close()


def test_an_http_server_there() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with Client(f"tcp://127.0.0.1:{server.server_port}") as client, pytest.raises(NotGpt2d):
        client.ping()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("says", [b"SSH-2.0-OpenSSH_9.2\r\n", b"", None], ids=["banner", "hangs up", "zeros"])
def test_another_program_there(says: bytes | None) -> None:
    def handle(connection: socket.socket) -> None:
        if says:
            connection.sendall(says)
        elif says == b"":
            connection.close()
        else:
            connection.sendall(bytes(100))

    with tcp_server(handle) as endpoint, Client(endpoint) as client, pytest.raises(NotGpt2d):
        client.ping()


def test_a_zeromq_server_of_another_kind_there() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    publisher = context.socket(zmq.PUB)
    port = publisher.bind_to_random_port("tcp://127.0.0.1")
    with Client(f"tcp://127.0.0.1:{port}") as client, pytest.raises(NotGpt2d):
        client.ping()
    context.destroy(linger=0)


def test_a_server_that_speaks_no_msgpack() -> None:
    server = FakeServer(lambda _: [b"hello"])
    with Client(server.endpoint) as client, pytest.raises(NotGpt2d):
        client.ping()
    server.close()


def test_an_earlier_server_is_not_sent_a_setting_that_it_would_ignore() -> None:
    """Any other is answered, and what an earlier server has not."""
    earlier = server_info(version="0.1.0", parameters=[p for p in parameters() if p.name not in {"min_p", "n"}])
    with FakeServer(lambda _: "text", info=earlier) as server, Client(server.endpoint) as client:
        with pytest.raises(BadRequest, match=r"gpt2d 0\.1\.0, which would ignore n, min_p; leave"):
            client.generate("x", n=2, min_p=0.1, top_p=0.5)
        assert not server.asked(m.Generate)
        assert client.generate("x", n=1, top_p=0.5).text == "text"


def test_a_later_server_may_have_settings_of_another_type() -> None:
    """Nothing else of it is lost."""
    curve = m.Parameter(name="curve", type="points", default=[], description="")
    later = server_info(version="9", parameters=[*parameters(), curve])
    with FakeServer(lambda _: "text", info=later) as server, Client(server.endpoint) as client:
        assert client.generate("x", top_p=0.5).text == "text"
        assert client.hello().parameters[-1] == curve
    with pytest.raises(ValueError, match="curve is a setting of a later version"):
        read_value(curve, "1")


def test_something_that_accepts_and_says_nothing() -> None:
    with tcp_server(lambda _: None) as endpoint, Client(endpoint) as client, pytest.raises(ServerStuck):
        client.ping(timeout=2)


def test_a_server_that_closes_connections_before_it_answers() -> None:
    """It is full, say. That it is another program is not known."""

    def handle(connection: socket.socket) -> None:
        with connection:
            zmtp.shake(connection, Socket_Type=b"ROUTER")

    with tcp_server(handle) as endpoint, Client(endpoint) as client, pytest.raises(ServerStuck, match="it may be full"):
        client.ping(timeout=2)


def test_another_version() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")

    def serve() -> None:
        peer, frame = router.recv_multipart()
        answer = {
            "v": 9,
            "id": msgpack.unpackb(frame)["id"],
            "type": "error",
            "code": "version_mismatch",
            "message": "",
        }
        router.send_multipart([peer, msgpack.packb(answer)])

    thread = threading.Thread(target=serve)
    thread.start()
    with Client(f"tcp://127.0.0.1:{port}") as client, pytest.raises(VersionMismatch, match="version 9"):
        client.ping()
    thread.join()
    context.destroy(linger=0)


@pytest.mark.alone
def test_a_stuck_server_is_told_from_a_slow_one() -> None:
    """It answered hello, then nothing, not even a ping."""
    server = FakeServer(lambda _: [])
    began = time.monotonic()
    with Client(server.endpoint) as client, pytest.raises(ServerStuck):
        client.generate("x", timeout=60)
    assert time.monotonic() - began < 6
    server.close()


def test_a_slow_request_on_a_live_server_is_waited_for() -> None:
    server = FakeServer(lambda r: [pong(r)] if isinstance(r, m.Ping) else [])
    with Client(server.endpoint) as client, pytest.raises(DeadlineExceeded):
        client.generate("x", timeout=4)
    assert any(isinstance(r, m.Ping) for r in server.requests)
    server.close()


def test_a_restarted_server() -> None:
    first = FakeServer(lambda _: [])
    with Client(first.endpoint) as client:
        errors: list[BaseException] = []

        def call() -> None:
            try:
                client.generate("x")
            except ServerRestarted as e:
                errors.append(e)

        thread = threading.Thread(target=call)
        thread.start()
        wait_for(lambda: len(first.requests) > 1)
        port = int(first.endpoint.rsplit(":", 1)[1])
        first.close()
        second = FakeServer(lambda r: [pong(r)], server_id="two", port=port)
        thread.join(30)
        assert len(errors) == 1
        assert client.ping()
        assert client.connection.info and client.connection.info.server_id == "two"
        second.close()


def test_a_broken_connection_is_told_though_nothing_waits() -> None:
    server, lost = FakeServer(lambda _: []), threading.Event()
    connection = Connection(server.endpoint, on_lost=lost.set)
    try:
        wait_for(lambda: connection.state == "ready")
        assert not lost.is_set()
        server.close()
        assert lost.wait(20)
    finally:
        connection.close()


def test_a_server_that_goes_away_for_good() -> None:
    server = FakeServer(lambda r: [] if isinstance(r, m.Generate) else [pong(r)])
    with Client(server.endpoint) as client:
        client.ping()
        closing = when_asked(server, server.close)
        with pytest.raises(ConnectionLost):
            client.generate("x")
        with pytest.raises(NoServer, match="any more; start the server again, or the tunnel"):
            client.ping()
        closing.join()


def test_a_lost_reply_is_noticed() -> None:
    server = FakeServer(lambda r: [m.Tokens(id=r.id, seq=1, text="b", ids=[1])])
    with Client(server.endpoint) as client, pytest.raises(ConnectionLost, match="reply 0 was lost"):
        next(client.stream("x"))
    server.close()


def test_server_errors_become_exceptions() -> None:
    server = FakeServer(lambda r: [m.Failure(id=r.id, code="busy", message="full up")])
    with Client(server.endpoint) as client, pytest.raises(Busy, match="full up"):
        client.generate("x", wait=False)
    server.close()


def test_an_oversize_request_is_refused_here() -> None:
    server = FakeServer(lambda r: [pong(r)])
    with Client(server.endpoint) as client:
        with pytest.raises(BadRequest, match="over the limit"):
            client.generate("x" * 300_000)
        assert client.ping()
    server.close()


def test_leaving_a_stream_cancels_it() -> None:
    server = FakeServer(lambda r: [m.Tokens(id=r.id, text="a", ids=[1])] if isinstance(r, m.Generate) else [])
    with Client(server.endpoint) as client:
        for _ in client.stream("x"):
            break
        wait_for(lambda: any(isinstance(r, m.Cancel) for r in server.requests))
        generate = next(r for r in server.requests if isinstance(r, m.Generate))
        assert [r.target for r in server.requests if isinstance(r, m.Cancel)] == [generate.id]
    server.close()


def test_pieces_of_a_stream_come_faster_than_the_thread_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, poll = list[int](), Line.poll

    def noted(line: Line, timeout_ms: int) -> None:
        waits.append(timeout_ms)
        poll(line, timeout_ms)

    monkeypatch.setattr(Line, "poll", noted)
    with FakeServer(lambda r: [] if isinstance(r, m.Generate) else None) as server, Client(server.endpoint) as client:
        client.ping()
        stream = client.stream("x")
        wait_for(lambda: bool(server.asked(m.Generate)))
        waits.clear()
        wait_for(lambda: len(waits) > 1)
        assert set(waits) == {100}, (
            "a window asks for a piece in 66 ms; each look beside it takes a core from the decoder"
        )
        stream.close()


def test_closing_ends_what_is_pending() -> None:
    server = FakeServer(lambda _: [])
    client = Client(server.endpoint)
    closing = when_asked(server, client.close)
    with pytest.raises(Closed):
        client.generate("x")
    with pytest.raises(Closed):
        client.ping()
    closing.join()
    server.close()


def test_malformed_endpoints_are_refused() -> None:
    for endpoint in (
        "127.0.0.1",
        "tcp://127.0.0.1",
        "http://127.0.0.1:5757",
        "tcp://127.0.0.1:x",
        "",
        "tcp://127.0.0.1:5757/",
        "tcp://127.0.0.1:5757?x=1",
        "tcp://user@127.0.0.1:5757",
        "tcp://no such host:5",
        "tcp://127.0.0.1:99999",
        "ipc://",
    ):
        with pytest.raises(ValueError, match="endpoint"):
            Client(endpoint)
    with pytest.raises(ValueError, match="too long"):
        Client("ipc:///tmp/" + "x" * 200)


def test_a_burst_larger_than_any_queue_is_sent_in_turn_and_a_cancel_behind_it_arrives() -> None:
    server = FakeServer(lambda r: [pong(r)] if isinstance(r, m.Ping) else [])
    with Client(server.endpoint) as client:
        answers: list[object] = []
        stream = client.stream("x")
        wait_for(lambda: bool(server.asked(m.Generate)))  # one that was not sent would need no cancel
        for _ in range(3000):
            client.connection.submit(m.Ping(), answers.append, 20)
        stream.cancel()
        wait_for(lambda: len(answers) == 3000, 20)
        assert all(isinstance(a, m.Pong) for a in answers)
        wait_for(lambda: any(isinstance(r, m.Cancel) for r in server.requests))
        stream.close()
    server.close()


def test_a_stream_that_the_garbage_collector_ends_does_not_block() -> None:
    import gc

    class Cycle:
        def __init__(self, stream: object) -> None:
            self.own, self.stream = self, stream

    server = FakeServer(lambda _: [])
    with Client(server.endpoint) as client:
        before = gc.get_threshold()
        gc.set_threshold(1)
        try:
            for _ in range(200):
                Cycle(client.stream("x", timeout=30))
        finally:
            gc.set_threshold(*before)
    server.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_client_does_not_survive_a_fork() -> None:
    server = FakeServer(lambda r: [pong(r)])
    with Client(server.endpoint) as client:
        client.ping()
        child = os.fork()
        if child == 0:
            try:
                client.ping()
            except Closed:
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    server.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_stream_goes_on_in_the_process_that_opened_it() -> None:
    """In one that was forked off it ends with an error, and what is dropped there cancels nothing."""
    later = threading.Event()

    def answer(request: m.AnyRequest) -> Answer:
        return ["a", later, "b"] if isinstance(request, m.Generate) else None

    with FakeServer(answer) as server, Client(server.endpoint) as client:
        stream = client.stream("x")
        assert next(stream).text == "a"
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            try:
                next(stream)
            except Closed:
                stream.close()
                client.close()
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        later.set()
        assert [piece.text for piece in stream] == ["b"] and stream.result.text == "ab"


def test_asyncio_cancel_cancels() -> None:
    server = FakeServer(lambda r: [pong(r)] if isinstance(r, m.Ping) else [])

    async def run() -> None:
        async with AsyncClient(server.endpoint) as client:
            assert (await client.ping()).server_id == "one"
            task = asyncio.create_task(client.generate("x"))
            while not any(isinstance(r, m.Generate) for r in server.requests):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while not any(isinstance(r, m.Cancel) for r in server.requests):
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 30))
    server.close()


@pytest.mark.parametrize("request_", [m.Ping(id=0), m.Generate(id=0, prompt="Now", max_new_tokens=400, stream=True)])
def test_an_on_event_that_raises_costs_its_own_request_alone(request_: m.AnyRequest, shared_daemon: Daemon) -> None:
    """Others of the same connection are answered, and the rest of a stream that nobody takes is cancelled."""
    connection = Connection(shared_daemon.endpoint)
    raised = threading.Event()
    answers: queue.SimpleQueue[object] = queue.SimpleQueue()

    def raises(_event: object) -> None:
        raised.set()
        raise ZeroDivisionError

    try:
        connection.submit(request_, raises, 20)
        assert raised.wait(20)
        for _ in range(2):
            connection.submit(m.Ping(id=0), answers.put, 20)
            assert isinstance(answers.get(timeout=20), m.Pong)

        def idle() -> bool:
            connection.submit(m.Ping(id=0), answers.put, 20)
            pong = answers.get(timeout=20)
            return isinstance(pong, m.Pong) and all(worker.running == 0 for worker in pong.workers)

        wait_for(idle)
    finally:
        connection.close()
    assert connection.state == "closed"


def test_an_on_lost_that_raises_does_not_end_the_connection(own_daemon: Daemon) -> None:
    lost = threading.Event()

    def on_lost() -> None:
        lost.set()
        raise ZeroDivisionError

    connection = Connection(own_daemon.endpoint, on_lost=on_lost)
    events: queue.SimpleQueue[object] = queue.SimpleQueue()
    try:
        connection.submit(m.Ping(id=0), events.put, 20)
        assert isinstance(events.get(timeout=20), m.Pong)
        own_daemon.kill()
        assert lost.wait(20)
        connection.submit(m.Ping(id=0), events.put, 1)
        assert isinstance(events.get(timeout=20), NoServer | DeadlineExceeded)
    finally:
        connection.close()


def starts(request: m.AnyRequest) -> list[Step]:
    """A first piece or word of what takes long, and whatever else at once."""
    match request:
        case m.Generate():
            return [m.Tokens(id=request.id, text="a", ids=[1])]
        case m.Load() | m.Measure():
            return [m.Progress(id=request.id, stage="build", done=1, total=2, unit="layers")]
        case m.Ping():
            return [pong(request)]
        case _:
            return []


def cancelled(server: FakeServer) -> list[int]:
    """The requests that the server was asked to cancel."""
    return [r.target for r in server.requests if isinstance(r, m.Cancel)]


def long_ones(server: FakeServer) -> list[int]:
    return [r.id for r in server.requests if isinstance(r, m.Generate | m.Load | m.Measure)]


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3)], ids=["error", "exit"])
def test_a_callback_that_raises_ends_its_own_request_alone(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Its last event says why, the server is asked to stop, and other requests of the connection go on."""
    server = FakeServer(starts)
    last, others = queue.SimpleQueue[Event](), queue.SimpleQueue[Event]()

    def on_event(event: Event) -> None:
        if isinstance(event, m.Tokens):
            raise error
        last.put(event)

    with Client(server.endpoint) as client:
        other = client.connection.submit(m.Generate(prompt="x", stream=True), others.put, 20)
        assert isinstance(others.get(timeout=20), m.Tokens)
        failing = client.connection.submit(m.Generate(prompt="x", stream=True), on_event, 20)
        end = last.get(timeout=20)
        assert isinstance(end, Cancelled) and end.__cause__ is error and repr(error) in str(end)
        assert client.ping().server_id == "one"
        wait_for(lambda: cancelled(server) == [failing])
        client.connection.cancel(other)
        wait_for(lambda: cancelled(server) == [failing, other])
    assert isinstance(others.get(timeout=20), Closed)
    assert last.empty() and [r.exc_info and r.exc_info[1] for r in caplog.records] == [error]
    server.close()


@pytest.mark.parametrize("end", ["result", "error", "too large", "deadline"])
def test_a_callback_that_raises_at_its_last_event_stops_nobody(end: str, caplog: pytest.LogCaptureFixture) -> None:
    def answer(request: m.AnyRequest) -> list[Step]:
        if isinstance(request, m.Tokenize):
            return [] if end == "deadline" else [m.Failure(id=request.id, code="busy", message="full up")]
        return [pong(request)]

    called: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def on_event(event: Event) -> None:
        called.put(event)
        raise ValueError("mine")

    server = FakeServer(answer)
    with Client(server.endpoint) as client:
        text = "x" * (300_000 if end == "too large" else 1)
        request = m.Ping() if end == "result" else m.Tokenize(text=text)
        client.connection.submit(request, on_event, 0 if end == "deadline" else 20)
        called.get(timeout=20)
        assert client.ping().server_id == "one"
    assert called.empty() and len(caplog.records) == 1
    server.close()


def test_callbacks_that_raise_do_not_stop_a_close() -> None:
    server, ended = FakeServer(starts), queue.SimpleQueue[Event]()

    def on_event(event: Event) -> None:
        if isinstance(event, m.Tokens):
            return
        ended.put(event)
        raise ValueError("mine")

    client = Client(server.endpoint)
    for _ in range(3):
        client.connection.submit(m.Generate(prompt="x", stream=True), on_event, 20)
    wait_for(lambda: len(long_ones(server)) == 3)
    client.close()
    assert [type(ended.get(timeout=20)) for _ in range(3)] == [Closed] * 3
    client.connection.submit(m.Ping(), on_event, 20)
    assert isinstance(ended.get(timeout=20), Closed), "refused in the thread that asks"
    assert ended.empty()
    server.close()


def test_a_callback_may_close_its_connection() -> None:
    server, ended = FakeServer(starts), queue.SimpleQueue[Event]()
    client = Client(server.endpoint)

    def on_event(event: Event) -> None:
        if isinstance(event, m.Tokens):
            client.close()
        else:
            ended.put(event)

    client.connection.submit(m.Generate(prompt="x", stream=True), on_event, 20)
    assert isinstance(ended.get(timeout=20), Closed)
    with pytest.raises(Closed):
        client.ping()
    client.close()
    server.close()


def test_on_lost_may_raise(caplog: pytest.LogCaptureFixture) -> None:
    def on_lost() -> None:
        raise ValueError("mine")

    server = FakeServer(lambda r: [pong(r)])
    connection = Connection(server.endpoint, on_lost=on_lost)
    try:
        wait_for(lambda: connection.state == "ready")
        server.close()
        wait_for(lambda: len(caplog.records) == 1)
        again = FakeServer(lambda r: [pong(r)], port=int(server.endpoint.rsplit(":", 1)[1]))
        wait_for(lambda: connection.state == "ready")
        again.close()
    finally:
        connection.close()


MINE = [ValueError("mine"), Busy("mine"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", MINE, ids=["error", "of the tree", "interrupt"])
@pytest.mark.parametrize("kind", ["load", "measure"])
def test_an_error_in_on_progress_reaches_the_caller_and_ends_the_request(kind: str, error: BaseException) -> None:
    def on_progress(_: m.Progress) -> None:
        raise error

    server = FakeServer(starts)
    with Client(server.endpoint) as client:
        with pytest.raises(type(error)) as caught:
            getattr(client, kind)("demo", on_progress=on_progress)
        assert caught.value is error and client.ping()
        wait_for(lambda: cancelled(server) == long_ones(server) != [])
    server.close()


@pytest.mark.parametrize("error", MINE[:2], ids=["error", "of the tree"])
@pytest.mark.parametrize("kind", ["load", "measure"])
def test_an_error_in_asyncios_on_progress_reaches_the_caller_too(kind: str, error: Exception) -> None:
    def on_progress(_: m.Progress) -> None:
        raise error

    async def run() -> None:
        async with AsyncClient(server.endpoint) as client:
            with pytest.raises(type(error)) as caught:
                await getattr(client, kind)("demo", on_progress=on_progress)
            assert caught.value is error and await client.ping()
            while not cancelled(server):
                await asyncio.sleep(0.01)
            assert cancelled(server) == long_ones(server)

    server = FakeServer(starts)
    asyncio.run(asyncio.wait_for(run(), 30))
    server.close()


def test_an_error_while_a_stream_is_read_ends_it_alone() -> None:
    def read(client: Client) -> None:
        with client.stream("x") as stream:
            for _ in stream:
                raise ValueError("mine")

    async def read_async(client: AsyncClient) -> None:
        async with client.stream("x") as stream:
            async for _ in stream:
                raise ValueError("mine")

    async def run() -> None:
        async with AsyncClient(server.endpoint) as client:
            with pytest.raises(ValueError, match="mine"):
                await read_async(client)
            assert await client.ping()
            while len(cancelled(server)) < 2:
                await asyncio.sleep(0.01)

    server = FakeServer(starts)
    with Client(server.endpoint) as client:
        with pytest.raises(ValueError, match="mine"):
            read(client)
        assert client.ping()
    asyncio.run(asyncio.wait_for(run(), 30))
    assert len(long_ones(server)) == 2
    server.close()


def test_a_loop_that_closes_while_an_event_comes_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Nor is it a fault that is logged, as where Ctrl-C ends a script within a stream. It closes after the connection's
    thread has looked at it, and before that hands the event over.
    """

    class Closing(asyncio.SelectorEventLoop):
        def is_closed(self) -> bool:
            return threading.current_thread() is threading.main_thread() and super().is_closed()

    go_on = threading.Event()

    def answer(request: m.AnyRequest) -> list[Step]:
        if isinstance(request, m.Generate):
            go_on.wait(30)
        return starts(request)

    async def begin(client: AsyncClient) -> AsyncStream:
        return client.stream("x")

    server = FakeServer(answer)
    loop = Closing()
    client = AsyncClient(server.endpoint)
    stream = loop.run_until_complete(begin(client))
    wait_for(lambda: len(long_ones(server)) == 1)
    loop.close()
    go_on.set()
    wait_for(lambda: cancelled(server) == [stream.id])
    assert caplog.records == []
    assert asyncio.run(client.ping()).server_id == "one", "another loop goes on with the same connection"
    asyncio.run(client.close())
    server.close()


FEW_DESCRIPTORS = """
import resource, sys
from protocol import Client
from protocol.errors import ConnectionFailed
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
for free in range(sys.maxsize):
    resource.setrlimit(resource.RLIMIT_NOFILE, (3 + free, most))
    try:
        client = Client(sys.argv[1])
        break
    except ConnectionFailed as e:
        said = str(e)
print(client.hello().server_id)
print(said, end="")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there files are not limited")
def test_a_process_that_may_open_no_more_files_gets_an_error(shared_daemon: Daemon) -> None:
    """Where libzmq gets no descriptor for a socket it ends the process, or waits for ever."""
    command = [sys.executable, "-c", FEW_DESCRIPTORS, shared_daemon.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    server_id, said = done.stdout.split("\n")
    with Client(shared_daemon.endpoint) as client:
        assert client.hello().server_id == server_id, "as many as it asks for are enough"
    why = "Too many open files; close other clients or files of this process, or allow it more (`ulimit -n`)"
    assert said == f"no connection to {shared_daemon.endpoint} can be opened: {why}"
    shell = f'ulimit -n 16; exec "{sys.executable}" -m client {shared_daemon.endpoint} --prompt x'
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"gpt2d-client: {said}\n")
