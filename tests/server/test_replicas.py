"""Table of replicas: the memory that is reserved for them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import BadModel, LoadFailed, NoMemory
from protocol.keys import CurveKeys
from server.catalogue.architecture import PUBLISHED
from server.catalogue.catalogue import DEMO, DEMO_FOLDER, Catalogue
from server.config import Config
from server.gateway.replicas import Replica, Replicas, rows_share
from server.launch.local import LocalLauncher
from server.launch.spec import Spec


class Idle:
    """Process that does nothing."""

    def exit_code(self) -> int | None:
        return None

    def problem(self) -> None:
        return None

    def progress(self) -> None:
        return None

    def renew(self, routing_id: str) -> bool:
        return False

    def stop(self) -> None: ...

    def kill(self) -> None: ...


class Launcher:
    free = 400_000_000

    def start(self, spec: Spec, memory_bytes: int) -> Idle:
        self.spec = spec
        return Idle()

    def free_memory(self, untaken: int) -> int:
        return self.free - untaken

    def places(self) -> str:
        return ""

    def close(self) -> None: ...


@dataclass
class Started:
    replicas: Replicas
    replica: Replica
    launcher: Launcher


@pytest.fixture
def started(tmp_path: Path) -> Started:
    launcher = Launcher()
    replicas = Replicas(
        Config(models_dir=tmp_path, hub_cache=tmp_path), CurveKeys.new(), "tcp://127.0.0.1:1", launcher, launcher
    )
    replica = replicas.start(Catalogue(tmp_path, tmp_path).find(DEMO), "native", "int8")
    return Started(replicas, replica, launcher)


def test_a_folder_may_be_called_as_replicas_are_written(tmp_path: Path) -> None:
    shutil.copytree(DEMO_FOLDER, tmp_path / "poems:3")
    found = [Catalogue(tmp_path, tmp_path).parse(name) for name in ("poems:3", "poems:3/native:2", "demo:2")]
    assert [(model.name, replicas) for model, *_, replicas in found] == [("poems:3", 1), ("poems:3", 2), ("demo", 2)]


def test_where_files_are_too_few_the_load_says_what_to_do(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Idle:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), os.devnull)

    monkeypatch.setattr(started.launcher, "start", refuse)
    started.launcher.free = 1 << 40
    with pytest.raises(LoadFailed, match=r"be started: Too many open files; allow the server more of them"):
        started.replicas.start(Catalogue(tmp_path, tmp_path).find(DEMO), "native", "int4")


@pytest.mark.usefixtures("no_threads")
def test_where_no_thread_reads_what_a_worker_says_it_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def begin(*arguments: Any, **settings: Any) -> subprocess.Popen[bytes]:
        begun.append(popen(*arguments, **settings))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", begin)
    launcher = LocalLauncher()
    replicas = Replicas(Config(cache_dir=tmp_path), CurveKeys.new(), "tcp://127.0.0.1:1", launcher, launcher)
    with pytest.raises(LoadFailed, match=r"be started: can't start new thread$"):
        replicas.start(Catalogue(tmp_path, tmp_path).find(DEMO), "native", "int4")
    assert not replicas.all()
    with begun[0]:
        assert begun[0].wait(30)


def test_what_is_taken_already_is_not_asked_for_again(started: Started) -> None:
    replicas, replica = started.replicas, started.replica
    need = replica.reserved
    started.launcher.free = 10_000_000  # it has loaded: what it needs is gone from what is free
    replicas.resize(replica, need)
    replicas.resize(replica, need // 2)
    assert replica.reserved == need // 2


def test_growth_is_asked_for(started: Started) -> None:
    with pytest.raises(NoMemory):
        started.replicas.resize(started.replica, started.replica.reserved + 500_000_000)


def test_advice_names_what_fits(tmp_path: Path) -> None:
    """An export takes several times the weights: neither of the engine's precisions fits, the default engine's does."""
    launcher = Launcher()
    replicas = Replicas(
        Config(models_dir=tmp_path, hub_cache=tmp_path), CurveKeys.new(), "tcp://127.0.0.1:1", launcher, launcher
    )
    large = replace(Catalogue(tmp_path, tmp_path).find(DEMO), name="large", architecture=PUBLISHED["gpt2-large"])
    launcher.free = 10_000_000_000
    with pytest.raises(NoMemory, match=r"You could choose native/int8 \(\d+ MB\), or choose a smaller"):
        replicas.start(large, "optimum", "int8")
    launcher.free = 2_000_000_000
    with pytest.raises(NoMemory, match=r"You could choose int8 \(\d+ MB\) or int4 \(\d+ MB\), or choose a smaller"):
        replicas.start(large, "native", "fp32")
    launcher.free = 500_000_000
    with pytest.raises(NoMemory, match=r"free for it\. You could choose a smaller model"):
        replicas.start(large, "native", "int8")


def test_rows_follow_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 that fit into 640 MB as ever; more, up to 64, within an eighth of the machine's memory or of --max-memory."""
    gpt2, xl = PUBLISHED["gpt2"], PUBLISHED["gpt2-xl"]
    found = {}
    for gigabytes in (4, 8, 16, 24, 256):
        monkeypatch.setattr("server.gateway.replicas.machine_memory", lambda gigabytes=gigabytes: gigabytes << 30)
        share = rows_share(Config())
        found[gigabytes] = [
            gpt2.default_rows("native", "int8", share), gpt2.default_rows("native", "fp32", share),
            xl.default_rows("native", "int8", share), gpt2.default_rows("torch", "fp32", share),
        ]  # fmt: skip
    assert found == {
        4: [26, 8, 4, 1], 8: [53, 14, 6, 1], 16: [64, 28, 12, 1], 24: [64, 42, 19, 1], 256: [64, 64, 64, 1],
    }  # fmt: skip
    assert gpt2.default_rows("native", "int8", rows_share(Config(max_memory=10.0))) == 62
    assert gpt2.default_rows("native", "int8", rows_share(Config(max_memory=10.0)), "fp16") == 33
    assert gpt2.default_rows("native", "int8", rows_share(Config(cluster="auto"))) == 16


