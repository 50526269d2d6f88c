"""What is kept for a restart after a crash: a file for each process, so that two windows leave each other's alone.

A lock beside it is held for as long as the process lives; the system lets go of it, however that ends. A file whose
lock can be had was left behind: it is offered, and whoever offers it holds its lock meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from client.window import locks
from client.window.sidecar import Branches, check

MAX_OFFERED = 20
"""Most texts that are offered; the newest."""
MAX_BYTES = 128 << 20


@dataclass(frozen=True)
class Autosaved:
    text: str
    path: str = ""
    """The file that the page belongs to; empty: none yet."""
    at: float = 0.0
    """Unix time."""
    branches: Branches | None = None


class Autosave:
    """The files in one folder: `write` and `clear` are for this process's own, the others were left behind."""

    def __init__(self, folder: Path, write: Callable[[Path, bytes], None]) -> None:
        self._folder, self._write = folder, write
        self._own = folder / f"{os.getpid()}-{secrets.token_hex(4)}.json"
        self._locks: dict[Path, IO[bytes]] = {}

    def write(self, saved: Autosaved) -> None:
        """Raises: OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._own not in self._locks:
            self._lock(self._own)
        self._write(self._own, msgspec.json.encode(saved))

    def clear(self) -> None:
        """There is nothing to restore any more."""
        self._remove(self._own)

    def left_behind(self) -> dict[str, Autosaved]:
        """Return what processes that crashed have left behind, by the names of their files, the newest first."""
        found = dict[str, Autosaved]()
        with contextlib.suppress(OSError):
            files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
            for file in files[:MAX_OFFERED]:
                if file not in self._locks and self._lock(file) and (saved := _read(file)):
                    found[file.name] = saved
        return found

    def forget(self, name: str) -> None:
        """Remove one of those that were left behind."""
        self._remove(self._folder / name)

    def _lock(self, file: Path) -> bool:
        """Take the lock of a file; return False if a process that lives has it."""
        handle = locks.take(file.with_suffix(".lock"))
        if handle:
            self._locks[file] = handle
        return handle is not None

    def _remove(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        if handle := self._locks.pop(file, None):
            handle.close()
            with contextlib.suppress(OSError):  # on Windows another process may be looking at it
                file.with_suffix(".lock").unlink()


def _read(file: Path) -> Autosaved | None:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if file.stat().st_size <= MAX_BYTES:
            found = msgspec.json.decode(file.read_bytes(), type=Autosaved)
            if found.branches:
                check(found.branches)
            return found if found.text else None
    return None
