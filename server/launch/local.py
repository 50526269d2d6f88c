"""Starts workers on this machine."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import psutil

from protocol import messages as m
from protocol.errors import RequestError
from server.config import CGROUP
from server.launch.spec import Spec

CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Files with the limit and the use of memory, of cgroup v2 and of v1."""
log = logging.getLogger("gpt2d.worker")

LINE_BYTES = 4096
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
ROOT = str(Path(__file__).resolve().parent.parent.parent)
"""Where the packages are, for the processes that are started."""
PROGRAM: tuple[str, ...] = ("server.worker",)
"""The module that a worker's process runs, and its arguments."""


class LocalProcess:
    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    def tell(self, line: bytes) -> None:
        """Write to its stdin. Raises: OSError if it has ended."""
        if self._popen.stdin:
            self._popen.stdin.write(line)
            self._popen.stdin.flush()

    def exit_code(self) -> int | None:
        return self._popen.poll()

    def problem(self) -> RequestError | None:
        return None

    def progress(self) -> m.Progress | None:
        return None

    def renew(self, routing_id: str) -> bool:  # noqa: ARG002 - it has but one
        self.kill()
        return False

    def wait(self, seconds: float | None = None) -> int | None:
        """Return its exit code; None if it has not ended within `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(seconds)
        return None

    def stop(self) -> None:
        if self._popen.stdin:
            self._popen.stdin.close()

    def kill(self) -> None:
        self._popen.kill()


class LocalLauncher:
    """Starts workers on this machine, in sessions of their own: Ctrl-C in a terminal ends the daemon alone."""

    def __init__(self, program: Sequence[str] | None = None) -> None:
        self._program = program or PROGRAM

    def start(self, spec: Spec, memory_bytes: int) -> LocalProcess:  # noqa: ARG002 - what is free was asked before
        """Raises: OSError if no process can be made."""
        # NumPy's own thread pool would only take memory: the engine has its threads. On huge pages a row's first use
        # would stall everybody for 70 ms, since the system clears all of it and not only the positions that are used.
        environment = os.environ | {"PYTHONPATH": ROOT, "OPENBLAS_NUM_THREADS": "1", "NUMPY_MADVISE_HUGEPAGE": "0"}
        popen = subprocess.Popen(
            [sys.executable, "-P", "-m", *self._program],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        threading.Thread(
            target=relay, args=(popen.stderr, spec.name), name=f"stderr of {spec.name}", daemon=True
        ).start()
        process = LocalProcess(popen)
        try:
            process.tell(replace(spec, node=spec.node or platform.node()).to_line())
        except OSError:
            process.kill()
            raise
        return process

    def free_memory(self, untaken: int) -> int:
        return min([int(psutil.virtual_memory().available), *_cgroup_rooms()]) - untaken

    def places(self) -> str:
        return ""

    def close(self) -> None:
        """Each worker ends by itself with its stdin."""


@functools.cache
def machine_memory() -> int:
    """Return the bytes that this machine has, or that a container's limit allows."""
    limits = [int(psutil.virtual_memory().total)]
    for limit, _ in CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):
            limits.append(int((CGROUP / limit).read_text()))
    return min(limits)


def relay(stderr: IO[bytes], name: str) -> None:
    """Pass a worker's stderr on to the log: it has one format, and a reader that has stopped holds up no worker."""
    with stderr:
        while line := stderr.readline(LINE_BYTES):
            log.warning("%s: %s", name, COLOUR.sub("", line.decode(errors="replace")).rstrip())


def _cgroup_rooms() -> Iterator[int]:
    """Yield what a container's limit leaves, where there is one (cgroup v2, then v1)."""
    for limit, used in CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # no such file; "max"
            yield int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text())