def test_a_cache_of_bytes_takes_half_the_memory() -> None:
    """Rows and prefixes of every published model, whose heads are all 64 wide: a scale for 64 bytes."""
    for arch in PUBLISHED.values():
        for precision in ("int8", "int4"):
            halves, of_bytes = ("native", precision, "fp16"), ("native", precision, "int8")
            assert (
                arch.row_bytes(*of_bytes) == arch.row_bytes("native", precision) == arch.row_bytes(*halves) * 68 // 128
            )
            assert arch.prefix_cache_bytes(*of_bytes) <= 0.55 * arch.prefix_cache_bytes(*halves)
    with pytest.raises(BadModel, match="native at fp32 has no KV cache of 'int8'; it can be: fp32"):
        PUBLISHED["gpt2"].row_bytes("native", "fp32", "int8")


def test_rows_that_do_not_fit_are_not_there() -> None:
    gpt2, plenty = PUBLISHED["gpt2"], 1 << 40
    rows = gpt2.fitting_rows("native", "int8", 1 << 30, plenty)
    assert 1 < rows < 64 and gpt2.memory_bytes("native", "int8", rows) <= 1 << 30
    assert gpt2.memory_bytes("native", "int8", rows + 1) > 1 << 30


def test_a_load_reserves_all_its_rows(started: Started, tmp_path: Path) -> None:
    replica, spec = started.replica, started.launcher.spec
    arch = Catalogue(tmp_path, tmp_path).find(DEMO).architecture
    assert arch and replica.rows and spec.share == rows_share(Config())
    assert replica.reserved == arch.loading_bytes("native", "int8", replica.rows)
    assert replica.rows == spec.rows == arch.fitting_rows("native", "int8", started.launcher.free, spec.share)


def test_rows_that_were_asked_for_are_what_is_there(tmp_path: Path) -> None:
    launcher = Launcher()
    config = Config(models_dir=tmp_path, hub_cache=tmp_path, rows=5)
    replicas = Replicas(config, CurveKeys.new(), "tcp://127.0.0.1:1", launcher, launcher)
    assert replicas.start(Catalogue(tmp_path, tmp_path).find(DEMO), "native", "int8").rows == 5
