"""Memory, queues, deaf clients, preloads and caches: every limit is kept and said."""

from __future__ import annotations

import queue
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
import zmq

from protocol import Client, messages as m
from protocol.errors import (
    BadRequest,
    Busy,
    NoMemory,
)
from scripts.daemon import Daemon
from server.catalogue.architecture import PUBLISHED, read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.engines.load import load_engine
from tests.conftest import wait_for
from tests.server.test_weights import copy_demo

LONG: dict[str, Any] = {"max_new_tokens": 1000, "ignore_eos": True}
ENDLESS = LONG | {"n": 16}
"""Seconds of work on one row, a good second on sixteen: long enough to still run when a test looks."""
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


def test_a_load_that_does_not_fit_is_refused_with_both_figures(tmp_path: Path, cache: Path) -> None:
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--max-memory", "0.25")
    with Client(daemon.endpoint) as client:
        client.load("demo", precision="int8")
        with pytest.raises(
            NoMemory,
            match=r"demo/native/fp32 needs about \d+ MB; \d+ MB are free for it. You could unload demo/native/int8",
        ):
            client.load("demo", precision="fp32")
        assert len(daemon.workers()) == 1
        client.unload("demo")
        assert client.load("demo", precision="fp32").rows < 16, "fewer rows where they do not all fit"
    daemon.kill()


def test_a_full_worker_needs_what_was_said(tmp_path: Path, cache: Path) -> None:
    """Estimated within 15 %, with every row and the prefix cache in use: sixteen rows of almost a context."""
    prompt = random.Random(1).choices(range(1, 4096), k=1000)
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--rows", "16")
    with Client(daemon.endpoint) as client:
        for precision in ("int8", "int4", "fp32"):
            client.load("demo", precision=precision)
            expected = next(p.memory_bytes for p in client.models()[0].precisions if p.precision == precision)
            client.generate(prompt_ids=prompt, n=16, max_new_tokens=24, ignore_eos=True)
            (worker,) = daemon.workers()
            assert worker.memory_info().rss == pytest.approx(expected, rel=0.15)
            client.unload("demo")
    daemon.kill()


def test_alternatives_of_many_texts_are_not_kept(own_daemon: Daemon) -> None:
    """A request tells 50,000 of each of its texts, and needs no more memory than for one."""
    passages = [m.Passage(ids=random.Random(n).choices(range(1, 4096), k=2500)) for n in range(6)]
    with Client(own_daemon.endpoint) as client:
        client.load("demo")
        (worker,) = own_daemon.workers()
        resident: list[int] = []
        for texts in (passages[:1], passages):
            events: queue.SimpleQueue[m.AnyReply | Exception] = queue.SimpleQueue()
            client.connection.submit(m.Score(texts=texts, top=20), events.put, 60)
            for _ in texts:
                text = events.get(timeout=60)
                assert isinstance(text, m.ScoredText) and len(text.top) == 2500
            assert isinstance(events.get(timeout=60), m.Scored)
            resident.append(worker.memory_info().rss)
    assert resident[1] < resident[0] + (16 << 20)


def test_unloading_gives_the_memory_back(own_daemon: Daemon) -> None:
    """The daemon and all its processes take as much as before, within 5 %."""

    def resident() -> int:
        daemon = psutil.Process(own_daemon.process.pid)
        return sum(p.memory_info().rss for p in (daemon, *daemon.children(recursive=True)))

    with Client(own_daemon.endpoint) as client:
        client.load("demo")
        client.unload("demo")
        before = resident()
        for _ in range(3):
            client.load("demo")
            client.generate("x", max_new_tokens=100)
            assert resident() > 2 * before
            client.unload("demo")
        assert resident() < before * 1.05


def test_an_idle_model_is_unloaded_when_asked_for(tmp_path: Path, cache: Path) -> None:
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--keep-alive", "2", "--preload", "demo")
    with Client(daemon.endpoint) as client:
        client.load("demo")
        list(client.stream("x", **LONG))
        assert client.ping().workers, "it was in use"
        wait_for(lambda: not client.ping().workers)
        assert "was not used for 2 s" in daemon.logged()
    daemon.kill()


