"""Commands over whole files, as a user starts them: in a process of their own."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from client.corpus import commands
from protocol import messages as m
from protocol.keys import Address
from protocol.testing import Answer, FakeServer

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


LOADED: dict[str, Any] = {
    "id": None, "model": "demo", "engine": "native", "precision": "int8", "digest": "d" * 64, "context": 64, "rows": 1,
    "threads": 1, "rss_bytes": 1, "load_ms": 1.0, "already": True,
}  # fmt: skip
READY = m.WorkerHealth(
    model="demo", engine="native", precision="int8", state="ready", moved_ms_ago=1, running=0, waiting=0
)


def usual(request: m.AnyRequest, *, digest: str = "d" * 64) -> Answer:
    """Answer what is asked before the work begins, by a server that has one model."""
    match request:
        case m.Ping():
            return m.Pong(id=None, server_id="fake", uptime_ms=1, draining=False, workers=[READY])
        case m.Load():
            return m.Loaded(**(LOADED | {"digest": digest}))
    return None


def here(server: FakeServer, *words: str) -> int:
    """Run a command in this process; return its exit code."""
    return commands.main([*words], lambda _: Address(server.endpoint), lambda _: None)


def position(folder: Path) -> int:
    """Return how many texts the file of progress says are done."""
    file = folder / "o.csv.progress"
    return int(json.loads(file.read_bytes())["position"]["done"]) if file.exists() else 0
