"""A screen for the tests that need one, and a home of the test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def screen() -> Iterator[str]:
    """A display: an Xvfb of the tests'."""
    if sys.platform != "linux" or not shutil.which("Xvfb"):
        pytest.skip("the window's tests need Linux and Xvfb (Debian: apt-get install xvfb)")
    server = subprocess.Popen(
        # Without -noreset it starts again when its last client leaves, and refuses whoever comes in that moment.
        ["Xvfb", "-displayfd", "1", "-screen", "0", "1400x900x24", "-nolisten", "tcp", "-noreset"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout
    display = f":{server.stdout.readline().strip()}"
    before = os.environ.get("DISPLAY")
    os.environ["DISPLAY"] = display
    yield display
    os.environ.pop("DISPLAY") if before is None else os.environ.update(DISPLAY=before)
    server.terminate()
    server.wait()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Config, data and cache folders that nobody else uses."""
    for name in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    return tmp_path
