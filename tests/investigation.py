"""What the tests of the investigation's scripts share."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
VERSE = "So shines a good deed in a naughty world\nAnd so the candle went before the moon\n"


def script(name: str) -> ModuleType:
    """A script of the investigation or of the report as a module."""
    folder = "report" if (ROOT / "scripts" / "report" / f"{name}.py").exists() else "investigation"
    return importlib.import_module(f"scripts.{folder}.{name}")


def run_script(home: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of scripts/ as a user does, from the checkout, with `home` as its cache."""
    return subprocess.run(
        [sys.executable, "-m", f"scripts.{module}", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"XDG_CACHE_HOME": str(home)},
        cwd=ROOT,
    )


def cache_with_text(folder: Path) -> Path:
    """A cache of its own, which has text to measure with already."""
    (folder / "gpt2d" / "graphs").mkdir(parents=True)
    (folder / "gpt2d" / "graphs" / "held-out.txt").write_text(VERSE * 200)
    return folder
