"""A script may ask for more than the server takes at once, drop what it does not need, and be interrupted anywhere."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from protocol import AsyncClient, Client, messages as m
from protocol.connection import LONGEST_S, seconds
from protocol.errors import Busy, Cancelled, DeadlineExceeded
from scripts.daemon import ROOT, Daemon
from scripts.reliability.daemon import Behaviour, FakeDaemon
from tests.conftest import wait_for

LONG: dict[str, Any] = {"max_new_tokens": 1000, "ignore_eos": True, "n": 16}
SLOW = Behaviour(delay_ms=20, rows=1)
"""Each text of LONG takes 20 s."""


@pytest.fixture
def two_at_once(tmp_path: Path, cache: Path) -> Any:
    """A daemon that takes two open requests of each client."""
    with Daemon(tmp_path, "--max-open-per-peer", "2", f"--cache-dir={cache}", "--preload", "demo") as daemon:
        with Client(daemon.endpoint) as client:
            client.load("demo")
        yield daemon


@pytest.fixture
def two_slowly(tmp_path: Path) -> Any:
    """A client of such a daemon, whose texts last as long as a test wants."""
    with FakeDaemon(tmp_path, SLOW, "--max-open-per-peer", "2") as daemon, Client(daemon.endpoint) as client:
        client.load("demo")
        yield client


def test_more_than_the_limit_wait_for_their_turn(two_at_once: Daemon) -> None:
    async def ask() -> list[m.Generated]:
        async with AsyncClient(two_at_once.endpoint) as client:
            return list(await asyncio.gather(*(client.generate("x", max_new_tokens=2, seed=s) for s in range(300))))

    results = asyncio.run(ask())
    assert [r.settings["seed"] for r in results] == list(range(300))
    with Client(two_at_once.endpoint) as client:
        assert not client.stats().errors, "nothing was refused on the way"


def test_who_does_not_want_to_wait_is_told(two_slowly: Client) -> None:
    with two_slowly.stream("x", **LONG) as first, two_slowly.stream("x", **LONG):
        next(first)
        with pytest.raises(Busy, match="2 open requests, which is the limit"):
            two_slowly.generate("x", wait=False)


@pytest.mark.alone
def test_waiting_counts_in_the_timeout_and_can_be_cancelled(two_slowly: Client) -> None:
    with two_slowly.stream("x", **LONG) as first, two_slowly.stream("x", **LONG):
        next(first)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"not sent within 0\.3 s: this client's earlier requests"):
            two_slowly.generate("x", timeout=0.3)
        assert time.monotonic() - began < 2
        waiting = two_slowly.stream("x")
        waiting.cancel()
        with pytest.raises(Cancelled):
            next(waiting)
        assert two_slowly.ping(), "what is not work does not wait"


def test_another_connection_of_the_same_client_may_have_taken_the_place(tmp_path: Path) -> None:
    """The server refuses what this connection cannot know of; it is asked again, in the order of the calls."""
    slow = Behaviour(delay_ms=5)
    with FakeDaemon(tmp_path, slow, "--max-open-per-worker", "2") as daemon, Client(daemon.endpoint) as client:
        client.load("demo")
        done: list[int] = []

        def ask(seed: int) -> None:
            client.generate("x", max_new_tokens=5, seed=seed)
            done.append(seed)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(done) == list(range(8)) and client.stats().errors.get("busy", 0) > 0


def test_one_timeout_with_one_meaning(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path, SLOW) as daemon, Client(daemon.endpoint) as client:
        client.load("demo")
        assert client.generate("x", timeout=2, **LONG).finish_reason == "deadline"
        assert client.generate("x", timeout=None, max_new_tokens=1).ids
        assert client.generate("x", timeout=math.inf, max_new_tokens=1).ids
        assert seconds(None) == seconds(math.inf) == LONGEST_S == 86_400
        with client.stream("x", **LONG) as stream:
            next(stream)
            with pytest.raises(DeadlineExceeded):
                client.generate("x", timeout=0.3, max_new_tokens=1)


def test_a_stream_that_only_a_loop_holds_ends_with_the_loop(client: Client) -> None:
    for leave in (lambda: None, pytest.fail):
        try:
            for _ in client.stream("x", **LONG):
                if leave is pytest.fail:
                    raise ZeroDivisionError
                break
        except ZeroDivisionError as error:
            kept = error  # with its traceback, as at an interactive prompt
            wait_for(lambda: client.stats().open_requests == 1)
            assert kept.__traceback__
        wait_for(lambda: client.stats().open_requests == 1)


def test_an_interruption_while_it_waits_for_a_piece_cancels_it(client: Client) -> None:
    """And it gives what was written so far to who goes on."""
    stream = client.stream("x", **LONG)
    events = stream._events

    class Interrupted:
        def get(self, timeout: float) -> Any:
            stream._events = events
            raise KeyboardInterrupt

    next(stream)
    stream._events = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        for _ in stream:
            pass
    wait_for(lambda: client.stats().open_requests == 1)
    assert not list(stream) or stream.result.finish_reason == "cancelled"


def test_waiting_a_while_for_a_piece_loses_nothing(client: Client) -> None:
    expected = client.generate("Shall I", max_new_tokens=60, strategy="greedy", ignore_eos=True).text

    async def ask() -> str:
        async with AsyncClient(client.connection.endpoint) as own:
            stream = own.stream("Shall I", max_new_tokens=60, strategy="greedy", ignore_eos=True)
            pieces = []
            while True:
                try:
                    pieces.append((await asyncio.wait_for(anext(stream), 0.0005)).text)
                except TimeoutError:
                    await asyncio.sleep(0)
                except StopAsyncIteration:
                    return "".join(pieces)

    assert asyncio.run(ask()) == expected


def test_a_cancelled_task_ends_its_stream(client: Client) -> None:
    async def ask() -> None:
        async with AsyncClient(client.connection.endpoint) as own:
            begun = asyncio.Event()

            async def write() -> None:
                async for _ in own.stream("x", **LONG):
                    begun.set()

            task = asyncio.create_task(write())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while (await own.stats()).open_requests > 1:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(ask(), 20))


DROPPED = """
import gc, os, sys, threading, time
from protocol import Client
def count():
    return threading.active_count(), len(os.listdir("/proc/self/fd"))
