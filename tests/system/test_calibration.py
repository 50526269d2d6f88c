"""A model's int4 is calibrated: by a request, by the server's command, in the terminal."""

from __future__ import annotations

import queue
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from protocol import Client, messages as m
from protocol.connection import Event
from protocol.errors import BadRequest, Busy, Cancelled, NoMemory, NotLoaded
from scripts.daemon import Daemon
from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.catalogue.records import Records
from server.convert.cache import DRAFT
from tests.conftest import wait_for
from tests.server.test_fidelity import FIDELITY, VERSE

TEXT = VERSE * 20


def test_what_is_calibrated_is_used_by_the_loads_that_follow(tmp_path: Path) -> None:
    """Its time is told before, and what was measured of the plain grid is forgotten."""
    models = tmp_path / "models"
    shutil.copytree(DEMO_FOLDER, models / "verse")
    daemon = Daemon(tmp_path)
    try:
        with Client(daemon.endpoint) as client:

            def verse() -> m.ModelInfo:
                return next(model for model in client.models() if model.name == "verse")

            def calibrated() -> bool:
                return client.generate("x", model="verse", max_new_tokens=1).calibrated

            assert 1 <= verse().calibrate_s < 60 and client.hello().engines[0].calibrates == ["int4"]
            assert not client.load("verse", engine="native", precision="int4").calibrated and not calibrated()
            assert not client.measure("verse", engine="native", precision="int4", text=VERSE).fidelity.calibrated
            assert any(p.fidelity for p in verse().precisions)
            steps: list[m.Progress] = []
            made = client.calibrate("verse", text=TEXT, on_progress=steps.append)
            assert (made.model, made.engine, made.precision) == ("verse", "native", "int4")
            assert len(made.digest) == 64 and 4_000_000 < made.disk_bytes < 6_000_000
            assert [step.done for step in steps if step.stage == "calibrate"][-1] == 7, "layers and the head"
            assert not any(p.fidelity for p in verse().precisions)
            assert not calibrated(), "it stays as it was loaded"
            client.unload("verse")
            assert client.load("verse", engine="native", precision="int4").calibrated and calibrated()
            assert client.ping().workers[0].calibrated
            assert client.measure("verse", engine="native", precision="int4", text=VERSE).fidelity.calibrated
            again = client.calibrate("verse", text=TEXT)
            assert again.digest == made.digest
    finally:
        daemon.kill()


def test_one_at_a_time_which_can_be_cancelled(own_daemon: Daemon) -> None:
    with Client(own_daemon.endpoint) as client:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request = m.Calibrate(model="demo", text=TEXT, stream=True)
        number = client.connection.submit(request, events.put, 60)
        wait_for(lambda: len(own_daemon.workers()) == 1)
        with pytest.raises(Busy, match=r"^the calibration of demo/native/int4 is under way; try again"):
            client.measure("demo", text=VERSE)
        client.connection.cancel(number)
        last: object = m.Progress(id=None, stage="", done=0, total=0, unit="")
        while isinstance(last, m.Progress):
            last = events.get(timeout=60)
        assert isinstance(last, Cancelled) and "the calibrate was cancelled" in str(last)
        wait_for(lambda: not own_daemon.workers())


def test_what_cannot_be_calibrated(client: Client, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(BadRequest, match=r"must have at least 1,024 tokens, got \d+"):
        client.calibrate("demo", text=VERSE)
    with pytest.raises(NotLoaded, match="gpt2-xl is not on this server's disk; load it first"):
        client.calibrate("gpt2-xl")
    daemon = Daemon(tmp_path, "--cache-dir", str(cache), "--max-memory", "0.2")
    try:
        with (
            Client(daemon.endpoint) as other,
            pytest.raises(NoMemory, match="calibrating demo/native/int4 needs about"),
        ):
            other.calibrate("demo")
    finally:
        daemon.kill()


def test_the_embedded_model_is_calibrated_in_memory_that_is_reserved(tmp_path: Path) -> None:
    """It is when it is first built, and takes more then than an int4 with one row."""
    daemon = Daemon(tmp_path, "--max-memory", "0.2", "--rows", "1")
    try:
        with Client(daemon.endpoint) as client, pytest.raises(NoMemory, match=r"demo/native/int4 needs about 3\d\d MB"):
            client.load("demo", engine="native", precision="int4")
        wait_for(lambda: not daemon.workers())
    finally:
        daemon.kill()


def test_the_servers_command(tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def quantise(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "server", "quantise", *words, "--config", str(tmp_path / "gpt2d.toml")]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    (tmp_path / "gpt2d.toml").write_text(f"cache_dir = '{cache}'\n", encoding="utf-8")
    short, enough = tmp_path / "short", tmp_path / "enough"
    short.write_text(VERSE, encoding="utf-8")
    enough.write_text(TEXT, encoding="utf-8")
    refused = quantise("demo", "--calibrate", str(short))
    assert refused.returncode == 1 and "must have at least 1,024 tokens" in refused.stderr
    unknown = quantise("nobody")
    assert unknown.returncode == 1 and "nobody" in unknown.stderr and "Traceback" not in unknown.stderr
    records = Records(cache, DEMO_FOLDER, read_architecture(DEMO_FOLDER))
    records.add("native", "int4", "int8", FIDELITY)
    done = quantise("demo", "--calibrate", str(enough))
    assert done.returncode == 0, done.stderr
    assert "native/int4/int8" not in records.found(), "it was of what there was before"
    assert "demo: this takes about" in done.stdout and f"int4 is calibrated in {cache}" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_the_servers_command_tells_its_time_first_and_can_be_interrupted(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "gpt2d.toml").write_text(f"cache_dir = '{cache}'\n", encoding="utf-8")
    command = [sys.executable, "-m", "server", "quantise", "demo", "--config", str(tmp_path / "gpt2d.toml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        told = running.stdout.readline()
        running.send_signal(signal.SIGINT)
        rest, errors = running.communicate(timeout=60)
    assert "demo: this takes about" in told and not rest
    assert running.returncode == 130
    assert errors == "gpt2d-server quantise: interrupted; the model's int4 is what it was before\n"
    assert not [*cache.glob("*calibrated*"), *cache.glob(f"{DRAFT}*")], "half of one"
