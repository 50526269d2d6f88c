"""Gateway with workers that say what a test wants: whose requests a fault ends."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import psutil
import pytest
import zmq

from protocol import Client, codec, messages as m, sockets
from protocol.errors import BadModel, BadRequest, Internal, LoadFailed, NoMemory, NotLoaded, RequestError, WorkerDied
from protocol.ledger import ledger
from scripts.reliability import zmtp
from server import link
from server.config import Config
from server.gateway import dispatch, gateway, kept, status, supervisor
from server.gateway.front import Front
from server.gateway.gateway import Gateway
from server.launch.spec import Spec
from server.link import ForWorker, FromWorker, Pieces, Ready, Started, Work
from tests.conftest import wait_for
from tests.server.test_weights import copy_demo

WAIT_MS = 30_000
M = TypeVar("M", bound=ForWorker)


class FakeWorker:
    """Worker's socket, in the test's hands, and the process that its launcher sees."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket, self._monitor = link.worker_socket(self._context, spec.endpoint, spec.server_key, spec.identity)
        self.code: int | None = None
        self.failure: RequestError | None = None
        self.renewed: list[str] = []

    def say(self, message: FromWorker) -> None:
        self.send(link.encode(message))

    def send(self, frame: bytes) -> None:
        assert self._socket.poll(WAIT_MS, zmq.POLLOUT)
        self._socket.send(frame)

    def hear(self, kind: type[M]) -> M:
        """Return the next message of that kind."""
        while True:
            assert self._socket.poll(WAIT_MS), f"no {kind.__name__} came"
            message = link.decode_for_worker(self._socket.recv())
            if isinstance(message, kind):
                return message

    def has_message(self) -> bool:
        return sockets.readable(self._socket)

    def disconnect(self) -> None:
        """Disconnect; what was sent before still leaves."""
        sockets.close_monitored(self._socket, self._monitor, 1000)
        self._context.term()

    def close(self) -> None:
        if not self._socket.closed:
            self.disconnect()

    # The process

    def exit_code(self) -> int | None:
        return self.code

    def problem(self) -> RequestError | None:
        return self.failure

    def progress(self) -> m.Progress | None:
        return None

    def renew(self, routing_id: str) -> bool:
        self.renewed.append(routing_id)
        return True

    def stop(self) -> None:
        self.code = 0

    def kill(self) -> None:
        self.code = -9


@dataclass
class FakeLauncher:
    started: queue.Queue[FakeWorker] = field(default_factory=queue.Queue)

    def start(self, spec: Spec, memory_bytes: int) -> FakeWorker:
        worker = FakeWorker(spec)
        self.started.put(worker)
        return worker

    def free_memory(self, untaken: int) -> int:
        return 1 << 40

    def places(self) -> str:
        return ""

    def close(self) -> None: ...


class Daemon:
    """Gateway in a thread, one client, and workers that tests speak for."""

    def __init__(self, folder: Path, *preload: str) -> None:
        self.launcher = FakeLauncher()
        config = Config(
            endpoint="tcp://127.0.0.1:0", models_dir=folder, hub_cache=folder, cache_dir=folder, preload=preload
        )
        self.gateway = Gateway(config, self.launcher)
        self._thread = threading.Thread(target=self.gateway.run)
        self._workers: list[FakeWorker] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self.client = Client(self.gateway.endpoint)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.gateway.drain()
        self.gateway.drain()  # at once
        self._thread.join(20)
        for worker in self._workers:
            worker.close()
        while not self.launcher.started.empty():
            self.launcher.started.get().close()
        assert not self._thread.is_alive()

    def worker(self) -> FakeWorker:
        """Return the next worker that is started."""
        self._workers.append(self.launcher.started.get(timeout=20))
        self._workers[-1].say(Started(id=None, node="here"))
        return self._workers[-1]

    def ready(self, count: int) -> list[FakeWorker]:
        """Return replicas of one model, all ready."""
        load = threading.Thread(target=lambda: self.client.load("demo", replicas=count))
        load.start()
        workers = [self.worker() for _ in range(count)]
        for worker in workers:
            worker.say(READY)
        load.join(20)
        return workers


READY = Ready(id=None, digest="d", quantised_share=0, disk_bytes=1, context=64, rows=2, threads=1, rss_bytes=1)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path) as daemon:
        yield daemon


