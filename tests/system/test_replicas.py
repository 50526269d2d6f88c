"""Several workers for one model: how they come and go, and which gets which request.

The engine is a fake one where the text does not matter.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

from protocol import Client, messages as m
from protocol.errors import BadModel, Busy, Cancelled, LoadFailed, NoMemory, NotLoaded, WorkerDied
from scripts.daemon import Daemon
from scripts.reliability.asking import VOCABULARY, Asked, ask
from scripts.reliability.daemon import POISON, Behaviour, FakeDaemon, expected
from server.catalogue.catalogue import Catalogue
from tests.conftest import held, wait_for

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
SLOW = Behaviour(delay_ms=5)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path, SLOW) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[Client]:
    with Client(daemon.endpoint) as client:
        yield client


def health(client: Client) -> list[m.WorkerHealth]:
    return client.ping().workers


def ready(client: Client) -> list[int]:
    """The numbers of the replicas that serve."""
    return sorted(w.replica for w in health(client) if w.state == "ready")


def long(seed: int, tokens: int = 500, *, stream: bool = True) -> m.Generate:
    """A text of some seconds, whose prompt shares nothing with another's."""
    ids = [(seed * 977 + i * 31) % 1000 + 20 for i in range(40)]
    return m.Generate(
        prompt_ids=ids, max_new_tokens=tokens, strategy="greedy", speculate=0, ignore_eos=True, stream=stream
    )


def running(asked: list[Asked]) -> None:
    assert all(one.begun.wait(30) for one in asked)


def process_of(daemon: FakeDaemon, replica: int) -> psutil.Process:
    """Started in the order of their numbers."""
    return sorted(daemon.workers(), key=lambda p: p.create_time())[replica]


def test_a_load_is_answered_when_all_of_them_are_ready(client: Client, daemon: FakeDaemon) -> None:
    stages: list[str] = []
    loaded = client.load("demo", replicas=3, on_progress=lambda p: stages.append(p.stage))
    assert loaded.replicas == 3 and not loaded.already and stages
    assert ready(client) == [0, 1, 2] and len(daemon.workers()) == 3
    assert {w.node for w in health(client)} == {client.hello().host}
    (demo,) = [model for model in client.models() if model.name == "demo"]
    (way,) = [p for p in demo.precisions if p.loaded]
    assert [w.replica for w in way.replicas] == [0, 1, 2]
    again = client.load("demo", replicas=3)
    assert again.already and again.replicas == 3 and client.load("demo").replicas == 3
    assert [w.replica for w in client.stats().workers] == [0, 1, 2]
    assert client.unload("demo") == ["demo/native/int8"]
    assert not health(client) and not daemon.workers()


def test_requests_are_shared_out_and_come_back_whole(client: Client) -> None:
    client.load("demo", replicas=3)
    asked = [ask(client, long(i, 60)) for i in range(48)]
    for one in asked:
        one.wait(30)
        one.is_right()
    done = {w.replica: w.requests for w in client.stats().workers}
    assert sum(done.values()) == 48 and min(done.values()) >= 12, done


def test_more_and_fewer(client: Client, daemon: FakeDaemon) -> None:
    client.load("demo")
    streams = [ask(client, long(i)) for i in range(2)]
    running(streams)
    wait_for(lambda: [w.running for w in health(client)] == [2])
    with held(*daemon.workers()):  # so that its texts do not end before others have begun
        assert client.load("demo", replicas=3).replicas == 3
        streams += [ask(client, long(i, 900)) for i in range(2, 6)]
        running(streams)
        wait_for(lambda: [w.running for w in health(client)] == [2, 2, 2])
        with held(*daemon.workers()):
            assert client.load("demo", replicas=1).replicas == 1
            states = Counter(w.state for w in health(client))
            assert states == {"ready": 1, "stopping": 2}, "those that are let go finish what they have"
    more = ask(client, long(9, 10))
    for one in (*streams, more):
        one.wait(30)
        one.is_right()
    wait_for(lambda: len(daemon.workers()) == 1)
    assert len(ready(client)) == 1


def test_a_page_goes_where_its_text_is_remembered(tmp_path: Path, cache: Path) -> None:
    daemon = Daemon(tmp_path, "--cache-dir", str(cache))
    try:
        with Client(daemon.endpoint) as client:
            client.load("demo", replicas=3)
            texts = [
                f"{name}: I'll tell thee all that I have seen this night, and more than thou wouldst hear of it.\n"
                for name in "ABCDEF"
            ]
            for turn in range(3):
                for i, text in enumerate(texts):
                    result = client.generate(text, max_new_tokens=30, strategy="greedy", ignore_eos=True)
                    texts[i] = text + result.text
                    assert turn == 0 or result.ledger.reused_tokens > 0.7 * result.ledger.prompt_tokens, result.ledger
            wait_for(lambda: all(w.requests == 6 for w in client.stats().workers))
    finally:
        daemon.kill()


