"""Every script starts, and says what it is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(Path("scripts").glob("*.py"))


@pytest.mark.parametrize("script", [s for s in SCRIPTS if "__doc__" in s.read_text()], ids=lambda s: s.name)
def test_help(script: Path) -> None:
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and f"scripts/{script.name}" in done.stdout, done.stderr  # an example