class Asked:
    """Request in its own thread, and its result or error."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._result: object = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(ask,))
        self._thread.start()

    def _run(self, ask: Callable[[], object]) -> None:
        try:
            self._result = ask()
        except Exception as e:  # noqa: BLE001 - the test's to judge
            self._error = e

    def end(self) -> type:
        """Return the type of its result or error."""
        self._thread.join(20)
        assert not self._thread.is_alive(), "it did not end"
        return type(self._error or self._result)

    def result(self) -> object:
        self.end()
        if self._error:
            raise self._error
        return self._result


def generated(work: Work, text: str = "y") -> m.Generated:
    return m.Generated(
        id=work.id, model="demo", engine="native", precision="int8", text=text, ids=[1], prompt_truncated=0,
        finish_reason="length", settings={}, digest="d", threads=1,
        ledger=ledger(queue_ms=1, tokenise_ms=1, prefill_ms=1, decode_ms=1, prompt_tokens=1, new_tokens=1),
    )  # fmt: skip


def fault(code: str = "load_failed") -> m.Failure:
    return m.Failure(id=None, code=code, message="demo/native/int8: MemoryError")


def first_hears(first: FakeWorker, second: FakeWorker) -> bool:
    """Return whether the first of two has a message; one of them will."""
    wait_for(lambda: first.has_message() or second.has_message())
    return first.has_message()


def test_a_ready_workers_own_fault_moves_its_requests(daemon: Daemon) -> None:
    first, second = daemon.ready(2)
    asked = Asked(lambda: daemon.client.generate("x"))
    has_it, other = (first, second) if first_hears(first, second) else (second, first)
    was = has_it.hear(Work)
    has_it.say(fault())
    again = other.hear(Work)
    left, given = (work.request.deadline_ms for work in (again, was))
    assert left and given and 0 < left < given, "it has the time that is left"
    other.say(generated(again, "elsewhere"))
    result = asked.result()
    assert isinstance(result, m.Generated) and result.text == "elsewhere"


@pytest.mark.parametrize("code", ["load_failed", "no_memory", "worker_died"])
def test_what_cannot_move_ends_as_worker_died_and_the_model_begins_again(daemon: Daemon, code: str) -> None:
    (only,) = daemon.ready(1)
    asked = Asked(lambda: daemon.client.generate("x"))
    only.hear(Work)
    only.say(fault(code))
    with pytest.raises(WorkerDied, match=r"the worker of demo/native/int8 died \(.*MemoryError\); load it again"):
        asked.result()
    daemon.worker().say(READY)
    wait_for(lambda: [w.state for w in daemon.client.ping().workers] == ["ready"])


def test_a_stream_that_has_begun_ends_as_worker_died(daemon: Daemon) -> None:
    first, second = daemon.ready(2)
    stream = daemon.client.stream("x")
    asked = Asked(lambda: list(stream))
    has_it = first if first_hears(first, second) else second
    has_it.say(m.Tokens(id=has_it.hear(Work).id, seq=0, text="a", ids=[1]))
    has_it.say(fault())
    with pytest.raises(WorkerDied, match="MemoryError"):
        asked.result()


def test_pieces_that_came_together_go_to_their_own_clients_in_order(daemon: Daemon) -> None:
    """Also beside a client that does not read: it is dropped, its request ends, and nobody else notices."""
    (worker,) = daemon.ready(1)
    stream = daemon.client.stream("x")
    asked = Asked(lambda: [piece.text for piece in stream])
    reads = worker.hear(Work).id
    with zmq.Context() as context, context.socket(zmq.DEALER) as deaf:
        deaf.rcvhwm = 1
        deaf.connect(daemon.gateway.endpoint)
        deaf.send(codec.encode(m.Generate(id=7, prompt="x", stream=True)))
        unread = worker.hear(Work).id
        count = 0
        while not worker.has_message():
            count += 1
            pieces = [
                m.Tokens(id=unread, text="x" * 500_000, ids=[1]), m.Tokens(id=reads, text=f"{count} ", ids=[1]),
                m.Tokens(id=2**60, text="of a request that is over", ids=[1]),
            ]  # fmt: skip
            worker.say(Pieces(id=None, pieces=pieces))
        assert worker.hear(m.Cancel).target == unread
        worker.say(Pieces(id=None, pieces=[m.Tokens(id=reads, text="end", ids=[1])]))
        worker.say(generated(Work(id=reads, group=0, request=m.Generate(prompt="x"))))
        assert asked.result() == [*(f"{i + 1} " for i in range(count)), "end"]
        deaf.linger = 0


def test_a_loading_workers_fault_is_its_loads(daemon: Daemon) -> None:
    asked = Asked(lambda: daemon.client.load("demo"))
    daemon.worker().say(fault())
    with pytest.raises(LoadFailed, match="demo/native/int8: MemoryError"):
        asked.result()
    assert daemon.launcher.started.empty()


def test_a_message_of_a_ready_worker_that_cannot_be_read_counts_as_its_death(daemon: Daemon) -> None:
    (only,) = daemon.ready(1)
    asked = Asked(lambda: daemon.client.generate("x"))
    only.hear(Work)
    only.send(b"nonsense")
    with pytest.raises(WorkerDied, match=r"died \(not a msgpack map.*\); load it again"):
        asked.result()


def test_a_fault_while_it_is_unloaded_loads_nothing(daemon: Daemon) -> None:
    (only,) = daemon.ready(1)
    only.stop = lambda: None  # type: ignore[method-assign] # it takes its time
    asked = Asked(lambda: daemon.client.unload("demo"))
    wait_for(lambda: [w.state for w in daemon.client.ping().workers] == ["stopping"])
    only.say(fault())
    only.code = 1
    assert asked.result() == ["demo/native/int8"]
    wait_for(lambda: not daemon.client.ping().workers)


def test_a_reply_that_is_too_large_under_its_clients_id_costs_that_request_alone(daemon: Daemon) -> None:
    """As from a worker that leaves no headroom: the gateway's own id of it is the shorter one."""
    (only,) = daemon.ready(1)
    other = Asked(lambda: daemon.client.generate("other"))
    others = only.hear(Work)
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.connect(daemon.gateway.endpoint)
        peer.send(codec.encode(m.Generate(id=2**63 - 1, prompt="x", stream=True)))
        work = only.hear(Work)
        around = len(codec.encode(generated(work, "")))
        size = codec.MAX_REPLY_BYTES - around
        reply = generated(work, "x" * (size - 4))
        frame = codec.encode(reply)
        assert codec.MAX_REPLY_BYTES - 8 < len(frame) <= codec.MAX_REPLY_BYTES
        only.send(frame)
        assert peer.poll(WAIT_MS)
        failure = codec.decode_reply(peer.recv())
        assert isinstance(failure, m.Failure) and failure.id == 2**63 - 1
        assert failure.code == BadRequest.code and "over the limit of 16777216" in failure.message
        assert only.hear(m.Cancel).target == work.id, "nobody waits for more of it"
    only.say(generated(others))
    assert isinstance(other.result(), m.Generated)
    assert [w.state for w in daemon.client.ping().workers] == ["ready"]


