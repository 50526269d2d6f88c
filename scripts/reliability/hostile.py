"""Peers that want to do harm, one in each file of cases/; what they have in common is here.

A case has `attack(host, port)`, which raises AssertionError where the gateway let it go on, or FRAMES, each of which is
sent as a message and must be refused; ANSWERS says with which codes, where it is not `bad_request`. WAITS says that
it mostly waits for a deadline of the gateway's, PING_S how long others' pings may take meanwhile, LEAKS (a known limit)
that its growth is bounded each time, not in all.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import pkgutil
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Self
from urllib.parse import urlsplit

import zmq

from protocol import Client, codec, messages as m
from scripts.reliability import cases
from scripts.reliability.asking import until
from scripts.reliability.daemon import Behaviour, FakeDaemon
from scripts.reliability.promise import Figures, Scale, promise

GROWTH_BYTES = 32 << 20
REFUSED_S = 0.1
PING_S = 0.25
"""Most seconds that 95 of 100 pings may take; 0.1 is enough on a machine that does nothing else."""
EVERY_S, LEAST = 0.01, 40
"""Seconds between the good client's pings, and their least number in each case."""
AT_ONCE = 4
"""Daemons that are attacked at the same time. Cases that wait for a deadline need no processor: all of them come first,
at once.
"""


# The good client


@dataclass
class Watched:
    """Pings and memory that the good client saw during a case."""

    waits: list[float] = field(default_factory=list)
    peak: int = 0

    @property
    def p95(self) -> float:
        return statistics.quantiles(self.waits, n=20)[-1]


