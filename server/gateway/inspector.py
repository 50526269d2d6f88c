"""Has models' files looked into, beside everything else: a process of low priority, one at a time.

It notes what it finds (catalogue/findings.py), and the next answer to `models` tells it. A look that ends its process,
or takes too long, costs that one folder, which is not looked into again before its files change.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, NamedTuple, cast

from server.launch.local import ROOT, relay

log = logging.getLogger("gpt2d.inspector")

PROGRAM = "server.checkpoint.inspection"
LOOK_S = 120.0
"""Longest look into one folder."""
MAX_FOLDERS = 256
"""Most folders that one process looks into."""


class Unknown(NamedTuple):
    """A folder of which nothing is known in its state, and its base's folder, which only an adapter has."""

    state: str
    base: Path | None


class Inspector:
    """The process, and which folders it was given. Used by the thread that looks at the disk, and by its own."""

    def __init__(self, cache_dir: Path, changed: Callable[[], None]) -> None:
        """`changed` is called, in another thread, when there may be findings that were not there before."""
        self._cache_dir = cache_dir
        self._changed = changed
        self._lock = threading.Lock()
        self._tried: dict[Path, Unknown] = {}
        """The state in which each folder was looked into."""
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def inspect(self, unknown: Mapping[Path, Unknown]) -> None:
        """Have these folders looked into, of which nothing is known in the state that is given, each once."""
        with self._lock:
            self._tried = {folder: state for folder, state in self._tried.items() if unknown.get(folder) == state}
            wanted = [folder for folder in unknown if folder not in self._tried][:MAX_FOLDERS]
            if not wanted or self._process or self._closed:
                return
            try:
                self._process = self._start({folder: unknown[folder] for folder in wanted})
            except OSError as e:
                log.warning("nothing can look into the models' files: %s", e)
                self._tried = dict(unknown)
                return
            given = {folder: unknown[folder] for folder in wanted}
            follow = threading.Thread(target=self._follow, args=(self._process, given), name="inspector", daemon=True)
        follow.start()

    def _start(self, folders: Mapping[Path, Unknown]) -> subprocess.Popen[bytes]:
        """Start the process. Raises: OSError."""
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": ROOT, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        threading.Thread(target=relay, args=(process.stderr, "inspector"), name="inspector's log", daemon=True).start()
        pairs = [(_hexadecimal(folder), _hexadecimal(unknown.base)) for folder, unknown in folders.items()]
        orders = {"cache_dir": str(self._cache_dir), "folders": pairs}
        try:
            stdin = cast("IO[bytes]", process.stdin)
            stdin.write(json.dumps(orders).encode() + b"\n")
            stdin.flush()
        except OSError:
            process.kill()
            raise
        return process

    def _follow(self, process: subprocess.Popen[bytes], given: dict[Path, Unknown]) -> None:
        """Note which folder it has come to, and end it where one takes too long."""
        folders = list(given)
        tried: list[Path] = []
        with process, cast("IO[bytes]", process.stdout) as numbers:
            while line := self._next(process, numbers):
                tried.append(folders[int(line)])
                with self._lock:
                    self._tried[tried[-1]] = given[tried[-1]]
        with self._lock:
            self._process = None
            if process.returncode and not self._closed:
                at = tried[-1] if tried else "its start"
                log.warning("the process that looks into models' files ended (%s) at %s", process.returncode, at)
                self._tried |= {} if tried else given
        self._changed()

    @staticmethod
    def _next(process: subprocess.Popen[bytes], numbers: IO[bytes]) -> bytes:
        """Return the next line; nothing at the end, which comes at the latest after LOOK_S."""
        limit = threading.Timer(LOOK_S, process.kill)
        limit.start()
        try:
            return numbers.readline()
        finally:
            limit.cancel()

    def close(self) -> None:
        """End the process; nothing is looked into any more."""
        with self._lock:
            self._closed = True
            if self._process:
                self._process.kill()


def _hexadecimal(path: Path | None) -> str:
    return os.fsencode(path).hex() if path else ""