@posix
def test_what_had_not_begun_is_begun_elsewhere(client: Client, daemon: FakeDaemon) -> None:
    client.load("demo", replicas=2)
    streams = [ask(client, long(i)) for i in range(2)]
    running(streams)
    with held(*daemon.workers()):
        silent = [ask(client, long(10 + i, 100, stream=False)) for i in range(6)]
        wait_for(lambda: client.stats().open_requests == 9)
        process_of(daemon, 1).kill()
        wait_for(lambda: any(one.done.is_set() for one in streams))
    (cut,) = [one for one in streams if one.done.is_set()]
    assert isinstance(cut.last, WorkerDied), "its text was under way"
    for one in (*silent, *(one for one in streams if one is not cut)):
        one.wait(30)
        one.is_right()
    wait_for(lambda: ready(client) == [0, 1])


@posix
def test_what_ends_one_worker_does_not_end_them_all(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path, Behaviour(fault="dies")) as daemon, Client(daemon.endpoint) as client:
        client.load("demo", replicas=3)
        with pytest.raises(WorkerDied):
            client.generate(prompt_ids=[POISON] * 8, speculate=0)
        assert len(ready(client)) == 1, "it was tried once more, and not a third time"
        good = long(1, 5, stream=False)
        assert client.generate(
            prompt_ids=good.prompt_ids, max_new_tokens=5, strategy="greedy", ignore_eos=True
        ).ids == expected(list(good.prompt_ids or ()), 5, VOCABULARY)
        wait_for(lambda: ready(client) == [0, 1, 2])


@posix
def test_a_stuck_one_hands_over(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path, SLOW, "--stuck-seconds", "1") as daemon, Client(daemon.endpoint) as client:
        client.load("demo", replicas=2)
        process_of(daemon, 0).send_signal(signal.SIGSTOP)
        asked = [ask(client, long(i, 20, stream=False)) for i in range(4)]
        for one in asked:
            one.wait(30)
            one.is_right()
        wait_for(lambda: ready(client) == [0, 1])


def test_all_or_none(tmp_path: Path) -> None:
    with (
        FakeDaemon(tmp_path, Behaviour(rows=1), "--rows", "1", "--max-memory", "0.4") as daemon,
        Client(daemon.endpoint) as client,
    ):
        with pytest.raises(NoMemory, match="MB are free for it"):
            client.load("demo", replicas=9)
        wait_for(lambda: not daemon.workers())
        assert client.load("demo", replicas=2).replicas == 2
        with pytest.raises(NoMemory):
            client.load("demo", replicas=9)
        assert ready(client) == [0, 1]


def test_a_load_that_is_cancelled_leaves_none(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path, Behaviour(load_s=2)) as daemon, Client(daemon.endpoint) as client:
        load = ask(client, m.Load(model="demo", replicas=3))
        wait_for(lambda: len(daemon.workers()) == 3)
        client.connection.submit(m.Cancel(target=load.id), lambda _: None, 5)
        assert isinstance(load.wait(30), Cancelled)
        wait_for(lambda: not daemon.workers())
        load, fewer = ask(client, m.Load(model="demo", replicas=3)), ask(client, m.Load(model="demo", replicas=1))
        for one in (load, fewer):
            loaded = one.wait(30)
            assert isinstance(loaded, m.Loaded) and loaded.replicas == 1, "who asked last said how many"


def test_preloaded_so_many_times(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path, SLOW, "--preload", "demo:2") as daemon, Client(daemon.endpoint) as client:
        assert client.load("demo").replicas >= 1
        wait_for(lambda: ready(client) == [0, 1])
        assert len(daemon.workers()) == 2
        client.unload("demo")
        with pytest.raises(NotLoaded):
            client.generate("x")
        with pytest.raises(BadModel, match="replicas must be 1 to 64"):
            Catalogue(tmp_path, tmp_path).parse("demo:65")


