"""Locks that processes have on files: the system lets go of them, however a process ends."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

HOLD_S = 2.0
"""Longest wait for a lock that is held for a moment: a process may stand still while it has it."""
AGAIN_S = 0.01


def take(file: Path) -> IO[bytes] | None:
    """Take the lock of a file, which is made if need be, until what is returned is closed; None: another has it.
    Raises: OSError.
    """
    handle = file.open("ab")
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        return None
    return handle


@contextlib.contextmanager
def held(file: Path) -> Iterator[None]:
    """Hold the lock of a file for a moment, as soon as others let go of it, or without it after HOLD_S. Raises:
    OSError.
    """
    until = time.monotonic() + HOLD_S
    while (lock := take(file)) is None and time.monotonic() < until:
        time.sleep(AGAIN_S)
    with lock or contextlib.nullcontext():
        yield
