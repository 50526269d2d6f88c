"""Functions that the tests of the investigation's scripts share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


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
