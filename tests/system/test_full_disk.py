"""A full disk: what matters appears whole or not at all, nothing is left behind, and the error names the place."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import LoadFailed
from protocol.keys import CurveKeys, read_secret, write_secret
from scripts.investigation import harness
from server import keygen
from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.convert import native_layout, onnx_graph
from server.engines.load import Made, load_engine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full, and a limit to the size of files")

BUILT = {"onnx": onnx_graph.MODEL_FILE, "native": native_layout.FILE}
"""The file that each engine writes last."""
WRITERS = """
import sys
from pathlib import Path
from client import servers
from client.window import disk
from protocol.keys import Address, CurveKeys, write_public, write_secret
from server.catalogue import notes

folder = Path(sys.argv[1])
keys = CurveKeys.new()
for write in (
    lambda: write_secret(folder / "laptop.key", keys),
    lambda: write_public(folder / "laptop.pub", keys.public, "admin"),
    lambda: servers.keep(Address("tcp://host:5757", keys.public, keys)),
    lambda: disk.write(folder / "page.txt", b"new"),
    lambda: notes.replace(folder / "model.note", b"new"),
):
    try:
        write()
        print("written")
    except OSError as e:
        print("refused")
"""


def run_full(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where files can be made, but nothing can be written into them."""
    command = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", sys.executable, *words]
    env = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")} | {"HOME": str(home)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_what_was_there_stays_and_nothing_is_left_behind(tmp_path: Path) -> None:
    for name in ("page.txt", "model.note"):
        (tmp_path / name).write_text("old")
    done = run_full("-c", WRITERS, str(tmp_path), home=tmp_path / "home")
    assert done.stdout.split() == ["refused"] * 5, done.stderr
    assert contents(tmp_path) == {"page.txt": "old", "model.note": "old"}


def test_no_empty_key_is_left_that_is_then_no_key(tmp_path: Path) -> None:
    make = ("-m", "server.keygen", "--keys", str(tmp_path / "keys"), "client", "laptop", "--endpoint", "tcp://h:1")
    done = run_full(*make, home=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("gpt2d-keygen: ") and str(tmp_path / "keys" / "server.key") in done.stderr
    assert contents(tmp_path) == {}
    done = subprocess.run([sys.executable, *make], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("tcp://h:1#"), done.stderr


def test_a_key_that_cannot_be_written_is_named_by_its_own_name(tmp_path: Path) -> None:
    """Not by that of its draft."""
    (tmp_path / "keys").symlink_to("/proc/self")
    with pytest.raises(OSError, match=r"/keys/server\.key'$"):
        write_secret(tmp_path / "keys" / "server.key", CurveKeys.new())


def test_two_commands_that_make_the_servers_key_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = CurveKeys.new()

    def second(file: Path, keys: CurveKeys) -> None:
        write_secret(file, other)
        write_secret(file, keys)

    monkeypatch.setattr(keygen, "write_secret", second)
    assert keygen.server_keys(tmp_path) == other == read_secret(tmp_path / "server.key")
    assert [p.name for p in tmp_path.iterdir()] == ["server.key"]


def test_a_key_is_not_replaced_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no links on this disk")

    monkeypatch.setattr(os, "link", refuse)
    first = CurveKeys.new()
    write_secret(tmp_path / "key", first)
    with pytest.raises(FileExistsError):
        write_secret(tmp_path / "key", CurveKeys.new())
    assert read_secret(tmp_path / "key") == first
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def fill(monkeypatch: pytest.MonkeyPatch, file: str, is_full: Callable[[str], bool]) -> None:
    """In new folders that are on a full disk, nothing can be written to the file."""
    make = tempfile.mkdtemp

    def mkdtemp(prefix: str = "", dir: Path | None = None) -> str:  # noqa: A002 - its name in tempfile
        folder = make(prefix=prefix, dir=dir)
        if is_full(prefix):
            Path(folder, file).symlink_to("/dev/full")
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)


def load(engine: str, cache: Path) -> Made:
    arch = read_architecture(DEMO_FOLDER)
    return load_engine(DEMO_FOLDER, arch, engine, "int8", 1, 1, cache, 1 << 30, lambda *_: None)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("engine", BUILT)
def test_a_model_is_built_elsewhere_where_the_cache_is_full(
    engine: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first attempt wrote is not in the second."""
    fill(monkeypatch, BUILT[engine], lambda prefix: prefix.startswith(".building"))
    made = load(engine, tmp_path / "cache")
    logits = made.engine.prefill(0, [1, 2, 3], 0, [2]).copy()
    made.engine.close()
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".digest"] and list(temporary.iterdir()) == []
    monkeypatch.undo()
    other = load(engine, tmp_path / "whole")
    assert (other.engine.prefill(0, [1, 2, 3], 0, [2]) == logits).all()
    assert made.disk_bytes == other.disk_bytes
    other.engine.close()


@pytest.mark.parametrize("engine", BUILT)
def test_where_every_disk_is_full_the_load_says_which(
    engine: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(monkeypatch, BUILT[engine], lambda _: True)
    with pytest.raises(LoadFailed, match="No space left on device") as error:
        load(engine, tmp_path / "cache")
    assert str(tmp_path / "cache") in str(error.value) and str(temporary) in str(error.value)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".digest"] and list(temporary.iterdir()) == []


def test_a_built_model_that_cannot_be_opened_is_not_left_in_the_temporary_folder(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("server.engines.native.NativeEngine", refuse)
    fill(monkeypatch, BUILT["native"], lambda prefix: prefix.startswith(".building"))
    with pytest.raises(MemoryError):
        load("native", tmp_path / "cache")
    assert list(temporary.iterdir()) == []


def test_what_a_killed_worker_left_in_the_temporary_folder_is_swept(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, age in (("gpt2d-built-old", 7200), ("gpt2d-built-new", 0)):
        (temporary / name).mkdir()
        os.utime(temporary / name, (temporary.stat().st_mtime - age,) * 2)
    fill(monkeypatch, BUILT["native"], lambda prefix: prefix.startswith(".building"))
    load("native", tmp_path / "cache").engine.close()
    assert [p.name for p in temporary.iterdir()] == ["gpt2d-built-new"]


def test_a_row_that_was_cut_short_does_not_take_the_next_one_with_it(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for line in ('{"row": 1}', '{"row": 2}'):
        harness.append(file, line)
    file.write_bytes(file.read_bytes()[:-4])
    for line in ('{"row": 3}', '{"row": 4}'):
        harness.append(file, line)
    assert file.read_text() == '{"row": 1}\n{"row":\n{"row": 3}\n{"row": 4}\n'