class Watch:
    """Asks `ping` at fixed times, whether or not the last one was answered, so that each moment of a pause counts."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon
        self._asked: dict[int, float] = {}
        self._now = Watched()
        self._over = threading.Event()
        self._fault = ""
        self._thread = threading.Thread(target=self._run)

    @contextlib.contextmanager
    def during(self) -> Iterator[Watched]:
        """Return what is seen until the end of the block, and a moment after it."""
        watched = self._now = Watched()
        yield watched
        enough = len(watched.waits) + LEAST

        def answered() -> bool:
            assert self._daemon.process.poll() is None, f"the gateway ended:\n{self._daemon.logged()[-3000:]}"
            assert not self._fault, f"the good client: {self._fault}"
            return len(watched.waits) >= enough

        until(answered, 20, "answers to the good client")
        self._now = Watched()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        asker = context.socket(zmq.DEALER)
        asker.linger = 0
        asker.sndtimeo = 1000
        asker.connect(self._daemon.endpoint)
        due = time.monotonic()
        try:
            for number in itertools.count():
                if self._over.is_set():
                    break
                self._asked[number] = due
                asker.send(codec.encode(m.Ping(id=number)))
                due += EVERY_S
                while asker.poll(max(0, math.ceil((due - time.monotonic()) * 1000))):
                    self._take(asker.recv())
                self._now.peak = max(self._now.peak, self._daemon.rss())
        except Exception as e:  # noqa: BLE001 - raised in the main thread
            self._fault = repr(e)
        finally:
            asker.close()
            context.term()

    def _take(self, message: bytes) -> None:
        reply = codec.decode_reply(message)
        assert isinstance(reply, m.Pong), reply
        assert reply.id is not None
        self._now.waits.append(time.monotonic() - self._asked.pop(reply.id))


# The promise


def every_case() -> dict[str, ModuleType]:
    return {
        found.name: import_module(f"{cases.__name__}.{found.name}") for found in pkgutil.iter_modules(cases.__path__)
    }


def _groups() -> list[dict[str, ModuleType]]:
    """Return the cases that share a daemon.

    Those that only send frames do, since together they cost less than one may. Each of the others has its own daemon.
    """
    found = every_case()
    frames = {name: case for name, case in found.items() if hasattr(case, "FRAMES")}
    return [*({name: found[name]} for name in sorted(found.keys() - frames.keys())), frames]


def _waits(group: dict[str, ModuleType]) -> bool:
    """Return whether the cases of a group do little but wait for the server to hang up."""
    return all(getattr(case, "WAITS", False) for case in group.values())


@promise
def hostile(scale: Scale, folder: Path) -> Figures:
    """Hostile peers are refused within 100 ms where they can be answered and cut off where they cannot; a good client
    is answered meanwhile, the gateway stays small, and serves afterwards.
    """
    times = scale.of(1, 3, 20)
    groups = _groups()
    runs: list[Future[dict[str, Endured]]] = []
    for at_once, waiting in ((len(groups), True), (AT_ONCE, False)):
        with ThreadPoolExecutor(at_once) as pool:
            chosen = [(n, group) for n, group in enumerate(groups) if _waits(group) == waiting]
            runs += [pool.submit(_suffer, group, folder / str(number), times) for number, group in chosen]
    broken = [str(e) for run in runs if (e := run.exception())]
    assert not broken, "\n".join(broken)
    endured = {name: one for run in runs for name, one in run.result().items()}
    waits = [wait for one in endured.values() for wait in one.waits]
    figures: Figures = {
        "cases": len(endured),
        "refused_ms_max": round(1000 * max(one.refused for one in endured.values()), 1),
    }
    figures |= {
        "ping_ms_median": round(1000 * statistics.median(waits), 1),
        "ping_ms_p95": round(1000 * Watched(waits).p95, 1),
    }
    return figures | {f"{name}_grown_mib": round(one.grown / 2**20, 1) for name, one in endured.items()}


@dataclass
class Endured:
    """Effects of a case on a daemon."""

    waits: list[float] = field(default_factory=list)
    refused: float = 0.0
    """Seconds of the slowest refusal."""
    grown: int = 0


def _suffer(group: dict[str, ModuleType], folder: Path, times: int) -> dict[str, Endured]:
    """Carry cases out against one daemon, whose growth is that of all of them. Raises: AssertionError."""
    endured = {}
    with (
        FakeDaemon(folder, Behaviour(), "--preload", "demo") as daemon,
        Client(daemon.endpoint) as client,
        Watch(daemon) as watch,
    ):
        client.load("demo", timeout=20)
        start = daemon.rss()
        for name, case in group.items():
            try:
                endured[name] = _endure(case, daemon, client, watch, start, times)
                assert "Traceback" not in daemon.logged(), daemon.logged()[-3000:]
            except Exception as e:
                raise AssertionError(f"{name}: {e}") from e
    return endured


def _endure(case: ModuleType, daemon: FakeDaemon, client: Client, watch: Watch, start: int, times: int) -> Endured:
    """Carry a case out against a daemon that had `start` resident bytes. Raises: AssertionError."""
    endured = Endured()
    for _ in range(times):
        if getattr(case, "LEAKS", False):
            start = daemon.rss()
        with watch.during() as watched:
            endured.refused = max(endured.refused, _carry_out(case, daemon))
        endured.waits += watched.waits
        endured.grown = max(endured.grown, watched.peak - start)
        assert watched.p95 < getattr(case, "PING_S", PING_S), (
            f"pings took {watched.p95 * 1000:.0f} ms (p95 of {len(watched.waits)})"
        )
        assert endured.grown < GROWTH_BYTES, f"the gateway grew by {endured.grown / 2**20:.1f} MiB"
        assert client.generate("x", max_new_tokens=2, timeout=10).ids
    return endured


def _carry_out(case: ModuleType, daemon: FakeDaemon) -> float:
    """Return the seconds that the slowest refusal took; 0 where nothing is refused."""
    if not hasattr(case, "FRAMES"):
        where = urlsplit(daemon.endpoint)
        assert where.hostname and where.port
        case.attack(where.hostname, where.port)
        return 0.0
    answers = getattr(case, "ANSWERS", {"bad_request"})
    return max(_refused(f"frame {number}", body, answers, daemon.endpoint) for number, body in enumerate(case.FRAMES))


def _refused(what: str, body: bytes, answers: set[str], endpoint: str) -> float:
    """Return the seconds until it was refused, the best of three tries: the machine may have had a bad moment."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    peer = context.socket(zmq.DEALER)
    peer.linger = 0
    peer.rcvtimeo = peer.sndtimeo = 5000
    try:
        peer.connect(endpoint)
        peer.send(codec.encode(m.Ping(id=1)))
        peer.recv()  # it is connected
        best = float("inf")
        for _ in range(3):
            began = time.monotonic()
            peer.send(body)
            try:
                reply = codec.decode_reply(peer.recv())
            except zmq.Again:
                raise AssertionError(f"{what} was not answered") from None
            best = min(best, time.monotonic() - began)
            code = reply.code if isinstance(reply, m.Failure) else "result"
            assert code in answers, f"{what} was answered {code}: {reply}"
            if best < REFUSED_S:
                break
        assert best < REFUSED_S, f"{what} was refused after {best * 1000:.0f} ms"
        return best
    finally:
        peer.close()
        context.term()
