"""Something dies, stands still or fails in the middle of its work: clients are told soon, and what can go on goes on."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from protocol import Client, messages as m
from protocol.errors import ConnectionFailed, Internal, WorkerDied
from scripts.reliability.asking import ask, running, text, until
from scripts.reliability.daemon import POISON, Behaviour, FakeDaemon
from scripts.reliability.promise import Figures, Scale, promise

WAYS = ({"engine": "native", "precision": "int8"}, {"engine": "onnx", "precision": "int8"})


@promise
def daemon_killed(scale: Scale, folder: Path) -> Figures:
    """With 50 streams open the daemon is killed: each is told within 5 s, all clients are back within 5 s of its return, no worker outlives it."""
    rounds, told, back, endpoint = scale.of(2, 10, 100), [], [], "tcp://127.0.0.1:0"
    with ExitStack() as stack:
        clients: list[Client] = []
        for round_ in range(rounds):
            daemon = stack.enter_context(FakeDaemon(folder, Behaviour(delay_ms=5), "--endpoint", endpoint))
            returned = time.monotonic()
            endpoint = daemon.endpoint
            clients = clients or [stack.enter_context(Client(endpoint)) for _ in range(5)]
            for client in clients:
                client.load("demo", timeout=10)
            back.append(time.monotonic() - returned)
            assert back[-1] < 5, f"round {round_}: the clients were back after {back[-1]:.1f} s"
            asked = [ask(client, text(10 * i + j, 900), 120) for i, client in enumerate(clients) for j in range(10)]
            assert all(one.begun.wait(20) for one in asked[:16])  # as many as there are rows
            workers = daemon.workers()
            killed = time.monotonic()
            daemon.kill()
            for one in asked:
                assert isinstance(one.wait(6), ConnectionFailed), one.last
                told.append(one.at - killed)
            assert max(told) < 5, f"round {round_}: told after {max(told):.1f} s"
            _, alive = psutil.wait_procs(workers, 5)
            assert not alive, "a worker outlived its daemon"
    return {"rounds": rounds, "told_s_max": round(max(told), 2), "back_s_max": round(max(back), 2)}


@promise
def worker_killed(scale: Scale, folder: Path) -> Figures:
    """A worker is killed: its requests end with worker_died within 1 s, another model's streams are unharmed; a preloaded model comes back by itself, later each time."""
    rounds, told, back = scale.of(2, 3, 5), [], []
    preload = "demo/native/int8"
    with FakeDaemon(folder, Behaviour(delay_ms=5), "--preload", preload) as daemon, Client(daemon.endpoint) as client:
        for way in WAYS:
            client.load("demo", **way)

        def preloaded() -> bool:
            return any(w.engine == "native" and w.state == "ready" for w in client.ping().workers)

        (other,) = [p for p in daemon.workers() if p.pid != _pid_of(daemon, preload)]
        for round_ in range(rounds):
            mine = [ask(client, text(i, 900, **WAYS[0])) for i in range(4)]
            others = [ask(client, text(100 + i, 200, **WAYS[1])) for i in range(4)]
            assert all(one.begun.wait(10) for one in (*mine, *others))
            (victim,) = [p for p in daemon.workers() if p.pid != other.pid]
            killed = time.monotonic()
            victim.kill()
            for one in mine:
                assert isinstance(one.wait(5), WorkerDied), one.last
                told.append(one.at - killed)
            assert max(told) < 1
            for one in others:
                one.wait(30)
                one.is_right()
            delay = 2**round_
            back.append(until(preloaded, delay + 10, "the preloaded model"))
            assert f"is loaded again in {delay} s" in daemon.logged()
    return {"rounds": rounds, "told_s_max": round(max(told), 3), "back_s_max": round(max(back), 1)}


def _pid_of(daemon: FakeDaemon, preload: str) -> int:
    """The first worker started is the preloaded one."""
    assert preload in daemon.logged()
    return min(daemon.workers(), key=lambda process: process.create_time()).pid


@promise
def stuck(scale: Scale, folder: Path) -> Figures:
    """A stopped daemon is called so within 5 s; a stopped worker is named by ping, and ended after --stuck-seconds, which its clients are told."""
    rounds, told, ended = scale.of(1, 2, 10), [], []
    for round_ in range(rounds):
        place = folder / str(round_)
        with (
            FakeDaemon(place, Behaviour(delay_ms=5), "--stuck-seconds", "2") as daemon,
            Client(daemon.endpoint) as client,
        ):
            for way in WAYS:
                client.load("demo", **way)
            stream = ask(client, text(1, 900, **WAYS[0]))
            assert stream.begun.wait(10)
            began = time.monotonic()
            daemon.process.send_signal(signal.SIGSTOP)
            assert isinstance(stream.wait(6), ConnectionFailed), stream.last
            told.append(stream.at - began)
            assert told[-1] < 5, f"told after {told[-1]:.2f} s: {stream.last!r}"
            daemon.process.send_signal(signal.SIGCONT)
            until(lambda: running(client) == 0, 10, "the daemon goes on, and the stream's row is free")
            victim = min(daemon.workers(), key=lambda process: process.create_time())
            mine, other = ask(client, text(2, 900, **WAYS[0])), ask(client, text(3, 400, **WAYS[1]))
            assert mine.begun.wait(10) and other.begun.wait(10)
            began = time.monotonic()
            victim.suspend()

            def named() -> bool:
                return any(w.engine == "native" and w.moved_ms_ago > 1000 for w in client.ping().workers)

            until(named, 3, "ping names the worker that does not move")
            assert isinstance(mine.wait(6), WorkerDied) and "had not moved for" in str(mine.last), mine.last
            ended.append(mine.at - began)
            other.wait(30)
            other.is_right()
            until(lambda: not victim.is_running(), 3, "the worker is gone")  # noqa: B023 - called at once
            assert "has not moved for" in daemon.logged()
    return {"rounds": rounds, "told_s_max": round(max(told), 2), "worker_ended_s_max": round(max(ended), 2)}


@promise
def engine_faults(scale: Scale, folder: Path) -> Figures:
    """An engine raises, gives no numbers or runs out of memory: that request gets `internal` with an id that stands in the log, the batch goes on, no row stays taken."""
    repeats, faults = scale.of(5, 30, 100), 0
    for fault in ("raises", "no numbers", "out of memory"):
        with (
            FakeDaemon(folder / fault, Behaviour(delay_ms=0.2, fault=fault, rows=4), "--rows", "4") as daemon,
            Client(daemon.endpoint) as client,
        ):
            client.load("demo")
            for repeat in range(repeats):
                good = [ask(client, text(10 * repeat + i, 30)) for i in range(3)]
                poisoned = ask(client, m.Generate(prompt_ids=[POISON] * 8, max_new_tokens=5, speculate=0))
                failure = poisoned.wait(20)
                assert isinstance(failure, Internal), failure
                incident = str(failure).split()[-1]
                until(lambda: incident in daemon.logged(), 5, "the incident in the log")  # noqa: B023 - called at once
                for one in good:
                    one.wait(20)
                    one.is_right()
                faults += 1
            until(lambda: running(client) == 0, 5, "no row stays taken")
            full = [ask(client, text(500 + i, 20)) for i in range(4)]
            for one in full:
                one.wait(20)
                one.is_right()
    return {"faults": faults}