def test_a_fault_while_a_reply_is_delivered_costs_that_request_alone(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    (only,) = daemon.ready(1)
    asked = [Asked(lambda: daemon.client.generate("x")) for _ in range(2)]
    works = [only.hear(Work), only.hear(Work)]

    def broken(*_: object) -> None:
        raise RuntimeError("a figure that cannot be kept")

    with monkeypatch.context() as patch:
        patch.setattr(dispatch.Dispatch, "_note", broken)
        only.say(generated(works[0]))
        assert only.hear(m.Cancel).target == works[0].id
    only.say(generated(works[1]))
    assert {one.end() for one in asked} == {Internal, m.Generated}
    assert [w.state for w in daemon.client.ping().workers] == ["ready"]


def test_a_connection_that_broke_before_its_first_word_was_read_is_lost(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "demo")
    worker = daemon.worker()
    port = int(worker.spec.endpoint.rpartition(":")[2])

    def connections() -> list[object]:
        """Return the gateway's ends of its workers' connections."""
        there = psutil.Process().net_connections("tcp")
        return [c for c in there if c.laddr and c.laddr.port == port and c.status != psutil.CONN_LISTEN]

    wait_for(lambda: bool(connections()))
    worker.disconnect()
    wait_for(lambda: not connections())
    with daemon:
        wait_for(lambda: worker.renewed == [worker.spec.identity])


@pytest.mark.parametrize("failure", [None, BadModel("no node can run it"), NoMemory("no place")])
def test_a_load_that_failed_is_not_tried_again(daemon: Daemon, failure: RequestError | None) -> None:
    """A failed load was answered: whoever asked for replicas asks again, or does not."""
    asked = Asked(lambda: daemon.client.load("demo", replicas=2))
    first, second = daemon.worker(), daemon.worker()
    first.failure, first.code = failure, 1
    with pytest.raises(type(failure) if failure else LoadFailed):
        asked.result()
    wait_for(lambda: second.code is not None)
    wait_for(lambda: not daemon.client.ping().workers)
    with pytest.raises(NotLoaded, match="demo is not loaded"):
        daemon.client.unload("demo")  # nor is it kept


def test_a_failed_load_of_more_leaves_what_was_there(daemon: Daemon) -> None:
    (first,) = daemon.ready(1)
    asked = Asked(lambda: daemon.client.load("demo", replicas=2))
    daemon.worker().code = 1
    with pytest.raises(LoadFailed):
        asked.result()
    assert daemon.client.load("demo").replicas == 1
    first.code = 1
    daemon.worker().say(READY)
    wait_for(lambda: [w.state for w in daemon.client.ping().workers] == ["ready"])
    assert daemon.launcher.started.empty(), "one was kept"


def test_heads_that_an_engine_cannot_compute_start_no_worker(daemon: Daemon, tmp_path: Path) -> None:
    copy_demo(tmp_path / "narrow", n_head=64)
    says = "its attention heads are 4 wide, and engine onnx computes multiples of 8; use native"
    for ask in (daemon.client.load, daemon.client.measure):
        with pytest.raises(BadModel, match=f"{says}$"):
            ask("narrow", engine="onnx", precision="int8")
    assert daemon.launcher.started.empty()


@pytest.mark.parametrize(
    ("failure", "again"), [(BadModel("no node can run it"), False), (NoMemory("no place"), True), (None, True)]
)
def test_a_preload_begins_again_unless_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: RequestError | None, *, again: bool
) -> None:
    monkeypatch.setattr(supervisor, "AGAIN_S", 0.01)
    monkeypatch.setattr(kept.Kept, "delay_s", 0.01)
    with Daemon(tmp_path, "demo") as daemon:
        worker = daemon.worker()
        worker.failure, worker.code = failure, 1
        wait_for(lambda: not daemon.client.ping().workers or not daemon.launcher.started.empty())
        if again:
            daemon.worker().say(READY)
            wait_for(lambda: [w.state for w in daemon.client.ping().workers] == ["ready"])
        else:
            with pytest.raises(NotLoaded):
                daemon.client.unload("demo")  # nothing is due


