"""The cache of built models: what it keeps, what it builds again, and who builds."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.catalogue.engines import BUILD_FORMAT, CALIBRATED
from server.convert import cache as cache_module
from server.convert.cache import BuildCache
from server.engines.load import load_engine
from tests.conftest import wait_for

WAIT_S = 30.0


class Small:
    """A graph of a thousand bytes."""

    def write(self, folder: Path) -> None:
        (folder / "model.onnx").write_bytes(bytes(1000))


def get(cache: BuildCache, name: str, built: list[str]) -> Path:
    def build(_: object) -> Any:
        built.append(name)
        return Small()

    return cache.get(name, build) / "model.onnx"


def test_the_graph_cache_keeps_within_its_bound(tmp_path: Path) -> None:
    cache, built = BuildCache(tmp_path, 2500), list[str]()
    for age, name in enumerate(("a", "b", "c")):
        os.utime(get(cache, name, built).parent, (age, age))
    assert sorted(p.name[0] for p in tmp_path.iterdir()) == ["b", "c"]
    built.clear()
    get(cache, "b", built)
    get(cache, "d", built)
    assert built == ["d"]
    assert sorted(p.name[0] for p in tmp_path.iterdir()) == ["b", "d"], "c was used least recently"


def test_what_takes_long_to_make_again_is_kept_longest(tmp_path: Path) -> None:
    cache, built = BuildCache(tmp_path, 2500), list[str]()
    for age, name in enumerate((f"a{CALIBRATED}", "b", "c")):
        os.utime(get(cache, name, built).parent, (age, age))
    assert sorted(p.name[0] for p in tmp_path.iterdir()) == ["a", "c"]


def test_a_damaged_graph_is_built_again(tmp_path: Path) -> None:
    cache, built = BuildCache(tmp_path, 1 << 20), list[str]()
    file = get(cache, "a", built)
    for damage in (lambda: file.write_bytes(b"x" * 1000), file.unlink, (file.parent / "SHA256SUMS").unlink):
        damage()
        assert get(cache, "a", built).read_bytes() == bytes(1000)
    assert built == ["a"] * 4
    assert len(list(tmp_path.iterdir())) == 1


def test_drafts_of_workers_that_were_killed_are_swept(tmp_path: Path) -> None:
    for name, age in ((".building-old", 7200), (".building-new", 0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    get(BuildCache(tmp_path, 1 << 20), "a", [])
    assert sorted(p.name[:9] for p in tmp_path.iterdir()) == [".building", f"a-v{BUILD_FORMAT}"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    cache = BuildCache(tmp_path / "file" / "cache", 1 << 20)  # no folder can be made there
    file = get(cache, "a", [])
    assert file.read_bytes() == bytes(1000)
    assert "cannot be used" in capsys.readouterr().err
    cache.opened(file.parent)
    assert not file.exists()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(_: object) -> Any:
        raise MemoryError

    with pytest.raises(MemoryError):
        BuildCache(tmp_path, 1 << 30).get("x", build)
    assert list(tmp_path.iterdir()) == []


class Together:
    """Workers that want the same thing, the first of which builds until it may go on."""

    def __init__(self, folder: Path) -> None:
        self.cache = BuildCache(folder, 1 << 20)
        self.builders: list[int] = []
        self.places: list[Path] = []
        self.seen: dict[int, list[tuple[int, int]]] = {}
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.two_wait = threading.Event()
        self.threads: list[threading.Thread] = []

    def start(self) -> None:
        thread = threading.Thread(target=self._get, args=(len(self.threads),))
        self.threads.append(thread)
        thread.start()

    def end(self) -> None:
        self.may_end.set()
        for thread in self.threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()

    def _get(self, number: int) -> None:
        def build(count: Any) -> Any:
            self.builders.append(number)
            count(3, 14)
            self.begun.set()
            assert self.may_end.wait(WAIT_S)
            return Small()

        def progress(done: int, total: int) -> None:
            self.seen.setdefault(number, []).append((done, total))
            if len(self.seen.keys() - {0}) == 2:
                self.two_wait.set()

        self.places.append(self.cache.get("a", build, progress))


def test_one_builds_and_the_others_wait_with_its_progress(tmp_path: Path) -> None:
    workers = Together(tmp_path)
    workers.start()
    assert workers.begun.wait(WAIT_S)
    for _ in range(2):
        workers.start()
    assert workers.two_wait.wait(WAIT_S)
    workers.end()
    assert workers.builders == [0] and len(set(workers.places)) == 1
    assert workers.seen[1][0] == workers.seen[2][0] == (3, 14)
    assert [p.name for p in tmp_path.iterdir()] == [f"a-v{BUILD_FORMAT}"], "nothing is left of the lock"


def test_where_there_are_no_locks_each_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    workers = Together(tmp_path)
    workers.start()
    workers.start()
    wait_for(lambda: len(workers.builders) == 2)  # what the first has built would be taken by the second
    workers.end()
    assert sorted(workers.builders) == [0, 1] and len(set(workers.places)) == 1


def test_a_builder_that_does_not_move_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "STUCK_S", 0.3)
    workers = Together(tmp_path)
    workers.start()
    assert workers.begun.wait(WAIT_S)
    built: list[str] = []
    place = get(workers.cache, "a", built)
    assert built == ["a"] and place.read_bytes() == bytes(1000)
    workers.end()


def test_a_killed_builder_leaves_nothing_locked(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from server.convert.cache import BuildCache
def build(count):
    print("builds", flush=True)
    input()
BuildCache(Path({str(tmp_path)!r}), 1 << 20).get("a", build)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as builder:
        assert builder.stdout and builder.stdout.readline() == "builds\n"
        builder.kill()
    built: list[str] = []
    get(BuildCache(tmp_path, 1 << 20), "a", built)
    assert built == ["a"] and [p.name for p in tmp_path.iterdir()] == [f"a-v{BUILD_FORMAT}"]


@pytest.mark.parametrize("command", [False, True], ids=["another load", "--clear-cache"])
def test_what_a_killed_builder_has_written_goes_at_once(tmp_path: Path, command: bool) -> None:
    """Each load of a large model that is cancelled leaves gigabytes else; one that still builds keeps its own."""
    code = f"""
