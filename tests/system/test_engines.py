"""The engines and what each precision costs, by the socket."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from pathlib import Path

import pytest

from client.terminal import Choice, Terminal
from protocol import Client, messages as m
from protocol.connection import Event
from protocol.errors import (
    BadModel,
    BadRequest,
    Busy,
    Cancelled,
    DeadlineExceeded,
    Draining,
    LoadFailed,
    NoMemory,
    NotLoaded,
)
from protocol.keys import Address
from scripts.daemon import Daemon
from server.catalogue.engines import instruction_sets
from tests.conftest import COMPILER, COMPILES, wait_for
from tests.server.test_fidelity import VERSE


def test_each_engine_and_each_strategy_once() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.matrix", "--once"], capture_output=True, text=True, timeout=180
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and told["failed"] == [] and told["ran"] >= 10, done.stdout + done.stderr
    assert all(f"{engine}/" in done.stdout for engine in ("native", "onnx", "torch", "optimum"))


@pytest.mark.skipif(not COMPILES, reason=COMPILER)
def test_the_engines_write_the_same(own_daemon: Daemon) -> None:
    """At full precision, compiled too; the second text goes over what the first left behind."""
    engines = ("native", "onnx", "torch", "optimum")
    with Client(own_daemon.endpoint) as client:
        stages: dict[str, set[str]] = {engine: set() for engine in engines}
        for engine in engines:

            def note(progress: m.Progress, seen: set[str] = stages[engine]) -> None:
                seen.add(progress.stage)

            loaded = client.load("demo", engine=engine, precision="fp32", compile=engine == "torch", on_progress=note)
            assert loaded.quantised_share == 0 and loaded.disk_bytes > 10_000_000
        assert [engine for engine in engines if "compile" in stages[engine]] == ["torch"]
        for prompt in ("When in the chronicle of wasted time", "Shall I"):
            texts = [
                client.generate(prompt, engine=engine, strategy="greedy", max_new_tokens=24).text for engine in engines
            ]
            assert len(set(texts)) == 1
        assert client.load("demo", engine="torch", precision="fp32", compile=True).already
        assert client.load("demo", engine="torch", precision="fp32").already
        for engine, precision in (("torch", "int8"), ("native", "fp32")):
            with pytest.raises(BadModel, match="what can: torch at fp32 and bf16"):
                client.load("demo", engine=engine, precision=precision, compile=True)


def test_an_instruction_set_is_told_wherever_it_computes(
    tmp_path: Path, cache: Path, shared_daemon: Daemon, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that makes native slow makes onnx the default, with a notice; what native writes stays the same."""
    with Client(shared_daemon.endpoint) as client:
        expected = client.generate("Shall I", engine="native", precision="int8", seed=5, max_new_tokens=9)
        best = client.hello().instruction_set
        assert best == expected.instruction_set == instruction_sets()[0]
    with (
        Daemon(tmp_path, "--cache-dir", str(cache), "--instruction-set", "plain") as daemon,
        Client(daemon.endpoint) as client,
        Terminal(Address(daemon.endpoint)) as terminal,
    ):
        terminal.start(client.hello(), Choice("demo", "native", "int8"), [], hint=False)
        told = capfd.readouterr().err
        assert "threads, plain, KV cache int8" in told, told
        assert "onnx is the default engine: native is made to do without the instructions" in told
        assert client.hello().engines[0].name == "onnx" and client.hello().instruction_set == "plain"
        assert [(w.engine, w.instruction_set) for w in client.ping().workers] == [("native", "plain")]
        assert client.load("demo", engine="native").instruction_set == "plain"
        found = client.generate("Shall I", engine="native", seed=5, max_new_tokens=9)
        assert (found.instruction_set, found.ids) == ("plain", expected.ids)
        assert client.load("demo").engine == "onnx" and not client.generate("x", engine="onnx").instruction_set
    with pytest.raises(RuntimeError, match="the instruction set is mmx, and here there are"):
        Daemon(tmp_path, "--instruction-set", "mmx")


def test_a_load_chooses_what_its_cache_is_made_of(own_daemon: Daemon) -> None:
    with Client(own_daemon.endpoint) as client:
        halves = client.load("demo", engine="native", precision="int8", cache="fp16")
        assert halves.cache == client.load("demo", engine="native", precision="int8").cache == "fp16"
        assert client.generate("Shall I", engine="native", precision="int8", max_new_tokens=2).cache == "fp16"
        assert [w.cache for w in client.ping().workers if w.precision == "int8" and w.engine == "native"] == ["fp16"]
        (demo,) = [model for model in client.models() if model.name == "demo"]
        (way,) = [p for p in demo.precisions if (p.engine, p.precision) == ("native", "int8")]
        assert list(way.caches) == ["int8", "fp16"] and way.memory_bytes == way.caches["int8"] < way.caches["fp16"]


