"""Cancelling, dying, vanishing, draining: each costs its own requests and nothing else."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpt2d_kernels
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from protocol import Client, messages as m
from protocol.connection import Event
from protocol.errors import (
    BadRequest,
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    Draining,
    Gpt2dError,
    LoadFailed,
    NoServer,
    NotLoaded,
    ServerStuck,
    TooLong,
    WorkerDied,
)
from scripts.daemon import Daemon
from scripts.reliability.daemon import POISON, Behaviour, FakeDaemon
from server.catalogue.architecture import PUBLISHED
from tests.conftest import answers, held, wait_for
from tests.server.test_weights import copy_demo

timed = pytest.mark.alone
"""What has ended is known within seconds, and what is to end still runs when a test looks."""
LONG: dict[str, Any] = {"max_new_tokens": 1000, "ignore_eos": True}
ENDLESS = LONG | {"n": 16}
"""Seconds of work on one row, a good second on sixteen: long enough to still run when a test looks."""
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Client]:
    """A client of a daemon with a fake engine, where each text of LONG takes 5 s, and so do sixteen."""
    with FakeDaemon(tmp_path, Behaviour(delay_ms=5)) as daemon, Client(daemon.endpoint) as client:
        client.load("demo")
        yield client


def idle(client: Client) -> bool:
    workers = client.ping().workers
    return all(w.running + w.waiting == 0 for w in workers)


@timed
def test_cancel_while_decoding(slow: Client) -> None:
    stream = slow.stream("x", **LONG)
    next(stream)
    began = time.monotonic()
    stream.cancel()
    text = "".join(p.text for p in stream)
    assert time.monotonic() - began < 0.5
    assert stream.result.finish_reason == "cancelled" and 0 < len(stream.result.ids) < 1000
    assert stream.result.text.endswith(text)


@timed
def test_cancel_while_waiting(one_row: Client) -> None:
    running = one_row.stream("x", **ENDLESS)
    next(running)
    waiting = one_row.stream("y", **LONG)
    wait_for(lambda: one_row.stats().open_requests == 3)  # it is on the server, and would be cancelled here before
    waiting.cancel()
    with pytest.raises(Cancelled, match="while it waited"):
        next(waiting)
    running.close()
    wait_for(lambda: one_row.stats().open_requests == 1)


@timed
def test_a_deadline_while_waiting(one_row: Client) -> None:
    running = one_row.stream("x", **ENDLESS)
    next(running)
    with pytest.raises(DeadlineExceeded, match="while it waited"):
        one_row.generate("y", timeout=0.5)
    running.close()


def test_cancelling_something_unknown_or_finished_changes_nothing(client: Client) -> None:
    done = client.stream("x", max_new_tokens=1)
    list(done)
    done.cancel()
    assert client.generate("x", max_new_tokens=2).finish_reason == "length"


@timed
def test_leaving_a_stream_ends_its_work(slow: Client) -> None:
    for _ in slow.stream("x", **ENDLESS):
        break
    wait_for(lambda: idle(slow) and slow.stats().open_requests == 1)
    assert slow.stats().workers[0].new_tokens < 8000, "of 16,000"


@timed
def test_a_vanished_peers_work_is_cancelled(slow: Client) -> None:
    """Streaming or not: the connection of a killed process breaks, and its requests end."""
    code = (
        "import sys; from protocol import Client; c = Client(sys.argv[1]); "
        "s = c.stream('x', max_new_tokens=1000, ignore_eos=True, n=16); "
        "next(s); print('started', flush=True); c.generate('y', max_new_tokens=1000, ignore_eos=True, n=16)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, slow.connection.endpoint], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline().strip() == b"started"
    wait_for(lambda: slow.stats().open_requests == 3)
    process.kill()
    process.wait()
    wait_for(lambda: slow.stats().open_requests == 1 and idle(slow), 2)
    assert slow.stats().workers[0].new_tokens < 24_000, "of 32,000"


@timed
@posix
def test_a_killed_worker_costs_its_own_requests(own_daemon: Daemon) -> None:
    with Client(own_daemon.endpoint) as client:
        client.load("demo", precision="int8")
        (int8,) = own_daemon.workers()
        client.load("demo", precision="fp32")
        other = client.stream("x", precision="fp32", **LONG)
        next(other)
        stream = client.stream("x", precision="int8", **ENDLESS)
        next(stream)
        int8.kill()
        killed = time.monotonic()
        with pytest.raises(WorkerDied, match="signal 9"):
            list(stream)
        assert time.monotonic() - killed < 1
        assert [w.precision for w in client.ping().workers] == ["fp32"]
        list(other)
        assert len(other.result.ids) == 1000
        with pytest.raises(NotLoaded):
            client.generate("x", precision="int8")
        assert not client.load("demo", precision="int8").already
        assert client.generate("x", precision="int8").ids


@timed
@posix
def test_a_worker_killed_while_it_loads(own_daemon: Daemon) -> None:
    with Client(own_daemon.endpoint) as client:

        def kill(_: m.Progress) -> None:
            for worker in own_daemon.workers():
                worker.kill()

        with pytest.raises(LoadFailed, match="signal 9"):
            client.load("demo", precision="fp32", on_progress=kill)
        assert client.ping().workers == []
        assert not client.load("demo").already


def test_a_load_reports_its_stages(own_daemon: Daemon) -> None:
    with Client(own_daemon.endpoint) as client:
        seen: list[m.Progress] = []
        loaded = client.load("demo", on_progress=seen.append)
        stages = list(dict.fromkeys(p.stage for p in seen))
        assert stages[0] == "start" and stages[-2:] == ["open", "warm up"]
        assert all(0 <= p.done <= p.total for p in seen)
        assert [p.seq for p in seen] == list(range(len(seen)))
        assert loaded.rss_bytes > 1e7 and loaded.load_ms > 0


def test_two_loads_of_one_model_share_a_worker(own_daemon: Daemon) -> None:
    results: list[m.Loaded] = []

    def load() -> None:
        with Client(own_daemon.endpoint) as client:
            results.append(client.load("demo"))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert len(own_daemon.workers()) == 1


@timed
def test_a_cancelled_load_ends_its_worker(own_daemon: Daemon) -> None:
    with Client(own_daemon.endpoint) as client:
        client.ping()
        events: list[Event] = []
        request_id = client.connection.submit(m.Load(model="demo", stream=True), events.append, 60)
        wait_for(lambda: bool(client.ping().workers))
        client.connection.cancel(request_id)
        wait_for(lambda: any(isinstance(e, Cancelled) for e in events))
        wait_for(lambda: not own_daemon.workers())
        assert client.ping().workers == []


def test_a_model_that_breaks_while_loading_says_why(own_daemon: Daemon) -> None:
    folder = copy_demo(own_daemon.folder / "models" / "broken")
    (folder / "model.safetensors").write_bytes(b"\x08" + bytes(100))
    with Client(own_daemon.endpoint) as client:
        with pytest.raises(Gpt2dError, match=r"broken/native/int8: .*model\.safetensors cannot be read"):
            client.load("broken")
        wait_for(lambda: client.ping().workers == [])


@timed
def test_unload_gives_the_memory_back(own_daemon: Daemon) -> None:
    with Client(own_daemon.endpoint) as client:
        client.load("demo")
        stream = client.stream("x", **ENDLESS)
        next(stream)
        assert client.unload("demo") == ["demo/native/int8"]
        assert own_daemon.workers() == []
        with pytest.raises(NotLoaded, match="unloaded"):
            list(stream)
        with pytest.raises(NotLoaded, match="nothing"):
            client.generate("x")


def test_a_second_precision_changes_nothing_for_those_who_name_none(own_daemon: Daemon) -> None:
    """The one loaded first is meant as long as it stays; then nothing is, as long as there are several."""
    with Client(own_daemon.endpoint) as client:

        def precision(**named: Any) -> str:
            return client.generate("x", max_new_tokens=1, **named).precision

        client.load("demo", precision="int8")
        client.load("demo", precision="fp32")
        client.load("demo", engine="onnx", precision="int4")  # which nobody calibrates
        assert (precision(), precision(model="demo"), precision(precision="fp32")) == ("int8", "int8", "fp32")
        client.unload("demo", precision="int8")
        client.load("demo", precision="int8")
        for named, words in ((dict[str, str](), "an unnamed model"), ({"model": "demo"}, "demo")):
            with pytest.raises(BadRequest, match=rf"^{words} could be any of demo/native/fp32, .*; name one by model"):
                precision(**named)
        assert precision(precision="int8") == "int8"


@timed
def test_those_who_name_no_model_wait_for_the_one_that_died(own_daemon: Daemon) -> None:
    """They are not moved to another while it is loaded again."""
    with Client(own_daemon.endpoint) as client:
        client.load("demo", precision="int8", replicas=1)
        (int8,) = own_daemon.workers()
        client.load("demo", precision="fp32")
        int8.kill()
        refusals: list[str] = []

        def back() -> bool:
            try:
                assert client.generate("x", max_new_tokens=1).precision == "int8"
            except (NotLoaded, WorkerDied) as e:
                refusals.append(str(e))
                return False
            return True

        wait_for(back)
        assert "an unnamed model means demo/native/int8 here, which is not ready" in refusals[-1]


def test_a_local_model_is_offered_at_once(own_daemon: Daemon) -> None:
    with Client(own_daemon.endpoint) as client:
        copy_demo(own_daemon.folder / "models" / "mine")
        assert [x.name for x in client.models()] == ["demo", *PUBLISHED, "mine"]
        client.load("mine")
        assert client.generate("x").model == "mine"


def test_a_head_that_is_used_though_the_configuration_says_otherwise_is_told(own_daemon: Daemon) -> None:
    folder = copy_demo(own_daemon.folder / "models" / "two")
    tensors = load_file(folder / "model.safetensors")
    other = tensors["wte.weight"][::-1].copy()
    save_file(tensors | {"lm_head.weight": other}, folder / "model.safetensors")
    with Client(own_daemon.endpoint) as client:
        (notice,) = client.load("two").notices
        assert "a head with other values: it is used" in notice
        assert client.load("two").notices == [notice] and not client.load("demo").notices


def test_a_model_with_a_small_context_and_no_end_of_text(own_daemon: Daemon) -> None:
    folder = copy_demo(own_daemon.folder / "models" / "small", n_positions=32, eos_token_id=None, bos_token_id=None)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"wpe.weight": tensors["wpe.weight"][:32].copy()}, folder / "model.safetensors")
    told = "its config.json names no eos_token_id: only max_new_tokens and stop strings end a text"
    with Client(own_daemon.endpoint) as client:
        assert told in client.load("small").notices
        assert next(told in model.notices for model in client.models() if model.name == "small")
        assert client.generate("Shall I", max_new_tokens=28, strategy="greedy").finish_reason == "length"
        with pytest.raises(BadRequest, match="the prompt is empty, and this model has neither a bos_token_id nor"):
            client.generate("")
        with pytest.raises(TooLong, match="max_new_tokens must be at most 31 with a context of 32 tokens, got 40"):
            client.generate("Shall I", max_new_tokens=40)
        text = "Shall I compare thee to a summer's day? " * 20
        scored = client.score(text)
        assert len(scored.ids) > 150 and all(p < 0 for p in scored.logprobs[1:] if p is not None)
        assert client.score(text, stride=32).perplexity > scored.perplexity


@timed
def test_a_killed_daemon_leaves_no_worker_and_its_clients_are_told(own_daemon: Daemon) -> None:
    with Client(own_daemon.endpoint) as client:
        client.load("demo")
        workers = own_daemon.workers()
        stream = client.stream("x", **ENDLESS)
        next(stream)
        own_daemon.kill()
        killed = time.monotonic()
        with pytest.raises(ConnectionLost):
            list(stream)
        assert time.monotonic() - killed < 5
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
        with pytest.raises(NoServer):
            client.ping()


@timed
@posix
def test_a_stopped_daemon_is_called_stuck(own_daemon: Daemon) -> None:
    with Client(own_daemon.endpoint) as client:
        client.load("demo")
        stream = client.stream("x", **ENDLESS)
        next(stream)
        own_daemon.process.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        with pytest.raises((ServerStuck, ConnectionLost)):
            list(stream)
        assert time.monotonic() - stopped < 6
        with pytest.raises(ServerStuck):
            client.ping(timeout=1)
        own_daemon.process.send_signal(signal.SIGCONT)
        wait_for(lambda: answers(client))


@timed
@posix
def test_a_stuck_worker_shows_in_ping(own_daemon: Daemon) -> None:
    with Client(own_daemon.endpoint) as client:
        client.load("demo")
        (worker,) = own_daemon.workers()
        worker.suspend()
        wait_for(lambda: client.ping().workers[0].moved_ms_ago > 1000)
        with pytest.raises(DeadlineExceeded):
            client.generate("x", timeout=0.5)
        worker.resume()
        wait_for(lambda: client.ping().workers[0].moved_ms_ago < 1000)
        assert client.generate("x").ids


@timed
@posix
@pytest.mark.parametrize("signals", [["SIGTERM", "SIGHUP"], ["SIGHUP", "SIGHUP"]])
def test_drain_lets_running_streams_finish(signals: list[str], tmp_path: Path, cache: Path) -> None:
    """With time enough to drain: sixteen rows take seconds, and more of them on a slow machine. A terminal that is
    closed sends its signal, and the shell in it another.
    """
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--drain-seconds", "30")
    with daemon, Client(daemon.endpoint) as client:
        client.load("demo")
        stream = client.stream("x", **ENDLESS)
        next(stream)
        with held(*daemon.workers()):
            for name in signals:
                daemon.process.send_signal(getattr(signal, name))
                wait_for(lambda: client.ping().draining)
            with pytest.raises(Draining):
                client.generate("y")
            with pytest.raises(Draining):
                client.load("demo", precision="fp32")
        list(stream)
        assert [len(stream.result.ids), *(len(o.ids) for o in stream.result.others)] == [1000] * 16
        assert daemon.process.wait(20) == 0


@posix
def test_under_nohup_a_closed_terminal_is_nothing(tmp_path: Path) -> None:
    was = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the daemon inherits
    try:
        daemon = Daemon(tmp_path)
    finally:
        signal.signal(signal.SIGHUP, was)
    with daemon, Client(daemon.endpoint) as client:
        daemon.process.send_signal(signal.SIGHUP)
        assert not client.ping().draining and daemon.process.poll() is None


@timed
@posix
def test_a_second_signal_stops_at_once(own_daemon: Daemon) -> None:
    with Client(own_daemon.endpoint) as client:
        client.load("demo")
        workers = own_daemon.workers()
        streams = [client.stream("x", **ENDLESS) for _ in range(4)]
        next(streams[0])
        own_daemon.process.terminate()
        wait_for(lambda: client.ping().draining)
        own_daemon.process.terminate()
        assert own_daemon.process.wait(5) == 0
        _, alive = psutil.wait_procs(workers, timeout=2)
        assert not alive
        with pytest.raises((Draining, ConnectionLost)):
            list(streams[-1])


@timed
@posix
def test_streams_that_outlast_the_drain_keep_their_text(tmp_path: Path, cache: Path) -> None:
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--drain-seconds", "0.2", "--preload", "demo")
    with Client(daemon.endpoint) as client:
        client.load("demo")
        streams = [client.stream("x", **ENDLESS) for _ in range(4)]
        next(streams[0])
        daemon.process.terminate()
        assert daemon.process.wait(10) == 0
        list(streams[0])
        assert streams[0].result.finish_reason == "cancelled" and streams[0].result.text
        assert "stopped" in daemon.logged()


@timed
def test_the_daemon_answers_within_half_a_second_of_its_start(tmp_path: Path) -> None:
    took = []
    for attempt in range(3):
        began = time.monotonic()
        daemon = Daemon(tmp_path / str(attempt))
        with Client(daemon.endpoint) as client:
            client.hello()
            took.append(time.monotonic() - began)
        daemon.kill()
    assert min(took) < 0.5


def test_without_the_kernels_the_other_engine_takes_their_place(tmp_path: Path, cache: Path) -> None:
    """As after an installation without a compiler: the package is there, and its library is not."""
    (tmp_path / "gpt2d_kernels").mkdir()
    (tmp_path / "gpt2d_kernels" / "__init__.py").write_bytes(Path(gpt2d_kernels.__file__).read_bytes())
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), PYTHONPATH=str(tmp_path))
    try:
        with Client(daemon.endpoint) as client:
            (notice,) = client.hello().notices
            said = re.fullmatch(
                "the slower engine onnx is the default: the native kernels were installed without a C[+][+] compiler; "
                "`(.* --build-kernels)` builds them",
                notice,
            )
            assert said and notice in daemon.logged()
            helped = subprocess.run([*shlex.split(said[1]), "--help"], capture_output=True, text=True, timeout=60)
            assert "--build-kernels" in helped.stdout, "the command is there, under that name"
            assert [engine.name for engine in client.hello().engines] == ["onnx", "torch", "optimum"]
            assert client.load("demo").engine == "onnx"
            assert client.generate("Shall I", max_new_tokens=3).ids
    finally:
        daemon.kill()


@timed
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_ready_worker_that_cannot_go_on_has_died(replicas: int, tmp_path: Path) -> None:
    """Its fault is outside what is guarded: a row cannot be moved. The model is kept, and loaded again."""
    behaviour = Behaviour(delay_ms=5, rows=2, fault="moves badly")
    greedy: dict[str, Any] = {"strategy": "greedy", "ignore_eos": True}
    with FakeDaemon(tmp_path, behaviour) as daemon, Client(daemon.endpoint) as client:
        client.load("demo", replicas=replicas)
        first = client.stream(prompt_ids=[5], max_new_tokens=200, **greedy)
        next(first)
        streams = [client.stream(prompt_ids=[POISON, i], max_new_tokens=400, **greedy) for i in range(4)]
        ended = []
        for stream in (first, *streams):
            try:
                list(stream)
            except Gpt2dError as e:
                ended.append(e)
        assert ended, daemon.logged()
        assert {type(e) for e in ended} == {WorkerDied}, ended

        def serves_again() -> bool:
            try:
                return len(client.generate(prompt_ids=[5], max_new_tokens=3, **greedy).ids) == 3
            except (NotLoaded, WorkerDied):
                return False

        wait_for(serves_again)