def settled(wanted):
    give_up = time.monotonic() + 20
    while count() != wanted and time.monotonic() < give_up:
        time.sleep(0.01)
    return count()
with Client(sys.argv[1]) as client:
    peers = client.stats().peers
before = count()
for _ in range(100):
    Client(sys.argv[1]).ping()
for piece in Client(sys.argv[1]).stream("x", max_new_tokens=3):
    pass
unused = Client("tcp://127.0.0.1:9")
del unused, piece
assert settled(before) == before, (settled(before), before)
with Client(sys.argv[1]) as client:
    give_up = time.monotonic() + 20
    while client.stats().peers > peers and time.monotonic() < give_up:  # the server has seen the others go
        time.sleep(0.01)
    assert client.stats().peers <= peers, client.stats()
"""

FULL = """
import os, resource, sys, time
from protocol import Client
from protocol.errors import ConnectionFailed
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
kept = []
try:
    while True:
        kept.append(Client(sys.argv[1]))
except ConnectionFailed as error:
    assert "close other clients or files" in str(error), error
assert 5 < len(kept) < 40, len(kept)
kept[0].ping()
kept.clear()
give_up = time.monotonic() + 20
while len(os.listdir("/proc/self/fd")) > 60 and time.monotonic() < give_up:
    time.sleep(0.01)
Client(sys.argv[1]).ping()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("script", [DROPPED, FULL])
def test_dropped_clients_leave_nothing_behind(shared_daemon: Daemon, client: Client, script: str) -> None:
    """And where too many are kept, the next one is refused in words, instead of waiting for ever."""
    client.load("demo")
    client.close()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", script, shared_daemon.endpoint],
        env=environment, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_results_are_shown_in_short_and_given_as_dicts(client: Client) -> None:
    result = client.generate("Shall I compare thee", max_new_tokens=100, logprobs=5, ignore_eos=True)
    assert len(repr(result)) < 1000 and repr(result).startswith("Generated(text=")
    told = result.to_dict()
    assert told["text"] == result.text and told["ledger"]["new_tokens"] == 100 and "seq" not in told
    assert isinstance(told["logprobs"][0]["top"][0]["logprob"], float)
    assert client.models()[0].to_dict()["name"] == "demo"
    assert repr(client) == f"Client('{client.connection.endpoint}', ready)"