def test_a_precision_is_measured_and_shown_from_then_on(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "--cache-dir", str(tmp_path / "cache"))
    try:
        with Client(daemon.endpoint) as client:
            steps: list[m.Progress] = []
            told = client.measure("demo", engine="native", precision="int8", text=VERSE * 3, on_progress=steps.append)
            assert (told.model, told.engine, told.precision) == ("demo", "native", "int8")
            fidelity = told.fidelity
            assert (
                fidelity.quantised_share == 1
                and 6_000_000 < fidelity.disk_bytes < 8_000_000 < 30_000_000 < fidelity.memory_bytes
            )
            assert (
                0.8 < fidelity.top1_agreement < 1 and 0 < fidelity.kl_mean < fidelity.kl_p99 < 1 and fidelity.tok_s > 10
            )
            assert abs(fidelity.perplexity_change_pct) < 5 and not fidelity.calibrated
            assert {"build", "compare"} <= {step.stage for step in steps} and steps[-1].done == steps[-1].total
            (demo,) = [model for model in client.models() if model.name == "demo"]
            assert {(p.engine, p.precision): p.fidelity for p in demo.precisions if p.fidelity} == {
                ("native", "int8"): fidelity
            }
            assert not any(p.loaded for p in demo.precisions) and client.ping().workers == [] and daemon.workers() == []
    finally:
        daemon.kill()


def test_int8_costs_the_demo_less_than_half_a_percent(shared_daemon: Daemon) -> None:
    """On the works held out from its training, which come with it."""
    with Client(shared_daemon.endpoint) as client:
        fidelity = client.measure("demo", engine="native", precision="int8").fidelity
        assert fidelity.tokens == 4096 and abs(fidelity.perplexity_change_pct) < 0.5 and 50 < fidelity.perplexity < 90


def test_one_measurement_at_a_time_which_can_be_cancelled(own_daemon: Daemon) -> None:
    with Client(own_daemon.endpoint) as client, Client(own_daemon.endpoint) as other:
        request_id, events = submit(client)
        wait_for(lambda: len(own_daemon.workers()) == 1)
        with pytest.raises(Busy, match="the fidelity of demo/torch/fp32 is being measured"):
            other.measure("demo", text=VERSE)
        with pytest.raises(NotLoaded):  # it serves nobody
            other.generate("x", model="demo")
        client.connection.cancel(request_id)
        last = last_of(events)
        assert isinstance(last, Cancelled) and "the measure was cancelled" in str(last)
        wait_for(lambda: not own_daemon.workers())


def submit(client: Client) -> tuple[int, queue.SimpleQueue[Event]]:
    """Begin a measurement that lasts for a while; return when its process has told how far it is."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    request = m.Measure(model="demo", engine="torch", precision="fp32", text=VERSE * 20, stream=True)
    number = client.connection.submit(request, events.put, 60)
    assert isinstance(events.get(timeout=60), m.Progress)
    return number, events


def last_of(events: queue.SimpleQueue[Event]) -> Event:
    """Return what ends a request."""
    while isinstance(event := events.get(timeout=60), m.Progress):
        continue
    return event


def test_a_measurement_that_ends_early(own_daemon: Daemon) -> None:
    """Its process dies, its client vanishes, its time runs out: each ends it, and another can begin."""
    with Client(own_daemon.endpoint) as client:
        _, events = submit(client)
        own_daemon.workers()[0].kill()
        last = last_of(events)
        assert isinstance(last, LoadFailed) and "died while it measured the fidelity of demo/torch/fp32" in str(last)
        wait_for(lambda: not own_daemon.workers())
        with Client(own_daemon.endpoint) as vanishing:
            submit(vanishing)
        wait_for(lambda: not own_daemon.workers())
        with pytest.raises(DeadlineExceeded):
            client.measure("demo", engine="torch", precision="fp32", text=VERSE * 20, timeout=0.5)
        wait_for(lambda: not own_daemon.workers())
        _, events = submit(client)
        client.load("demo")
        assert client.unload("demo") == ["demo/native/int8"] and len(own_daemon.workers()) == 1
        own_daemon.process.terminate()
        assert isinstance(last_of(events), Draining)
        own_daemon.process.wait(30)


def test_without_a_network_or_a_place_to_keep_it(tmp_path: Path) -> None:
    """The text comes with the demo, so no index of packages is asked. Without a cache it works, and nothing is kept."""
    (tmp_path / "cache").write_text("no folder")
    daemon = Daemon(
        tmp_path, "--cache-dir", str(tmp_path / "cache"), PIP_INDEX_URL="http://127.0.0.1:1", PIP_CONFIG_FILE=os.devnull
    )
    try:
        with Client(daemon.endpoint) as client:
            fidelity = client.measure("demo").fidelity
            assert fidelity.held_out and fidelity.tokens == 4096
            assert not client.measure("demo", text=VERSE).fidelity.held_out
            assert not any(p.fidelity for model in client.models() for p in model.precisions)
    finally:
        daemon.kill()


def test_what_cannot_be_measured(client: Client) -> None:
    with pytest.raises(BadRequest, match="must have at least 64 tokens, got 1"):
        client.measure("demo", text="O")
    with pytest.raises(NotLoaded, match="gpt2-xl is not on this server's disk; load it first"):
        client.measure("gpt2-xl")
    with pytest.raises(BadModel, match="has no precision 'int3'"):
        client.measure("demo", precision="int3")


def test_a_measurement_needs_room_for_two(tmp_path: Path, cache: Path) -> None:
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--max-memory", "0.2")
    try:
        with Client(daemon.endpoint) as client:
            with pytest.raises(NoMemory, match="measuring demo/native/int8 needs about"):
                client.measure("demo", text=VERSE)
    finally:
        daemon.kill()
