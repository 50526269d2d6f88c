"""Commands over whole files, as a user starts them: in a process of their own."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OURS = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}
"""Variables with which a process in another folder finds this checkout."""


def command(endpoint: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "client", *words, "--connect", endpoint]


def run(endpoint: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(endpoint, *words), cwd=folder, env=OURS, capture_output=True, text=True, timeout=60, check=False
    )


def read(out: Path) -> list[dict[str, str]]:
    with out.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, strict=True))