def test_what_is_kept_compiled_stays_so_whoever_loads_it_meanwhile(daemon: Daemon) -> None:
    """As with its KV cache: its worker has died, and a load that asks for nothing comes before it begins again."""

    def load(*, compiled: bool, replicas: int | None) -> Asked:
        ask = partial(daemon.client.load, "demo", engine="torch", precision="fp32")
        return Asked(lambda: ask(compile=compiled, replicas=replicas))

    first = load(compiled=True, replicas=1)
    worker = daemon.worker()
    worker.say(READY)
    assert first.end() is m.Loaded and worker.spec.compiled
    worker.code = 1
    wait_for(lambda: not daemon.client.ping().workers)
    second = load(compiled=False, replicas=None)
    worker = daemon.worker()
    worker.say(READY)
    assert second.end() is m.Loaded and worker.spec.compiled


def test_what_users_should_know_is_looked_at_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([["first"], ["second"]])
    monkeypatch.setattr(status, "notices", lambda: next(told))
    monkeypatch.setattr(status, "NOTICES_S", 1e9)
    assert [status.server_info("x", "admin", Config()).notices for _ in range(2)] == [["first"], ["first"]]
    monkeypatch.setattr(status, "NOTICES_S", 1e-9)
    assert status.server_info("x", "admin", Config()).notices == ["second"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody knows what a connection has sent")
def test_what_comes_at_rest_is_looked_at_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client with nothing to ask lets the gateway rest, heartbeats or not; a message without an end does not."""
    monkeypatch.setattr(gateway, "REST_TICK_MS", 3_600_000)
    rests = threading.Event()

    def at_rest(front: Front, ask: Callable[[Front], bool] = Front.at_rest) -> bool:
        found = ask(front)
        if found:
            rests.set()
        return found

    with Daemon(tmp_path) as daemon:
        daemon.client.ping()
        try:
            with zmtp.connect(daemon.gateway.endpoint) as peer:
                peer.sendall(zmtp.frame(codec.encode(m.Ping(id=1))))
                peer.recv(1)
                monkeypatch.setattr(Front, "at_rest", at_rest)
                assert rests.wait(20)
                with contextlib.suppress(OSError):  # it is cut meanwhile
                    peer.sendall(zmtp.frame(bytes(250), zmtp.MORE) * 10_000)
                wait_for(lambda: daemon.gateway._front.ended == 1)
        finally:
            daemon.gateway.drain()
            daemon.gateway.drain()
