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
from server.groups import groups, text
from server.launch.spec import Spec

MEMORY_FILES = {
    2: (("memory.max", "memory.current"), (("active_file", "inactive_file", "slab_reclaimable"), "file_mapped")),
    1: (
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        (("total_active_file", "total_inactive_file"), "total_mapped_file"),
    ),
}
"""Files with the limit and the use of a group's memory by cgroup's version, what the system can take back of it, and
what of that is in use all the same, as weights that an engine reads where they lie.
"""
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
        reading = threading.Thread(
            target=relay, args=(popen.stderr, spec.name), name=f"stderr of {spec.name}", daemon=True
        )
        process = LocalProcess(popen)
        try:
            reading.start()
            process.tell(replace(spec, node=spec.node or platform.node()).to_line())
        except RuntimeError as e:  # the system gives no more threads
            process.kill()
            raise OSError(str(e)) from None
        except OSError:
            process.kill()
            raise
        return process

    def free_memory(self, untaken: int) -> int:
        rooms = (limit - used for limit, used in group_memory())
        return min([int(psutil.virtual_memory().available), *rooms]) - untaken

    def places(self) -> str:
        return ""

    def close(self) -> None:
        """Each worker ends by itself with its stdin."""


@functools.cache
def machine_memory() -> int:
    """Return the bytes that this machine has, or that a limit of a service or a container allows."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in group_memory())])


def group_memory(root: Path = Path("/")) -> Iterator[tuple[int, int]]:
    """Yield the memory that each control group around this process may have, and what it cannot do without.

    The rest of what it uses is mostly copies of files, with which downloading or reading a model fills any limit.
    """
    for version, folder in groups("memory", root):
        files, counts = MEMORY_FILES[version]
        limit, used = (text(folder / name) or "" for name in files)
        if limit.isdigit() and used.isdigit():  # not "max"
            stat = dict(line.split() for line in (text(folder / "memory.stat") or "").splitlines())
            spare, mapped = counts
            free = sum(int(stat.get(name, 0)) for name in spare) - int(stat.get(mapped, 0))
            yield int(limit), int(used) - max(0, free)


def relay(stderr: IO[bytes], name: str) -> None:
    """Pass a worker's stderr on to the log: it has one format, and a reader that has stopped holds up no worker."""
    with stderr:
        while line := stderr.readline(LINE_BYTES):
            log.warning("%s: %s", name, COLOUR.sub("", line.decode(errors="replace")).rstrip())
