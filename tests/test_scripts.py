"""Every script starts as its documentation says, and says what it is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {"scripts/run.py", "scripts/test.py", "scripts/keygen.py"}
"""Started as files: the first two before anything is installed."""


def programs() -> list[Path]:
    """Every script of every folder that can be started by a person: it has arguments to explain."""
    found = [p.relative_to(ROOT) for p in sorted((ROOT / "scripts").rglob("*.py"))]
    texts = {p: (ROOT / p).read_text(encoding="utf-8") for p in found}
    return [p for p in found if "__doc__" in texts[p] and '__name__ == "__main__"' in texts[p]]


def test_all_folders_are_walked() -> None:
    folders = {p.parent.as_posix() for p in programs()}
    assert folders >= {"scripts", "scripts/bench", "scripts/investigation", "scripts/report", "scripts/training"}
    assert len(programs()) >= 24


@pytest.mark.parametrize("program", programs(), ids=lambda p: p.as_posix())
def test_help(program: Path) -> None:
    """`--help` shows an example, which is the very way it was started."""
    name = ".".join(program.with_suffix("").parts).removesuffix(".__main__")
    as_file = program.as_posix() in FILES
    command = [program.as_posix()] if as_file else ["-m", name]
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    example = program.as_posix() if as_file else f"python -m {name}"
    assert done.returncode == 0 and example in done.stdout, done.stdout + done.stderr
