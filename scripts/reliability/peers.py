"""Peers that vanish, do not read, come in crowds, come and go, cancel at a bad moment, or are behind a bad network."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psutil
from msgspec.structs import replace

from protocol import Client, codec, messages as m
from protocol.errors import Cancelled, ConnectionFailed, Gpt2dError
from scripts.daemon import ROOT
from scripts.reliability import zmtp
from scripts.reliability.asking import Asked, ask, running, text, until
from scripts.reliability.daemon import Behaviour, FakeDaemon
from scripts.reliability.promise import Figures, Scale, promise
from scripts.reliability.proxy import RECEIVE, Proxy, stalls

MIB = 1 << 20


@promise
def vanished(scale: Scale, folder: Path) -> Figures:
    """The rows of a client that closes its connection are free within 1 s, those of one that falls silent within
    13 s, whether it streams or not: a slow line may stall.
    """
    repeats = scale.of(12, 60, 1000)
    with ThreadPoolExecutor(2) as pool:  # both spend most of their time waiting
        closing = pool.submit(_close, folder / "close", repeats)
        silent = pool.submit(_fall_silent, folder / "silent", scale.of(1, 3, 10))
        freed, silent_freed = closing.result(), silent.result()
    return {"repeats": repeats, "freed_s_max": round(max(freed), 3), "silent_s_max": round(max(silent_freed), 2)}


def _close(folder: Path, repeats: int) -> list[float]:
    """Return the seconds until the row of a peer that closes its connection was free, for each repeat."""
    freed: list[float] = []
    with FakeDaemon(folder, Behaviour(delay_ms=2)) as daemon, Client(daemon.endpoint) as watcher:
        watcher.load("demo")
        for i in range(repeats):
            peer = zmtp.connect(daemon.endpoint)
            peer.sendall(zmtp.frame(codec.encode(replace(text(i, 900, stream=i % 2 == 0), id=1))))
            until(lambda: running(watcher) == 1, 5, "it runs")
            peer.close()
            freed.append(until(lambda: running(watcher) == 0, 1, f"a vanished peer's row is free (round {i})"))
        assert watcher.stats().peers == 1
    return freed


def _fall_silent(folder: Path, repeats: int) -> list[float]:
    """Return the seconds until the rows of a peer that falls silent were free, for each repeat."""
    freed: list[float] = []
    request = m.Generate(id=1, prompt_ids=[20] * 6, max_new_tokens=900, n=4, speculate=0, ignore_eos=True)
    with FakeDaemon(folder, Behaviour(delay_ms=20)) as daemon, Client(daemon.endpoint) as watcher:
        watcher.load("demo")
        for _ in range(repeats):
            peer = zmtp.connect(daemon.endpoint)  # from here on it does not even answer heartbeats
            peer.sendall(zmtp.frame(codec.encode(request)))
            until(lambda: running(watcher) > 0, 5, "it runs")
            freed.append(until(lambda: running(watcher) == 0, 13, "a silent peer's rows are free"))
            peer.close()
        assert watcher.stats().peers == 1
    return freed


def gaps(client: Client, seconds: float) -> list[float]:
    """Return the seconds between the pieces of streams that one after another last about `seconds`."""
    found, began = [], time.perf_counter()
    while time.perf_counter() < began + seconds:
        last = time.perf_counter()
        for _ in client.stream(
            prompt_ids=[30] * 6, strategy="greedy", max_new_tokens=200, ignore_eos=True, speculate=0
        ):
            now = time.perf_counter()
            found.append(now - last)
            last = now
    return found


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[-1]


@promise
def slow_reader(scale: Scale, folder: Path) -> Figures:
    """A client that stops reading is cut off once its replies wait; the gateway grows by less than 32 MiB, and the 99th
    percentile of the others' waits at most doubles.
    """
    seconds = scale.of(1.5, 5, 30)
    with FakeDaemon(folder, Behaviour(delay_ms=5)) as daemon, Client(daemon.endpoint) as client:
        client.load("demo")
        alone, before = gaps(client, seconds), daemon.rss()
        # A process of its own: in this one it would slow the others.
        command = [sys.executable, "-m", "scripts.reliability.deaf", daemon.endpoint]
        with subprocess.Popen(command, cwd=ROOT) as deaf:
            try:
                until(lambda: client.stats().peers == 2, 10, "it is there")
                beside = gaps(client, seconds)
                until(lambda: client.stats().peers == 1, 15, "the reader that stopped is cut off")
                grown = daemon.rss() - before
            finally:
                deaf.kill()
        assert grown < 32 * MIB, f"the gateway grew by {grown / MIB:.0f} MiB"
        assert p99(beside) < 2 * p99(alone) + 0.010, (
            f"p99 of the others: {p99(alone) * 1000:.0f} ms alone, {p99(beside) * 1000:.0f} ms beside it"
        )
    return {
        "p99_ms": round(p99(alone) * 1000, 1),
        "p99_beside_ms": round(p99(beside) * 1000, 1),
        "grown_mib": round(grown / MIB, 1),
    }


@promise
def load(scale: Scale, folder: Path) -> Figures:
    """Each of many clients with many requests gets its own answers, each once and without a gap."""
    clients, requests = scale.of((20, 15), (100, 25), (200, 50))
    began = time.monotonic()
    with FakeDaemon(folder, Behaviour(rows=16)) as daemon, ExitStack() as stack:
        everybody = [stack.enter_context(Client(daemon.endpoint)) for _ in range(clients)]
        everybody[0].load("demo")
        asked: list[list[Asked]] = [[] for _ in everybody]
        for turn in range(requests):  # as each client's last one is done, its next begins; the worker's queue takes 128
            for i, client in enumerate(everybody):
                if i >= 100:
                    asked[i - 100][-1].wait(60)
                asked[i].append(ask(client, text(i * requests + turn, 6, stream=turn % 2 == 0), 120))
            for own in asked:
                own[-1].wait(60)
        for own in asked:
            for one in own:
                one.is_right()
        until(lambda: running(everybody[0]) == 0, 30, "no row stays taken")
    count = clients * requests
    return {"answers": count, "per_s": round(count / (time.monotonic() - began))}


@promise
def churn(scale: Scale, folder: Path) -> Figures:
    """When clients come and go, and models are loaded and unloaded, no descriptor, process or memory stays behind."""
    connects, loads = scale.of((400, 5), (3000, 30), (10_000, 200))
    with FakeDaemon(folder, Behaviour()) as daemon:
        gateway = psutil.Process(daemon.process.pid)

        def come_and_go(count: int) -> None:
            for _ in range(count):
                peer = zmtp.connect(daemon.endpoint)
                peer.sendall(zmtp.frame(codec.encode(m.Ping(id=1))))
                assert peer.recv(1)
                peer.close()

        come_and_go(200)
        with Client(daemon.endpoint) as client:
            until(lambda: client.stats().peers == 1, 5, "the others are gone")
        descriptors = gateway.num_fds()
        come_and_go(connects // 2)
        half = daemon.rss()
        come_and_go(connects // 2)
        grown = daemon.rss() - half
        assert grown < 2 * MIB, f"the gateway grew by {grown / MIB:.1f} MiB in {connects // 2} connections"
        until(lambda: gateway.num_fds() <= descriptors, 5, "the descriptors are back")
        with Client(daemon.endpoint) as client:
            for _ in range(loads):
                client.load("demo")
                client.unload("demo")
            assert daemon.workers() == []
            until(lambda: gateway.num_fds() <= descriptors + 1, 5, "the descriptors are back")
            threads = gateway.num_threads()
    return {"connections": connects, "grown_mib": round(grown / MIB, 2), "loads": loads, "threads": threads}


@promise
def cancel_races(scale: Scale, folder: Path) -> Figures:
    """A request that is cancelled in the queue, in its prefill, while it writes or after its end gets exactly one last
    reply; one that another peer tries to cancel goes on.
    """
    rounds, rng = scale.of(15, 80, 250), random.Random(5)
    ended = dict.fromkeys(("cancelled", "refused", "whole"), 0)
    with (
        FakeDaemon(folder, Behaviour(delay_ms=1, rows=2), "--rows", "2") as daemon,
        Client(daemon.endpoint) as client,
        Client(daemon.endpoint) as other,
    ):
        client.load("demo")

        def cancel(asked: Asked, by: Client) -> None:
            by.connection.cancel(asked.id)
            last = asked.wait(20)
            if isinstance(last, Cancelled):
                ended["refused"] += 1
            elif isinstance(last, m.Generated) and last.finish_reason == "cancelled":
                ended["cancelled"] += 1
            else:
                asked.is_right()
                ended["whole"] += 1

        for round_ in range(rounds):
            ahead = [ask(client, text(round_ + i, 20)) for i in range(2)]
            cancel(ask(client, text(round_ + 5, 20)), client)  # in the queue
            cancel(ask(client, text(round_ + 6, 20, prompt_tokens=900)), client)  # in its prefill, or before
            writing = ask(client, text(round_ + 7, 200))
            assert writing.begun.wait(30)
            time.sleep(rng.random() * 0.005)
            cancel(writing, client)
            finished = ask(client, text(round_ + 8, 2))
            finished.wait(20)
            cancel(finished, client)
            for one in ahead:
                cancel(one, other)  # the id is not that of one of its own requests
                one.is_right()
        until(lambda: running(client) == 0, 30, "no row stays taken")
        assert client.stats().open_requests == 1
    return {"rounds": rounds, **ended}


FAULTS = ("latency", "slices", "bandwidth", "reset", "reset in the handshake", "black hole")


@promise
def bad_network(scale: Scale, folder: Path) -> Figures:
    """Behind latency, slices, little bandwidth, resets and black holes a client gets the right text or a clear error
    within 10 s, and then has a connection again.
    """
    repeats, right = scale.of(1, 4, 100), 0
    with (
        FakeDaemon(folder, Behaviour(delay_ms=1)) as daemon,
        Client(daemon.endpoint) as direct,
        ThreadPoolExecutor(len(FAULTS)) as pool,  # all of them spend most of their time waiting
    ):
        direct.load("demo")
        for repeat in range(repeats):
            right += sum(pool.map(partial(_behind, daemon, repeat), FAULTS))
            until(lambda: running(direct) == 0, 5, "no row stays taken")
    tried = repeats * len(FAULTS)
    return {"tried": tried, "right": right, "failed_clearly": tried - right}


@promise
def slow_line(scale: Scale, folder: Path) -> Figures:
    """A line with a round trip of 1 s that stalls for 1 to 3 s again and again connects, and the same connection
    carries a stream to its end: whether the stalls are in the handshake, in the stream or in between.
    """
    seconds, rng = scale.of(2, 20, 60), random.Random(3)
    with FakeDaemon(folder, Behaviour(delay_ms=seconds * 1000 // 900)) as daemon, Proxy(daemon.endpoint) as proxy:
        with Client(daemon.endpoint) as direct:
            direct.load("demo")
        proxy.latency = 0.5
        with stalls(proxy.open, rng) as stopped, Client(proxy.endpoint) as client:
            began = time.monotonic()
            client.ping(timeout=30)
            connected = time.monotonic() - began
            connections = proxy.connections
            asked = ask(client, text(1, 900), seconds + 60)
            asked.wait(seconds + 60)
            asked.is_right()
            assert proxy.connections == connections, "another connection was made"
    streamed = asked.at - began - connected
    return {"stalls": len(stopped), "connected_s": round(connected, 1), "streamed_s": round(streamed, 1)}


def _behind(daemon: FakeDaemon, repeat: int, fault: str) -> bool:
    """Ask behind a faulty network; True if the text came, False for a clear error. Raises: AssertionError."""
    with Proxy(daemon.endpoint) as proxy:
        if fault == "latency":
            proxy.latency = 0.1
        elif fault == "slices":
            proxy.slice = 1
        elif fault == "bandwidth":
            proxy.bandwidth = 20_000
        elif fault == "reset":
            proxy.reset_after = 700 + 37 * repeat
        elif fault == "reset in the handshake":
            proxy.reset_after = 1 + repeat % 100
        with Client(proxy.endpoint) as client:
            asked = ask(client, text(repeat, 60 if fault == "black hole" else 40), 30)
            if fault == "black hole":
                asked.begun.wait(5)
                proxy.open.clear()
            last = asked.wait(10)
            proxy.open.set()
            failed = isinstance(last, Gpt2dError)
            if failed:
                assert isinstance(last, ConnectionFailed), f"{fault}: {last!r}"
            else:
                asked.is_right()
            proxy.slice, proxy.latency = RECEIVE, 0.0
            proxy.bandwidth = None
            until(lambda: _pings(client), 10, f"a connection again after {fault}")
    return not failed


def _pings(client: Client) -> bool:
    try:
        client.ping(timeout=2)
    except Gpt2dError:
        return False
    return True