@posix
def test_what_is_begun_elsewhere_is_begun_with_the_same_model(client: Client, daemon: FakeDaemon) -> None:
    """Also what left the model out, though another one is loaded by now."""
    client.load("demo", engine="onnx", replicas=2)
    with held(*daemon.workers()):
        long_ones = [ask(client, replace(long(i, stream=False), deadline_ms=60_000)) for i in range(2)]
        score = ask(client, m.Score(text="a b c d e f g " * 100))
        wait_for(lambda: client.stats().open_requests == 4)
        client.load("demo", engine="native")
        process_of(daemon, 1).kill()
    for one in (*long_ones, score):
        result = one.wait(30)
        assert isinstance(result, m.Generated | m.Scored), result
        if isinstance(result, m.Generated):
            assert (result.engine, result.finish_reason) == ("onnx", "length")
    process_of(daemon, 0).kill()
    wait_for(lambda: sum(w.engine == "onnx" and w.state == "ready" for w in health(client)) == 2)


@posix
def test_without_another_replica_nothing_is_begun_elsewhere(client: Client, daemon: FakeDaemon) -> None:
    client.load("demo", engine="onnx")
    with held(*daemon.workers()):
        one = ask(client, long(1, stream=False))
        wait_for(lambda: client.stats().open_requests == 2)
        client.load("demo", engine="native")
        process_of(daemon, 0).kill()
    assert isinstance(one.wait(30), WorkerDied)


def test_a_replica_that_is_full_is_passed_over(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path, SLOW, "--max-open-per-worker", "3") as daemon, Client(daemon.endpoint) as client:
        client.load("demo", replicas=2)
        with held(*daemon.workers()):
            asked = [ask(client, long(1, 100)) for _ in range(7)]
            wait_for(lambda: any(one.done.is_set() for one in asked))
        ends = Counter(type(one.wait(30)) for one in asked)
        assert ends == {m.Generated: 6, Busy: 1}


@posix
def test_a_load_of_which_one_fails_leaves_none(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path, Behaviour(load_s=2)) as daemon, Client(daemon.endpoint) as client:
        load = ask(client, m.Load(model="demo", replicas=3))
        wait_for(lambda: len(daemon.workers()) == 3)
        process_of(daemon, 1).kill()
        assert isinstance(load.wait(30), LoadFailed)
        wait_for(lambda: not daemon.workers())
    with (
        FakeDaemon(tmp_path / "2", Behaviour(load_s=1), "--preload", "demo:2") as daemon,
        Client(daemon.endpoint) as client,
    ):
        wait_for(lambda: len(daemon.workers()) == 2)
        process_of(daemon, 1).kill()
        wait_for(lambda: ready(client) == [0, 1])


def test_what_one_client_cancels_another_keeps(tmp_path: Path) -> None:
    with (
        FakeDaemon(tmp_path, Behaviour(load_s=1)) as daemon,
        Client(daemon.endpoint) as client,
        Client(daemon.endpoint) as other,
    ):
        two = ask(client, m.Load(model="demo", replicas=2))
        wait_for(lambda: len(daemon.workers()) == 2)
        three = ask(other, m.Load(model="demo", replicas=3))
        wait_for(lambda: len(daemon.workers()) == 3)
        other.connection.submit(m.Cancel(target=three.id), lambda _: None, 5)
        assert isinstance(three.wait(30), Cancelled)
        loaded = two.wait(30)
        assert isinstance(loaded, m.Loaded) and loaded.replicas == 2
        process_of(daemon, 1).kill()
        wait_for(lambda: ready(client) != [0, 1])
        wait_for(lambda: ready(client) == [0, 1])
        three = ask(other, m.Load(model="demo", replicas=3))
        wait_for(lambda: len(daemon.workers()) == 3)
        assert client.load("demo").replicas == 2, "a load that asks for no number changes none"
        other.connection.submit(m.Cancel(target=three.id), lambda _: None, 5)
        assert isinstance(three.wait(30), Cancelled)
        wait_for(lambda: len(daemon.workers()) == 2)


@posix
def test_a_model_that_serves_is_loaded_whatever_there_is_room_for(tmp_path: Path) -> None:
    with (
        FakeDaemon(tmp_path, Behaviour(), "--rows", "1", "--max-memory", "0.3") as daemon,
        Client(daemon.endpoint) as client,
    ):
        client.load("demo", replicas=2)
        process_of(daemon, 1).kill()
        wait_for(lambda: ready(client) == [0])
        with suppress(NoMemory):
            client.load("demo", engine="onnx")
        loaded = client.load("demo", engine="native")
        assert loaded.already and loaded.replicas == 1


def test_replicas_have_the_same_rows(tmp_path: Path, cache: Path) -> None:
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--max-memory", "0.5", "--threads", "1")
    try:
        with Client(daemon.endpoint) as client:
            rows = client.load("demo", precision="fp32", replicas=2).rows
            assert rows < 16, "two of sixteen do not fit"
            for i in range(4):
                client.generate(f"text {i}", strategy="beam", num_beams=rows, max_new_tokens=3)
    finally:
        daemon.kill()
