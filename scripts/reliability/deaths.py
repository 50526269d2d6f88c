"""Something dies, hangs or fails in the middle of its work: clients learn of it soon, and what can go on goes on."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil

from protocol import Client, messages as m
from protocol.errors import ConnectionFailed, Internal, WorkerDied
from scripts.reliability.asking import NATIVE, ONNX, ask, running, text, until
from scripts.reliability.daemon import POISON, Behaviour, FakeDaemon
from scripts.reliability.promise import Figures, Scale, promise


@promise
def daemon_killed(scale: Scale, folder: Path) -> Figures:
    """When the daemon is killed under 50 streams, each of them ends with connection_failed within 5 s, all clients are
    back within 5 s of the daemon's return, and no worker outlives it.
    """
    rounds, endpoint = scale.of(2, 10, 100), "tcp://127.0.0.1:0"
    noticed: list[float] = []
    back: list[float] = []
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
                noticed.append(one.at - killed)
            assert max(noticed) < 5, f"round {round_}: a stream ended {max(noticed):.1f} s after the daemon"
            _, alive = psutil.wait_procs(workers, 5)
            assert not alive, "a worker outlived its daemon"
    return {"rounds": rounds, "noticed_s_max": round(max(noticed), 2), "back_s_max": round(max(back), 2)}


@promise
def worker_killed(scale: Scale, folder: Path) -> Figures:
    """When a worker is killed, its requests end with worker_died within 1 s, and another model's streams go on
    unharmed; a preloaded model is loaded again by itself, each time after a longer pause.
    """
    rounds, preload = scale.of(2, 3, 5), "demo/native/int8"
    noticed: list[float] = []
    back: list[float] = []
    with FakeDaemon(folder, Behaviour(delay_ms=5), "--preload", preload) as daemon, Client(daemon.endpoint) as client:
        client.load("demo", **NATIVE)
        (preloaded,) = daemon.workers()
        client.load("demo", **ONNX)
        (other,) = [p for p in daemon.workers() if p.pid != preloaded.pid]

        def is_back() -> bool:
            return any(w.engine == "native" and w.state == "ready" for w in client.ping().workers)

        for round_ in range(rounds):
            mine = [ask(client, text(i, 900, **NATIVE)) for i in range(4)]
            others = [ask(client, text(100 + i, 200, **ONNX)) for i in range(4)]
            assert all(one.begun.wait(10) for one in (*mine, *others))
            (victim,) = [p for p in daemon.workers() if p.pid != other.pid]
            killed = time.monotonic()
            victim.kill()
            for one in mine:
                assert isinstance(one.wait(5), WorkerDied), one.last
                noticed.append(one.at - killed)
            assert max(noticed) < 1, f"round {round_}: a request ended {max(noticed):.1f} s after its worker"
            for one in others:
                one.wait(30)
                one.is_right()
            pause = 2**round_
            back.append(until(is_back, pause + 10, "the preloaded model"))
            assert f"is loaded again in {pause} s" in daemon.logged()
    return {"rounds": rounds, "noticed_s_max": round(max(noticed), 3), "back_s_max": round(max(back), 1)}


@promise
def stuck(scale: Scale, folder: Path) -> Figures:
    """A client notices within 5 s that its daemon hangs; `ping` names a worker that hangs, and the daemon ends it after
    --stuck-seconds, with worker_died to its clients.
    """
    rounds = scale.of(1, 2, 10)
    noticed: list[float] = []
    ended: list[float] = []
    with ThreadPoolExecutor(2) as pool:  # both spend most of their time waiting
        for round_ in range(rounds):
            daemons = pool.submit(_daemon_hangs, folder / f"daemon{round_}")
            workers = pool.submit(_worker_hangs, folder / f"worker{round_}")
            noticed.append(daemons.result())
            ended.append(workers.result())
    return {"rounds": rounds, "noticed_s_max": round(max(noticed), 2), "worker_ended_s_max": round(max(ended), 2)}


def _daemon_hangs(folder: Path) -> float:
    """Stop a daemon in the middle of a stream and let it go on; return the seconds until its client noticed."""
    with FakeDaemon(folder, Behaviour(delay_ms=5)) as daemon, Client(daemon.endpoint) as client:
        client.load("demo", **NATIVE)
        stream = ask(client, text(1, 900, **NATIVE))
        assert stream.begun.wait(10)
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGSTOP)
        assert isinstance(stream.wait(6), ConnectionFailed), stream.last
        noticed = stream.at - began
        assert noticed < 5, f"noticed after {noticed:.2f} s: {stream.last!r}"
        daemon.process.send_signal(signal.SIGCONT)
        until(lambda: running(client) == 0, 10, "the daemon goes on, and the stream's row is free")
        again = ask(client, text(2, 50, **NATIVE))
        again.wait(20)
        again.is_right()
    return noticed


def _worker_hangs(folder: Path) -> float:
    """Stop a worker in the middle of a stream; return the seconds until the stream ended."""
    with (
        FakeDaemon(folder, Behaviour(delay_ms=5), "--stuck-seconds", "2") as daemon,
        Client(daemon.endpoint) as client,
    ):
        client.load("demo", **NATIVE)
        (victim,) = daemon.workers()
        client.load("demo", **ONNX)
        mine, other = ask(client, text(2, 900, **NATIVE)), ask(client, text(3, 400, **ONNX))
        assert mine.begun.wait(10) and other.begun.wait(10)
        began = time.monotonic()
        victim.suspend()

        def named() -> bool:
            return any(w.engine == "native" and w.moved_ms_ago > 1000 for w in client.ping().workers)

        until(named, 3, "ping names the worker that does not move")
        assert isinstance(mine.wait(6), WorkerDied) and "had not moved for" in str(mine.last), mine.last
        ended = mine.at - began
        other.wait(30)
        other.is_right()
        until(lambda: not victim.is_running(), 3, "the worker is gone")
        assert "has not moved for" in daemon.logged()
    return ended


@promise
def engine_faults(scale: Scale, folder: Path) -> Figures:
    """When an engine raises, returns no numbers or runs out of memory, that request ends with `internal` and an id that
    the log has too, the others of its batch go on, and no row stays taken.
    """
    repeats, faults = scale.of(5, 30, 100), 0
    for fault in ("raises", "no numbers", "out of memory"):
        behaviour = Behaviour(delay_ms=0.2, fault=fault, rows=4)
        with (
            FakeDaemon(folder / fault, behaviour, "--rows", "4") as daemon,
            Client(daemon.endpoint) as client,
        ):
            client.load("demo")
            for repeat in range(repeats):
                good = [ask(client, text(10 * repeat + i, 30)) for i in range(3)]
                poisoned = ask(client, m.Generate(prompt_ids=[POISON] * 8, max_new_tokens=5, speculate=0))
                failure = poisoned.wait(20)
                assert isinstance(failure, Internal), failure
                incident = str(failure).split()[-1]
                until(lambda: incident in daemon.logged(), 30, "the incident in the log")  # noqa: B023 - called at once
                for one in good:
                    one.wait(20)
                    one.is_right()
                faults += 1
            until(lambda: running(client) == 0, 30, "no row stays taken")
            full = [ask(client, text(500 + i, 20)) for i in range(4)]
            for one in full:
                one.wait(20)
                one.is_right()
    return {"faults": faults}
