"""What macOS and Windows do otherwise: disks that do not tell "a" from "A", names of devices, line ends, signals."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from server import build
from server.__main__ import ENDING
from server.keygen import client_keys, server_keys

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["server", "Server", "SERVER"])
def test_no_client_gets_the_servers_name_in_capitals_either(name: str, tmp_path: Path) -> None:
    """Where Server.key is server.key, the server's own key would be deleted to make room for it."""
    keys = server_keys(tmp_path)
    with pytest.raises(ValueError, match="belongs to the server's own key; choose another one"):
        client_keys(tmp_path, name, "admin")
    assert server_keys(tmp_path) == keys


@pytest.mark.parametrize("name", ["con", "NUL", "aux", "com1", "Lpt9.home"])
def test_no_client_is_called_as_windows_calls_a_device(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is the name of a device on Windows"):
        client_keys(tmp_path, name, "admin")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["console", "com", "com10", "auxiliary", "nul-1"])
def test_names_that_only_begin_so_are_taken(name: str, tmp_path: Path) -> None:
    client_keys(tmp_path, name, "admin")
    assert (tmp_path / f"{name}.key").exists()


def test_a_daemon_ends_by_the_signals_that_its_system_has() -> None:
    assert {signal.SIGINT, signal.SIGTERM} == {getattr(signal, name) for name in ENDING if hasattr(signal, name)}
    assert "SIGBREAK" in ENDING, "Windows'"


@pytest.mark.skipif(not shutil.which("git") or not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_git_changes_no_line_ends_on_windows() -> None:
    """Digests of the kernels' sources and of the embedded model are made of bytes."""
    command = ["git", "-c", "safe.directory=*", "check-attr", "text", "--", "server/kernels/src/ops.h"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "server/kernels/src/ops.h: text: unset\n"


def test_the_kernels_digest_is_that_of_every_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows sorts paths without regard to case."""
    for name in ("b.h", "A.h", "C.h"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    digest = build.digest()
    monkeypatch.setattr(Path, "__lt__", lambda a, b: str(a).lower() < str(b).lower(), raising=False)
    assert build.digest() == digest