from pathlib import Path
from server.convert.cache import BuildCache
class Large:
    def write(self, folder):
        (folder / "model.onnx").touch()
        print("writes", flush=True)
        input()
BuildCache(Path({str(tmp_path)!r}), 1 << 20).get("a", lambda _: Large())
"""

    def left() -> list[str]:
        if command:
            words = [sys.executable, "-m", "server", "--clear-cache", "--cache-dir", str(tmp_path)]
            subprocess.run(words, check=True, capture_output=True, timeout=WAIT_S)
        else:
            get(BuildCache(tmp_path, 1 << 20), "b", [])
        return [p.name for p in tmp_path.iterdir() if p.name.startswith(".building")]

    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as builder:
        assert builder.stdout and builder.stdout.readline() == "writes\n"
        assert len(left()) == 1
        builder.kill()
    assert left() == []


def test_replicas_on_a_cold_cache_build_once(tmp_path: Path) -> None:
    """Processes, as workers are; what each of them builds is a line of a file."""
    code = f"""
import sys
from pathlib import Path
from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.convert import native_layout
from server.engines.load import load_engine
write = native_layout.Layout.write
def counted(self, folder):
    with open({str(tmp_path / "builds")!r}, "a") as file:
        file.write("built\\n")
    write(self, folder)
native_layout.Layout.write = counted
stages = []
arch = read_architecture(DEMO_FOLDER)
print("ready", flush=True)
sys.stdin.readline()
cache = Path({str(tmp_path / "cache")!r})
load_engine(DEMO_FOLDER, arch, "native", "int8", 1, 1, cache, 1 << 30, lambda *s: stages.append(s[0]))
assert "build" in stages and "open" in stages
"""
    command = [sys.executable, "-c", code]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for worker in workers:
        assert worker.stdout and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    assert (tmp_path / "builds").read_text() == "built\n"


def test_what_was_built_in_an_older_format_is_built_again_and_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arch = read_architecture(DEMO_FOLDER)

    def stages() -> set[str]:
        found: list[str] = []
        made = load_engine(DEMO_FOLDER, arch, "native", "int8", 1, 1, tmp_path, 1 << 30, lambda *s: found.append(s[0]))
        made.engine.close()
        return set(found)

    assert "build" in stages() and not capfd.readouterr().err
    (built,) = tmp_path.glob("*-native-int8-v*")
    older = built.name.replace(f"-v{BUILD_FORMAT}", f"-v{BUILD_FORMAT - 1}")
    built.rename(built.with_name(older))
    found = stages()
    assert "build again" in found and "build" not in found
    assert "-native-int8 was built in an older format, and is built again\n" in capfd.readouterr().err
    assert not stages() & {"build", "build again"} and not capfd.readouterr().err
    built.rename(built.with_name(f"{older[:-1]}{BUILD_FORMAT + 1}"))
    assert "build" in stages(), "a newer one is another program's"


def test_what_another_built_is_opened_as_if_it_were_ones_own(tmp_path: Path) -> None:
    arch = read_architecture(DEMO_FOLDER)
    sizes = []
    for _ in range(2):
        made = load_engine(DEMO_FOLDER, arch, "native", "int8", 1, 1, tmp_path, 1 << 30, lambda *_: None)
        sizes.append(made.disk_bytes)
        made.engine.close()
    assert sizes[0] == sizes[1] > 5e6