def test_clearing_the_cache_deletes_built_models_only(tmp_path: Path) -> None:
    load_engine(
        DEMO_FOLDER, read_architecture(DEMO_FOLDER), "native", "int8", 1, 1, tmp_path, 1 << 30, lambda *_: None
    ).engine.close()
    (tmp_path / "precious-v2").mkdir()
    (tmp_path / "a.fidelity").touch()
    assert len(list(tmp_path.iterdir())) == 4
    command = [sys.executable, "-m", "server", "--clear-cache", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert "1 built models deleted" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["precious-v2"]


def test_a_client_that_does_not_read_is_given_up_and_harms_nobody(
    own_daemon: Daemon, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    """Its replies wait within a bound; beyond it nothing more is answered on that connection."""
    deaf = context.socket(zmq.DEALER)
    deaf.linger, deaf.rcvhwm = 0, 1
    deaf.connect(own_daemon.endpoint)
    with Client(own_daemon.endpoint) as client:
        before = client.stats().rss_bytes
        for i in range(20_000):
            deaf.send(msgpack.packb({"v": 1, "id": i, "type": "hello"}))
        wait_for(lambda: client.stats().peers == 1, 20)
        assert client.stats().rss_bytes - before < 32 << 20
        assert client.load("demo") and client.generate("x").ids
    deaf.close()


def test_a_full_worker_has_a_share_for_whoever_comes(one_row: Client) -> None:
    """Two have filled it: a third gets as many places as if all had the same, and then Busy."""
    with Client(one_row.connection.endpoint) as second, Client(one_row.connection.endpoint) as third:
        streams = [client.stream("x", **ENDLESS) for client in (one_row, second) for _ in range(64)]
        wait_for(lambda: third.stats().open_requests == 129)
        own = [third.stream("x", **ENDLESS, wait=False) for _ in range(128 // 3)]
        wait_for(lambda: third.stats().open_requests == 129 + 128 // 3)
        with pytest.raises(Busy, match="128 requests"):
            third.generate("x", wait=False)
        for stream in [*streams, *own]:
            stream.close()
        wait_for(lambda: third.stats().open_requests == 1)


def test_the_same_preload_twice_is_one(tmp_path: Path, cache: Path) -> None:
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--preload", "demo", "demo/native/int8", "demo//int8")
    with Client(daemon.endpoint) as client:
        client.load("demo")
        assert len(daemon.workers()) == 1
        assert client.generate("x").ids
    daemon.kill()


def test_a_preload_that_fails_says_why(tmp_path: Path) -> None:
    folder = copy_demo(tmp_path / "models" / "broken")
    (folder / "tokenizer.json").write_text("{}")
    daemon = Daemon(tmp_path, "--preload", "broken")
    wait_for(lambda: "the tokenizer cannot be read" in daemon.logged())
    with Client(daemon.endpoint) as client:
        assert [x.name for x in client.models()] == ["demo", *PUBLISHED, "broken"]
    assert daemon.stop() == 0


def test_prompts_are_logged_when_asked_for(tmp_path: Path, cache: Path) -> None:
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--preload", "demo", "--log-prompts")
    with Client(daemon.endpoint) as client:
        client.load("demo")
        client.generate("xyzzy plugh", max_new_tokens=1)
    wait_for(lambda: "xyzzy plugh" in daemon.logged())
    daemon.kill()


def test_the_limit_of_descriptors_is_raised(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        daemon = Daemon(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)[0] == min(hard, 65_536)
    daemon.kill()


def test_large_requests_that_are_sent_at_once_are_no_message_without_an_end(own_daemon: Daemon) -> None:
    """Sixteen megabytes at once, of whole messages: none is lost, and the connection stays."""
    with Client(own_daemon.endpoint) as client:
        client.load("demo")
        answers: queue.SimpleQueue[object] = queue.SimpleQueue()
        for _ in range(60):
            client.connection.submit(m.Tokenize(text="Shall I compare thee " * 10_000), answers.put, 60)
        told = [answers.get(timeout=60) for _ in range(60)]
        assert {type(answer).__name__ for answer in told} == {"Tokenized"}
        with pytest.raises(BadRequest, match=r"must have at most 65536 tokens, got \d+; send it in parts"):
            client.tokenize("Shall I compare thee " * 12_000)
        assert client.generate("Shall I", max_new_tokens=3).ids
    assert "it sent much without finishing" not in own_daemon.logged()
