"""Other processes that are busy while something is measured."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

SPIN = """
import os, sys, time
busy, period, parent = float(sys.argv[1]), float(sys.argv[2]), os.getppid()
print("begun", flush=True)
while os.getppid() == parent:
    until = time.perf_counter() + busy
    while time.perf_counter() < until:
        pass
    if period > busy:
        time.sleep(period - busy)
"""
"""A program that is busy for a share of the time, until its parent is gone."""


@contextlib.contextmanager
def busy_processes(count: int, busy_ms: float = 1, period_ms: float = 1) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run others beside, each in a session of its own as a person's programs are: Linux is fair to sessions.

    Each is busy for `busy_ms` of every `period_ms`.
    """
    spinners = []
    try:
        for _ in range(count):
            command = [sys.executable, "-c", SPIN, str(busy_ms / 1e3), str(period_ms / 1e3)]
            spinners.append(subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True))
        for spinner in spinners:
            if spinner.stdout:
                spinner.stdout.readline()
        yield spinners
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.communicate()
